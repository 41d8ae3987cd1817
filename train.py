"""Train one run: python train.py --config configs/digits.yaml --router DTR --router.alpha 4

The same command again goes on where it stopped, or prints the result of a finished run.
"""

import json
import os
import sys
from pathlib import Path

from dtr_lightning.commands import command, stop_on_signals
from dtr_lightning.errors import Diverged, UserError


@command
def main() -> int:
    """Reads the options, trains, evaluates and prints the results; exit code 1 if it diverged."""
    from dtr_lightning.bar import Bar
    from dtr_lightning.config import expert_configs, make_parser, parse, run_name
    from dtr_lightning.fit import run
    from dtr_lightning.notes import print_notes
    from dtr_lightning.progress import Progress

    parser = make_parser(description=__doc__)
    parser.add_argument("--out", type=str, help="run directory (default: runs/CONFIG/NAME)")
    config, out, files = parse(parser, sys.argv[1:])
    if not files:
        raise UserError("give --config FILE; recipes are in configs/, such as configs/digits.yaml")
    out = out or Path("runs") / Path(files[-1]).stem / run_name(config, files[-1])
    stop = stop_on_signals()
    if int(os.environ.get("LOCAL_RANK", "0")):
        run(config, out, stop=stop)
        return 0
    print(f"run: {out}", flush=True)
    steps = config["trainer"]["max_steps"] * max(1, len(expert_configs(config)))
    with Bar("starting") as bar:

        def show(state: Progress) -> None:
            score = "" if state.score is None else f"  score {state.score:.4g}"
            bar(state.done, state.total, f"{state.stage}  step {state.step}/{steps}{score}")

        results = run(config, out, show, stop)
    diverged = "diverged_at" in results
    if diverged:
        print(f"diverged: {Diverged(results['diverged_at'])}")
    print(json.dumps(results, indent=1), flush=True)
    print_notes(results)
    print(f"tensorboard --logdir {out}")
    return int(diverged)


if __name__ == "__main__":
    sys.exit(main())
