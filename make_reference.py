"""Make a reference for ADM's protocol: python make_reference.py DIR --out ref.npz --size 64

DIR is a folder of images, all of which count, prepared as a training prepares them (ADM's centre
crop); or a run, whose training images count. The file holds the statistics of Inception's features
over all images (mu, sigma, mu_s, sigma_s) and 10,000 of the images, evenly spaced in the order of
their paths (arr_0), for precision and recall. ADM's evaluator reads it too.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dtr_lightning.cli.commands import Options, check_file, command, loading, stop_on_signals
from dtr_lightning.errors import Stopped, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dtr_lightning.metrics.adm_protocol import Activations


@command
def main() -> int:
    """Reads the options and writes the file."""
    parser = Options(__doc__)
    parser.add_argument("dir", metavar="DIR", help="folder of images, or a run")
    parser.add_argument("--out", required=True, help="the file to write, .npz")
    parser.add_argument("--size", type=int, help="pixels a side; of a run: its own")
    parser.add_argument("--images", type=int, default=10_000, help="of arr_0, for precision")
    parser.add_argument("--weights", metavar="PTH", help="local copy of Inception's weights")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    given = parser.parse_args()
    check_file("--out", given.out, ".npz")
    if given.images < 2:
        raise UserError(f"--images must be at least 2; got {given.images}")
    if not Path(given.dir).is_dir():
        raise UserError(f"image folder {given.dir} does not exist or is no folder")
    stop = stop_on_signals()
    loading(sys.stderr)

    import torch

    from dtr_lightning.cli.progress_bar import Bar
    from dtr_lightning.experiment.notes import print_notes
    from dtr_lightning.metrics.adm_protocol import Activations
    from dtr_lightning.metrics.inception import InceptionFeatures
    from dtr_lightning.metrics.npz import write_archive

    batches, n = source(given.dir, given.size, given.workers)
    network = InceptionFeatures(given.weights)
    activations = Activations(network, "cuda" if torch.cuda.is_available() else "cpu")
    kept = min(n, given.images)
    with Bar("reference") as bar, write_archive(given.out) as archive:

        def count(done: int) -> None:
            bar(done, n, "reference")
            if stop.is_set():
                raise Stopped

        archive.images(spaced(batches, activations, kept, n, count), kept)
        archive.arrays(activations.statistics())
    print(f"{given.out}: {n} images, {kept} of them kept, {network.which_weights}")
    print_notes({"reference_n": n, "num_features": network.num_features})
    return 0


def source(path: str, size: int | None, workers: int) -> "tuple[Iterable[Tensor], int]":
    """Returns batches of images uint8 (n, C, H, W) of a run's training split or of a folder."""
    from dtr_lightning.config.registry import instantiate
    from dtr_lightning.data import Data, ImageFolder
    from dtr_lightning.rundir.run import Run

    if (Path(path) / "config.yaml").is_file():
        if size is not None:
            raise UserError(f"{path} is a run: its images have a size; leave --size out")
        data = instantiate(Data, Run.existing(path).config["data"])
        data.announce()
        parts = [data.image_batches("train")]
    else:
        if size is None:
            raise UserError("a folder of images needs --size, the pixels a side of your samples")
        data = ImageFolder(
            path, size, class_folders=False, split_folders=False, flip=False, workers=workers
        )
        data.patience = math.inf  # all of them count
        parts = [data.image_batches("train"), data.image_batches("val")]
    n = len(data.split("train")) + (len(data.split("val")) if len(parts) > 1 else 0)
    if len(parts) > 1:
        print(f"data: {n:,} images{data.left_out}", file=sys.stderr)
    return (images for images, _ in itertools.chain(*parts)), n


def spaced(
    batches: "Iterable[Tensor]",
    activations: "Activations",
    kept: int,
    n: int,
    count: Callable[[int], None],
) -> "Iterator[Tensor]":
    """Passes n images to activations, and yields those that are kept as RGB, evenly spaced."""
    import torch

    from dtr_lightning.metrics.adm_protocol import BATCH
    from dtr_lightning.metrics.features import rgb

    done = 0
    for images in batches:
        for part in images.split(BATCH):
            activations.update(part)
            place = torch.arange(done, done + len(part))
            number = -(-place * kept // n)  # of the first kept image from here on
            yield rgb(part[number * n // kept == place])
            done += len(part)
            count(done)


if __name__ == "__main__":
    sys.exit(main())
