"""A training that takes milliseconds, for tests of what surrounds it; also the command of a sweep.

`python -m tests.standin SWEEP.yaml OUT PACE` sweeps with it; the real config and figures, which
take seconds to import, are left out.
"""

import sys
import time
from types import SimpleNamespace

from dtr_lightning.run import Run

STEPS = 10


def resolve(file, overrides=None):
    """Returns a config of the right form without reading the file."""
    options = {"pace": 0.0, "router": "NoRouting", "seed": 0, **(overrides or {})}
    init = {k.split(".")[1]: v for k, v in options.items() if k.startswith("router.")}
    return {
        "seed": options["seed"],
        "router": {"class_path": options["router"], "init_args": init},
        "pace": options["pace"],
        "trainer": {"max_steps": STEPS},
    }


def train(config, path, report, stop):
    """Goes through its steps, resumes, and counts its starts and ends beside the record."""
    run, router = Run(path), config["router"]
    with run.lock():
        run.prepare(config)
        if (results := run.results) is not None:
            return results
        (path / "starts").open("a").write("x")
        if router["class_path"] == "Raises":
            raise ValueError("no such luck\nat all")
        if router["class_path"] == "Exits" and not run.metrics():
            run.append_metrics({"step": 1})
            sys.exit(3)
        for step in range(len(run.metrics()) + 1, STEPS + 1):
            if stop.is_set():
                return None
            time.sleep(config["pace"])
            run.append_metrics({"step": step})
            report(
                {
                    "stage": "train",
                    "done": step,
                    "total": STEPS,
                    "step": step,
                    "loss": 1.0,
                    "score": None,
                }
            )
        (path / "ends").open("a").write("x")
        score = float("nan") if router["class_path"] == "Diverges" else len(path.name)
        results = {"score": score, "loss": 0.5, "seconds": 0.1, "pace": config["pace"]}
        run.write_results(results)
        return results


def main(sweep, out, pace):
    """Sweeps and prints what became of it."""
    slow = SimpleNamespace(
        resolve=lambda file, overrides: resolve(file, {"pace": float(pace), **overrides})
    )
    sys.modules["dtr_lightning.config"] = slow
    from sweeps import driver
    from tests import standin

    driver.report = lambda *arguments: None
    outcome = driver.run_sweep(sweep, workers=2, out=out, train=standin.train)
    print("stopped" if outcome.stopped else "ended", len(outcome.results), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
