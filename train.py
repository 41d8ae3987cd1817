"""Train one run: python train.py --config configs/digits.yaml --router DTR --router.alpha 4.

The same command again goes on where it stopped, or prints the result of a finished run. With
--fast-dev-run it goes through all of it in a few steps, and keeps nothing.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

from dtr_lightning.cli.commands import INTERRUPTED, command, loading, stop_on_signals
from dtr_lightning.errors import Diverged, Stopped, UserError


@command
def main() -> int:
    """Reads the options, trains, evaluates and prints the results; exit code 1 if it diverged."""
    given = {word.partition("=")[0] for word in sys.argv[1:]}
    asks = given & {"--print_config", "-h"} or any(word.endswith("help") for word in given)
    if "--config" not in given and not asks:
        raise UserError("give --config FILE; recipes are in configs/, such as configs/digits.yaml")
    loading(sys.stderr if "--print_config" in given else None)
    stop = stop_on_signals()

    from dtr_lightning.config.parser import make_parser, parse, run_name
    from dtr_lightning.experiment.fast_dev_run import in_passing, shortened
    from dtr_lightning.training.launch import is_leader

    parser = make_parser(description=__doc__)
    parser.add_argument("--out", type=str, help="run directory (default: runs/CONFIG/NAME)")
    about = "go through training, evaluation, checkpoint and sampling in a few steps; keep nothing"
    parser.add_argument("--fast-dev-run", action="store_true", help=about)
    config, out, files, fast = parse(parser, sys.argv[1:])
    if out == "":
        raise UserError("--out is empty; give a directory, or leave it out")
    out = out or Path("runs") / Path(files[-1]).stem / run_name(config, files)
    leader, nodes = is_leader(config["trainer"]), config["trainer"]["num_nodes"]
    with in_passing(Path(out), nodes, leader) if fast else nullcontext(out) as out:
        code = train(shortened(config) if fast else config, out, stop, leader, quiet=fast)
    if fast and leader and code == 0:
        print("--fast-dev-run: training, evaluation, checkpoint and sampling: ok")
    return code


def train(config: dict[str, Any], out: str | Path, stop: Event, leader: bool, quiet: bool) -> int:
    """Trains and evaluates, and prints the results unless `quiet`; returns the exit code."""
    from dtr_lightning.cli.progress_bar import Bar
    from dtr_lightning.cli.summary import summary
    from dtr_lightning.config.parser import expert_configs
    from dtr_lightning.experiment.fit import run
    from dtr_lightning.experiment.notes import print_notes
    from dtr_lightning.experiment.progress import Progress
    from dtr_lightning.rundir.run import Run

    if not leader:
        try:
            return int(Diverged.of(run(config, out, stop=stop)) is not None)
        except Stopped:  # the first process says so
            return INTERRUPTED
    if not quiet:
        print(f"run: {out}", flush=True)
    steps = config["trainer"]["max_steps"] * max(1, len(expert_configs(config)))
    with Bar("starting") as bar:

        def show(state: Progress) -> None:
            loss = "" if state.train_loss is None else f"  loss {state.train_loss:.4g}"
            score = "" if state.score is None else f"  score {state.score:.4g}"
            bar(state.done, state.total, f"{state.stage}  step {state.step}/{steps}{loss}{score}")

        results = run(config, out, show, stop)
    if diverged := Diverged.of(results):
        print(f"diverged: {diverged}")
    if quiet:
        return int(diverged is not None)
    print("\n".join(summary({**results, "notes": ()})), flush=True)
    print(f"{'results':<18}{Run(out).results_file}")
    if not diverged and results.get("n"):
        print(f"{'samples':<18}{Run(out).samples}")
    print_notes(results)
    print(f"tensorboard --logdir {out}")
    return int(diverged is not None)


if __name__ == "__main__":
    sys.exit(main())
