"""Time of a batch of stored latents: python benchmarks/latents.py [--n 10000] [--rounds 15]

A batch of 256 random latents (8, 32, 32) in float16, as an image of 256 pixels has them, by turns
from our store with and without mirrored images, one .npy file per image, one safetensors file kept
open, and that opened for each image. Everything is in the page cache; one thread. The table gives
the median and quartiles over the rounds; the ratio is to our store with mirrored images.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.interleaved import Row, compare, machine, repeated
from dtr_lightning.cli.commands import Options, command, whole
from dtr_lightning.data.base import ResumableSampler, Split
from dtr_lightning.data.store import Manifest, StoredSplit
from dtr_lightning.data.store_writer import Part, Source, write_store
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import write_json

BATCH = 256
SHAPE = (8, 32, 32)


class Noise(Source):
    """Latents that are noise: image i is a function of i."""

    def __init__(self, n: int) -> None:
        channels, *space = SHAPE
        self.manifest = Manifest(
            codec="VAE",
            shape=(channels // 2, *space),
            image_shape=(3, 256, 256),
            train=n,
            val=1,
            mirrored=True,
            class_names=("all",),
            block=512,
        )

    def parts(self, split: Split, indices: list[Tensor]) -> Iterator[Part]:
        """Yields noise."""
        for part in indices:
            rng = np.random.default_rng(int(part[0]))
            rows = rng.standard_normal((len(part), *SHAPE), dtype=np.float32).astype(np.float16)
            yield Part(rows, rows[..., ::-1] if split == "train" else None, np.zeros(len(part)))


def rows(folder: Path, n: int) -> list[Row]:
    """Writes the layouts into a folder and returns how a batch is read from each."""
    source = Noise(n)
    split = StoredSplit(folder / "store", write_store(folder / "store", source), "train")
    files = folder / "files"
    files.mkdir()
    for i in range(n):
        np.save(files / f"{i}.npy", split.stored[i])
    archive = folder / "all.safetensors"
    save_file({"latents": np.array(split.stored)}, archive)
    kept = safe_open(archive, framework="pt").get_slice("latents")
    stream = (map(torch.from_numpy, draw) for draw in ResumableSampler(n, BATCH))

    def layout(name: str, mode: str, read: Callable[[Tensor, Tensor], Tensor]) -> Row:
        return Row(name, mode, repeated(lambda: read(*next(stream)), torch.device("cpu")))

    def opened(i: int) -> Tensor:
        with safe_open(archive, framework="pt") as file:
            return file.get_slice("latents")[i : i + 1]

    def of_files(indices: Tensor, flips: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([np.load(files / f"{i}.npy") for i in indices.tolist()]))

    def of_kept(indices: Tensor, flips: Tensor) -> Tensor:
        return torch.cat([kept[i : i + 1] for i in indices.tolist()])

    def of_opened(indices: Tensor, flips: Tensor) -> Tensor:
        return torch.cat([opened(i) for i in indices.tolist()])

    found = [
        layout("our store", "mirrored images too", lambda i, flips: split.batch(i, flips)[0]),
        layout("our store", "no mirrored images", lambda i, flips: split.batch(i)[0]),
        layout("safetensors", "kept open", of_kept),
        layout("a file per image", ".npy", of_files),
        layout(
            "safetensors", "opened per image", lambda i, f: torch.cat([*map(opened, i.tolist())])
        ),
    ]
    indices = torch.arange(BATCH)
    expected = split.batch(indices)[0]
    for read in (of_files, of_kept):
        assert torch.equal(read(indices, indices > 0), expected)
    return found


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = Options(__doc__)
    parser.add_argument("--n", type=whole, default=10_000, help="images; default: 10,000")
    parser.add_argument("--rounds", type=whole, default=15, metavar="N", help="default: 15")
    parser.add_argument("--batches", type=whole, default=5, metavar="N", help="of one turn")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to write; default: /tmp")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser.parse_args()


@command
def main() -> int:
    """Measures and prints the table."""
    options = parse()
    if options.n < BATCH:
        raise UserError(f"--n {options.n} is less than a batch; give {BATCH} or more")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = compare(rows(Path(folder), options.n), options.rounds, options.batches)
    title = f"{BATCH} latents of {SHAPE} in float16, of {options.n:,}, one thread"
    shown = Table("layout", "how", "ms/batch", "quartiles", "times ours", title=title)
    numbers = []
    for each in found:
        low, median, high = (1000 / speed for speed in reversed(each.speed))
        ratio = 1 / each.ratio.median
        quartiles = f"{low:.2f} - {high:.2f}"
        shown.add_row(each.name, each.mode, f"{median:.2f}", quartiles, f"{ratio:.2f}")
        numbers.append({"layout": each.name, "how": each.mode, "ms": median, "ratio": ratio})
    console = Console()
    about = machine(torch.device("cpu"))
    console.print(about, soft_wrap=True)
    console.print(shown)
    if options.json:
        write_json(options.json, {"machine": about, "n": options.n, "rows": numbers})
    return 0


if __name__ == "__main__":
    sys.exit(main())
