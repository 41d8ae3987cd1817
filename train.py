"""Train one run: python train.py --config configs/digits.yaml --router DTR --router.alpha 4.

The same command again goes on where it stopped, or prints the result of a finished run.
"""

import sys
from pathlib import Path

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

    from dtr_lightning.cli.progress_bar import Bar
    from dtr_lightning.cli.summary import summary
    from dtr_lightning.config.parser import expert_configs, make_parser, parse, run_name
    from dtr_lightning.experiment.fit import run
    from dtr_lightning.experiment.notes import print_notes
    from dtr_lightning.experiment.progress import Progress
    from dtr_lightning.rundir.run import Run
    from dtr_lightning.training.launch import is_leader

    parser = make_parser(description=__doc__)
    parser.add_argument("--out", type=str, help="run directory (default: runs/CONFIG/NAME)")
    config, out, files = parse(parser, sys.argv[1:])
    if out == "":
        raise UserError("--out is empty; give a directory, or leave it out")
    out = out or Path("runs") / Path(files[-1]).stem / run_name(config, files[-1])
    if not is_leader(config["trainer"]):
        try:
            return int(Diverged.of(run(config, out, stop=stop)) is not None)
        except Stopped:  # the first process says so
            return INTERRUPTED
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
    print("\n".join(summary({**results, "notes": ()})), flush=True)
    print(f"{'results':<18}{Run(out).results_file}")
    if not diverged and results.get("n"):
        print(f"{'samples':<18}{Run(out).samples}")
    print_notes(results)
    print(f"tensorboard --logdir {out}")
    return int(diverged is not None)


if __name__ == "__main__":
    sys.exit(main())
