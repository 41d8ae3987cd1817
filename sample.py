"""Sample from a run: python sample.py RUN --classes 3 --guidance 2 --n 64

Writes a PNG sheet and, with --npz, the samples as arrays (arr_0 uint8 (n, H, W, C), labels).
Another sampler: --sampler DDPM --sampler.steps 250.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dtr_lightning.cli.commands import Options, check_file, command, loading, stop_on_signals
from dtr_lightning.errors import Stopped, UserError, refuse_diverged
from dtr_lightning.runs.run import Run

if TYPE_CHECKING:
    from dtr_lightning.data import Data


@command
def main() -> int:
    """Reads the options, samples and writes the files."""
    parser = Options(__doc__)
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--classes", nargs="+", help="names or numbers; all in turn by default")
    parser.add_argument("--guidance", help="1: the conditional model (default: the run's own)")
    parser.add_argument("--n", type=int, default=64, help="number of samples")
    parser.add_argument("--seed", type=int, help="of the noise (default: the run's own)")
    parser.add_argument("--checkpoint", default="last", help="last, or step=N of a milestone")
    parser.add_argument("--out", help="the sheet, .png (default: RUN/samples/NAME.png)")
    parser.add_argument("--npz", help="also write the samples as arrays, .npz")
    given, options = parser.parse_known_args()
    for option in options:
        other = ("--sampler", "--trainer.accel", "--data.")
        if option.startswith("--") and not option.startswith(other):
            parser.error(f"unknown option: {option}")
    if given.n < 1:
        raise UserError(f"--n must be at least 1; got {given.n}")
    for option, value in (("seed", given.seed), ("guidance", given.guidance)):
        if value is not None:
            options.append(f"--evaluation.{option}={value}")
    run = Run.existing(given.run)
    check_file("--out", given.out or str(run.samples / "NAME.png"), ".png")
    if given.npz:
        check_file("--npz", given.npz, ".npz")
    loading(sys.stderr)

    import numpy as np
    import torch

    from dtr_lightning.cli.progress_bar import Bar
    from dtr_lightning.experiment.evaluation import sample
    from dtr_lightning.experiment.load import TrainedRun, other_protocol
    from dtr_lightning.runs.atomic import replacing
    from dtr_lightning.training.pictures import save_sheet

    if given.checkpoint == "last":
        refuse_diverged(run.path, run.results)
    stop = stop_on_signals()
    trained = TrainedRun(run, other_protocol(run, options), given.checkpoint)
    data, protocol = trained.experiment.data, trained.experiment.protocol
    classes = class_numbers(data, given.classes)
    labels = torch.tensor([classes[i % len(classes)] for i in range(given.n)])
    shape = (data.in_channels, data.image_size, data.image_size)
    total, done = trained.experiment.sampling_work(given.n), 0
    with Bar("sample") as bar:

        def count(images: int) -> None:
            nonlocal done
            done += images
            bar(done, total, "sample")
            if stop.is_set():
                raise Stopped

        sampler = trained.experiment.sampler
        parts = sample(trained.module, sampler, labels, range(given.n), shape, protocol, count)
        images = torch.cat([images.cpu() for images, _ in parts])
    which = "all" if given.classes is None else "+".join(map(str, classes))
    how = f"{trained.experiment.sampler_steps}-guidance={protocol.guidance:g}-step={trained.step}"
    sampler = f"{type(trained.experiment.sampler).__name__.lower()}{how}"
    name = f"class={which[:60]}-n={given.n}-seed={protocol.seed}-{sampler}.png"
    out = Path(given.out or run.samples / name)
    save_sheet(str(out), images, len(classes))
    print(out)
    if given.npz:
        arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy(), "labels": labels.numpy()}
        with replacing(given.npz) as part:
            np.savez_compressed(part, **arrays)
        print(given.npz)
    return 0


def class_numbers(data: "Data", names: Sequence[str] | None) -> list[int]:
    """Returns the labels of classes given by name or number; UserError for one out of range."""
    if names is None:
        return list(range(data.num_classes))
    if data.num_classes == 1:
        raise UserError("the run is unconditional: it has no --classes")
    numbers = []
    for name in names:
        if name in data.class_names:
            numbers.append(data.class_names.index(name))
        elif name.isdecimal() and int(name) < data.num_classes:
            numbers.append(int(name))
        else:
            shown = ", ".join(data.class_names[:20]) + (" ..." if data.num_classes > 20 else "")
            last = data.num_classes - 1
            raise UserError(f"unknown class {name!r}; valid: 0 to {last}, or by name: {shown}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
