"""Evaluate a run: python evaluate.py RUN [--evaluation.guidance 1.5] [--sampler.steps 50]

Any option of --sampler, --features and --evaluation may differ from the training's config. Numbers
that are stored already are printed, not computed again; under another protocol, or before the run
is done, they go to RUN/artifacts/evaluations.
"""

import json
import sys

from dtr_lightning.commands import Options, command, stop_on_signals
from dtr_lightning.errors import Stopped, refuse_diverged


@command
def main() -> int:
    """Reads the options, evaluates and prints the results."""
    parser = Options(__doc__)
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--checkpoint", default="last", help="last, or step=N of a milestone")
    given, options = parser.parse_known_args()

    from dtr_lightning.bar import Bar
    from dtr_lightning.run import Run
    from dtr_lightning.trained import TrainedRun, other_protocol, same_protocol

    run = Run.existing(given.run)
    config = other_protocol(run, options)
    if given.checkpoint == "last":
        refuse_diverged(run.path, run.results)
        if run.results and same_protocol(config, run.config):
            print(json.dumps(run.results, indent=1))
            return 0
    stop = stop_on_signals()
    trained = TrainedRun(run, config, given.checkpoint)
    total, done = trained.experiment.sampling_work(), 0
    with Bar("evaluate") as bar:

        def count(images: int) -> None:
            nonlocal done
            done += images
            bar(done, total, "evaluate")
            if stop.is_set():
                raise Stopped

        results = trained.evaluate(count)
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
