"""A training that takes milliseconds, for tests of what surrounds it; also the command of a sweep.

`python -m tests.sweeps.standin SWEEP.yaml OUT PACE` sweeps with it; the real config and figures,
which take seconds to import, are left out.
"""

import sys
import time
from io import StringIO
from types import SimpleNamespace

import optuna
from rich.console import Console

from dtr_lightning.rundir.naming import slug
from dtr_lightning.rundir.run import Run, find_runs
from sweeps.engine import driver, session
from sweeps.engine.workers import Machine

STEPS = 10
GRID = """
config: base.yaml
grid:
  - {router: NoRouting}
  - {router: DTR, router.alpha: [1, 4.0], router.beta: [0.6, 0.8]}
"""


def resolve(file, overrides=None):
    """Returns a config of the right form without reading the file."""
    options = {"pace": 0.0, "router": "NoRouting", "seed": 0, **(overrides or {})}
    init = {k.split(".")[1]: v for k, v in options.items() if k.startswith("router.")}
    return {
        "seed": options["seed"],
        "router": {"class_path": options["router"], "init_args": init},
        "pace": options["pace"],
        "trainer": {"max_steps": options.get("trainer.max_steps", STEPS)},
        "checkpoint": {"milestones": 0},
        "evaluation": {"n": 0},
    }


def run_name(config, file, overrides=None, varied=(), digests=None):
    """Returns the name that a config gets in a sweep of the stand-in."""
    return slug(config, resolve(file, overrides), varied=varied)


def takes(axis, choice, option):
    """Returns whether a router of the stand-in has an option: DTR alone."""
    return axis != "router" or choice == "DTR"


def on_the_way(config, step):
    """Returns the score after a step: the worse, the larger alpha is."""
    return config["router"]["init_args"].get("alpha", 0) + 1 / step


def train(config, path, report, stop):
    """Goes through its steps, resumes, and counts its starts and ends beside the record."""
    run, router = Run(path), config["router"]
    with run.lock():
        run.prepare(config)
        if (results := run.finished(config)) is not None:
            return results
        steps = config["trainer"]["max_steps"]
        (path / "starts").open("a").write("x")
        if router["class_path"] == "Raises":
            raise ValueError("no such luck\nat all")
        if router["class_path"] == "Exits" and not run.metrics():
            run.append_metrics({"step": 1})
            sys.exit(3)
        for step in range(len(run.metrics()) + 1, steps + 1):
            if stop.is_set():
                return None
            time.sleep(config["pace"])
            run.append_metrics({"step": step})
            report(
                {
                    "stage": "train",
                    "done": step,
                    "total": steps,
                    "step": step,
                    "loss": 1.0,
                    "score": on_the_way(config, step),
                    "evaluated": step,
                }
            )
        (path / "ends").open("a").write("x")
        score = on_the_way(config, steps) + 0.001 * config["seed"]
        if router["class_path"] == "Diverges":
            score = float("nan")
        results = {"score": score, "loss": 0.5, "seconds": 0.1, "pace": config["pace"]}
        results["steps"] = steps
        run.write_results(results)
        return results


def install(monkeypatch):
    """Lets this process sweep without the imports of a real config and of the figures."""
    config = SimpleNamespace(resolve=resolve, run_name=run_name, takes=takes)
    monkeypatch.setitem(sys.modules, "dtr_lightning.config.parser", config)
    monkeypatch.setattr(driver, "show", lambda *arguments: None)
    monkeypatch.setattr(driver, "this_machine", lambda: Machine(2, ()))
    monkeypatch.setattr(session, "LOOK", 0.1)


def write(folder, text=GRID, name="sweep.yaml"):
    """Writes a sweep's YAML and returns its path."""
    path = folder / name
    path.write_text(text)
    return path


def run(path, out, **options):
    """Sweeps with the stand-in; returns the outcome and what was printed."""
    text = StringIO()
    console = Console(file=text, width=100)
    outcome = driver.run_sweep(path, out=out, train=train, console=console, **options)
    return outcome, text.getvalue()


def counts(out):
    """Returns {run name: (starts, ends)}."""
    return {
        found.path.name: tuple(
            len((found.path / name).read_text()) if (found.path / name).exists() else 0
            for name in ("starts", "ends")
        )
        for found in find_runs([out])
    }


def trials(out):
    """Returns the trials of the only study in a sweep's directory."""
    storage = f"sqlite:///{out / 'study.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def main(sweep, out, pace):
    """Sweeps and prints what became of it."""

    def slow(file, overrides=None):
        return resolve(file, {"pace": float(pace), **(overrides or {})})

    sys.modules["dtr_lightning.config.parser"] = SimpleNamespace(
        resolve=slow, run_name=run_name, takes=takes
    )
    from tests.sweeps import standin

    driver.show = lambda *arguments: None
    outcome = driver.run_sweep(sweep, workers=2, out=out, train=standin.train)
    print("stopped" if outcome.stopped else "ended", len(outcome.results), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
