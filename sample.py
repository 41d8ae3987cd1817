"""Sample from a run: python sample.py RUN --classes 3 --guidance 2 --n 64

A run that was trained on captions draws what texts say: --prompt "a red bus" --prompt "two dogs".
Writes a PNG sheet and, with --npz, the samples as arrays (arr_0 uint8 (n, H, W, C), labels).
Another sampler: --sampler DDPM --sampler.steps 250.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtr_lightning.cli.commands import Options, check_file, command, loading, stop_on_signals
from dtr_lightning.errors import Stopped, UserError
from dtr_lightning.rundir.naming import config_hash, cut
from dtr_lightning.rundir.run import Run

if TYPE_CHECKING:
    from dtr_lightning.data import Data
    from dtr_lightning.experiment.api import StoredRun

N = 64  # samples of a sheet, or as many more as make its last row full


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Returns the command's own options, and those of the run that it changes."""
    parser = Options(__doc__, may_be_empty=("--prompt",))
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--classes", nargs="+", help="names or numbers; all in turn by default")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="several: in turn")
    parser.add_argument("--clip", metavar="DIR", help="where the text encoder of prompts lies")
    parser.add_argument("--guidance", help="1: the conditional model (default: the run's own)")
    parser.add_argument("--n", type=int, help=f"of samples (default: {N} or more, in full rows)")
    parser.add_argument("--seed", type=int, help="of the noise (default: the run's own)")
    parser.add_argument("--checkpoint", default="last", help="last, or step=N of a milestone")
    parser.add_argument("--out", help="the sheet, .png (default: RUN/samples/NAME.png)")
    parser.add_argument("--npz", help="also write the samples as arrays, .npz")
    given, options = parser.parse_known_args()
    for option in options:
        other = ("--sampler", "--trainer.accel", "--data.")
        if option.startswith("--") and not option.startswith(other):
            near = difflib.get_close_matches(option, parser.names(), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"unknown option {option}{hint}; valid: {', '.join(parser.names())}, --sampler "
                "with what belongs to it, --trainer.accelerator, --data.workers and the places of "
                "data"
            )
    if given.n is not None and given.n < 1:
        raise UserError(f"--n must be at least 1; got {given.n}")
    if given.prompt and given.classes:
        raise UserError("give --prompt or --classes, not both")
    if given.clip:
        options.append(f"--data.clip={given.clip}")
    for option, value in (("seed", given.seed), ("guidance", given.guidance)):
        if value is not None:
            options.append(f"--evaluation.{option}={value}")
    return given, options


def file_name(run: "StoredRun", given: argparse.Namespace, labels: list[int]) -> str:
    """Returns the name of a sheet, which says what is drawn and how.

    It ends in a digest of all of that, as texts are cut and few options are named.
    """
    kind, what = "class", "+".join(map(str, labels)) if given.classes else "all"
    if given.prompt:
        kind, what = "prompt", re.sub(r"\W+", "_", "+".join(given.prompt))
    experiment = run.trained.experiment
    protocol, sampler = experiment.protocol, type(experiment.sampler).__name__.lower()
    how = {key: experiment.config[key] for key in ("sampler", "evaluation")}
    digest = config_hash({"prompts": given.prompt, "labels": labels, **how})
    return (
        f"{kind}={cut(what, 60)}-n={given.n}-seed={protocol.seed}-{sampler}"
        f"{experiment.sampler_steps}-guidance={protocol.guidance:g}-step={run.trained.step}"
        f"-{digest}.png"
    )


def class_names(data: "Data", classes: list[str] | None) -> list[str]:
    """Returns the names of the classes that a sheet has in turn; none of a run with captions."""
    from dtr_lightning.experiment.api import class_numbers

    if data.captions:  # these are fixed, and in no order
        return []
    names = dict(enumerate(data.class_names))
    return [names.get(i, str(i)) for i in class_numbers(data, classes)]


@command
def main() -> int:
    """Reads the options, samples and writes the files."""
    given, options = parse()
    samples = Run.existing(given.run).samples
    if not given.out:
        samples.mkdir(exist_ok=True)
    check_file("--out", given.out or str(samples / "NAME.png"), ".png")
    if given.npz:
        check_file("--npz", given.npz, ".npz")
    loading(sys.stderr)

    import numpy as np
    import torch

    from dtr_lightning.cli.progress_bar import Bar
    from dtr_lightning.experiment.api import StoredRun
    from dtr_lightning.rundir.atomic import replacing
    from dtr_lightning.training.pictures import columns_of, save_sheet

    stop = stop_on_signals()
    run = StoredRun(given.run, given.checkpoint, options)
    prompts, data = given.prompt, run.trained.experiment.data
    names = prompts or class_names(data, given.classes)
    columns = columns_of(N, len(names))
    given.n = given.n or -(-N // columns) * columns
    labels = torch.arange(given.n) % len(prompts) if prompts else run.labels(given.n, given.classes)
    drawn = list(dict.fromkeys(labels.tolist()))
    out = Path(given.out or run.files.samples / file_name(run, given, drawn))
    check_file("--out", str(out), ".png")
    total, done = run.trained.experiment.sampling_work(given.n), 0
    with Bar("sample") as bar:

        def count(images: int) -> None:
            nonlocal done
            done += images
            bar(done, total, "sample")
            if stop.is_set():
                raise Stopped

        images = run.sample(given.n, given.classes, report=count, prompts=prompts)
    save_sheet(str(out), images, names)
    print(out)
    if given.npz:
        arrays: dict[str, Any] = {"arr_0": images.permute(0, 2, 3, 1).numpy()}
        arrays |= {"labels": labels.numpy()}
        arrays |= {"prompts": np.array(prompts)} if prompts else {}
        with replacing(given.npz) as part:
            np.savez_compressed(part, **arrays)
        print(given.npz)
    return 0


if __name__ == "__main__":
    sys.exit(main())
