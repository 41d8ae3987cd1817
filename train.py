"""Train one run: python train.py --config configs/digits.yaml --router DTR --router.alpha 4

The same command again goes on where it stopped, or prints the result of a finished run.
"""

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dtr_lightning import progress
from dtr_lightning.commands import command, stop_on_signals
from dtr_lightning.config import make_parser, parse, run_name
from dtr_lightning.errors import UserError
from dtr_lightning.fit import run


@command
def main() -> int:
    """Reads the options, trains, evaluates and prints the results."""
    parser = make_parser(description=__doc__)
    parser.add_argument(
        "--out", type=str, default=None, help="run directory (runs/CONFIG/NAME by default)"
    )
    config, out, files = parse(parser, sys.argv[1:])
    if not files:
        raise UserError("give --config FILE; recipes are in configs/, such as configs/digits.yaml")
    if out is None:
        out = Path("runs") / Path(files[-1]).stem / run_name(config, files[-1])
    stop = stop_on_signals()
    if int(os.environ.get("LOCAL_RANK", "0")):
        run(config, out, stop=stop)
        return 0
    print(f"run: {out}", flush=True)
    with Bar(config["trainer"]["max_steps"]) as bar:
        results = run(config, out, bar, stop)
    print(json.dumps(results, indent=1))
    print(f"tensorboard --logdir {out}")
    return 0


class Bar:
    """A progress bar with an ETA on a terminal; a line per tenth of the work elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps, self.told = steps, -1
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> "Bar":
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, state: progress.Progress) -> None:
        """Shows where the run is."""
        score = f"  score {state.score:.4g}" if state.score is not None else ""
        text = f"{state.stage} step {state.step}/{self.steps}{score}"
        if self.bar.console.is_terminal:
            self.bar.update(self.task, description=text, completed=state.done, total=state.total)
        elif (tenth := 10 * state.done // state.total) > self.told:
            self.told = tenth
            print(f"{10 * tenth:3d} %  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
