"""Run directories whose every number is from a formula: for tests of figures and tables only."""

__all__ = [
    *("DTR4", "FOUR", "GRID", "diverge", "facts", "finished", "make_run", "make_sweep", "noisy"),
    *("prune", "record", "score_of"),
]

import math

import numpy as np

from analysis.read.runs import read
from analysis.tables.tables import table
from dtr_lightning.rundir.run import Run, find_runs

EIGHTHS = [f"val_tasks/t{125 * i:03d}-{125 * i + 124:03d}" for i in range(8)]
DTR4 = {"alpha": 4.0, "beta": 0.8}
FOUR = [("NoRouting", {}), ("RTR", {"beta": 0.8}), ("DTR", {"alpha": 1.0, "beta": 0.8})]
FOUR += [("DTR", {"alpha": 4.0, "beta": 0.8})]
GRID = [("NoRouting", {}), *[("RTR", {"beta": beta}) for beta in (0.6, 0.8)]]
GRID += [
    ("DTR", {"alpha": alpha, "beta": beta})
    for beta in (0.6, 0.8)
    for alpha in (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)
]


def score_of(router, args, seed):
    """A made-up score: lowest at alpha = 2, R-TR far away."""
    beta = args.get("beta", 1.0)
    base = {"NoRouting": 18.0, "RTR": 36.0}.get(router, 20.0)
    bend = 0.8 * (math.log2(args.get("alpha", 2.0)) - 1) ** 2
    return base + bend + 12 * (1 - beta) * (router != "NoRouting") + 0.5 * math.cos(7 * seed)


def make_run(path, router="NoRouting", args=None, seed=0, score=None, steps=1200, **config):
    """Writes a finished run directory; the images are gradients, the losses from a formula."""
    args = args or {}
    where = router if "." in router else f"dtr_lightning.routing.{router}"
    run = Run(path)
    run.prepare(
        {
            "seed": seed,
            "model": {"class_path": "DiT", "init_args": {"hidden_size": 64}},
            "router": {"class_path": where, "init_args": args},
            "loss_weight": {"class_path": "Constant", "init_args": {}},
            "diffusion": {"schedule": "cosine", "T": 1000},
            "sampler": {"class_path": "DDIM", "init_args": {"steps": 25}},
            "evaluation": {"n": 1797, "every_n": 512, "seed": 0},
            "trainer": {"max_steps": steps},
        }
        | config
    )
    score = score_of(router, args, seed) if score is None else score
    worse = {"NoRouting": 0.0, "RTR": 0.25}.get(router, 0.002 * args.get("alpha", 0))
    for step in range(300, steps + 1, 300):
        losses = {key: (0.4 / (i + 1)) * (1 + worse * (i - 3) / 4) for i, key in enumerate(EIGHTHS)}
        evaluated = {"eval/score": score + 400 * math.exp(-step / 250), "eval/n": 512}
        run.append_metrics({"step": step, "train/loss": 0.1})
        run.append_metrics({"step": step, "val/loss": 0.1, **losses, **evaluated})
    y, x = np.mgrid[:8, :8]
    images = np.stack([(30 * (x if i % 2 else y) + 7 * i) % 256 for i in range(20)])
    labels = np.arange(20) % 10
    np.savez(run.sample_arrays, images=images[:, None].astype(np.uint8), labels=labels)
    run.update_meta(status="done")
    numbers = {"score": score, "score_name": "fd_digits_v1", "n": 1797, "floor": 9.1}
    numbers |= {"floor_n": 360, "accuracy": 0.91, "copies": 0.01, "loss": 0.0512, "seconds": 31.2}
    run.write_results(numbers | {"steps": steps, "protocol": {"sampler": "DDIM", "seed": 0}})
    return run


def prune(run, step, score):
    """Makes of a finished run one that its sweep ended at a step."""
    run.results_file.unlink()
    run.update_meta(status="pruned", pruned_at=step, pruned_score=score)
    return run


def diverge(run, step):
    """Makes of a finished run one whose loss was nan at a step."""
    rest = {key: run.results[key] for key in ("score_name", "n", "seconds", "protocol")}
    run.write_results(rest | {"score": None, "loss": None, "diverged_at": step, "steps": step})
    run.update_meta(status="diverged")
    return run


def make_sweep(root, points=FOUR, seeds=(0,)):
    for i, (router, args) in enumerate(points):
        for seed in seeds:
            make_run(root / f"{router.lower()}-{i}-seed={seed}", router, args, seed)
    return root


def finished(root):
    """Returns the finished runs below a directory, as figures and tables read them."""
    return read(find_runs([root])).finished


def facts(run, **results):
    """Adds numbers to the results of a run."""
    run.write_results(run.results | results)
    return run


def record(run, step=1200, scores=(), losses=()):
    """Replaces a run's record by evaluations (step, score) and held-out losses at its end."""
    run.metrics_file.unlink()
    for at, score in scores:
        run.append_metrics({"step": at, "eval/score": score, "eval/n": 512})
    run.append_metrics({"step": step} | dict(zip(EIGHTHS, losses, strict=False)))


def noisy(root, seeds, shifts):
    """Runs of a router per shift, in score `shift` from no routing, and a noise of their own."""
    points = [("NoRouting", {}, 0.0)]
    points += [("DTR", {"alpha": float(i + 1), "beta": 0.8}, s) for i, s in enumerate(shifts)]
    for i, (router, args, shift) in enumerate(points):
        for seed in range(seeds):
            score = 5 + math.cos(7 * seed) + shift + 0.01 * math.sin(13 * seed + i) * (i > 0)
            make_run(root / f"{i}-{seed}", router, args, seed, score)
    return table(find_runs([root]))
