"""Memory of a training step, counted without a GPU: python benchmarks/memory.py

One GPU's share of the paper's batch, 256 on eight. Nothing is computed: the networks are built on
the meta device. The numbers leave out what is held for an instant (the largest gradient), the
library's workspace and the fragments of its allocator: allow 2 GiB for them.
"""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.counts import ADM_64, DIT
from dtr_lightning.cli.commands import Options, command, whole
from dtr_lightning.errors import choices
from dtr_lightning.models import ADM, TextDiT
from dtr_lightning.routing import DTR
from dtr_lightning.training.memory import StepMemory, step_memory

GIB = 2**30
NETWORKS = {f"{name}/2": partial(cls, patch_size=2) for name, cls in DIT.items()}
NETWORKS["ADM-64"] = partial(ADM, **ADM_64 | {"class_dropout_prob": 0.1})
NETWORKS["TextDiT-B/2"] = partial(TextDiT, null_text=torch.empty(77, 768, device="meta"))
PARTS = ["weights", "gradients", "moments", "average", "activations", "total"]


class Row(NamedTuple):
    """A network, whether its blocks are computed again in the backward pass, and its memory."""

    model: str
    checkpoint: bool
    memory: StepMemory


def rows(names: list[str], batch: int, precision: str) -> list[Row]:
    """Returns the memory of each network with DTR, with and without activation checkpointing."""
    found = []
    for name in names:
        for checkpoint in (False, True):
            with torch.device("meta"):
                model = NETWORKS[name](router=DTR(), use_checkpoint=checkpoint)
                size = (3, 64, 64) if name == "ADM-64" else (4, 32, 32)
                x, t = torch.empty(batch, *size), torch.zeros(batch, dtype=torch.long)
                y = torch.empty(batch, 77, 768) if model.takes_text else t
            found.append(Row(name, checkpoint, step_memory(model, (x, t, y), precision)))
    return found


@command
def main() -> int:
    """Counts and prints the table, in GiB."""
    parser = Options(__doc__)
    add = parser.add_argument
    names = list(NETWORKS)
    add("--models", nargs="+", default=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--batch", type=whole, default=32, metavar="N", help="images of one GPU at a time")
    add("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    options = parser.parse_args()
    for name in options.models:
        if name not in NETWORKS:
            raise choices("model", name, names)
    about = f"GiB on one GPU: batch {options.batch}, {options.precision}, DTR; counted"
    table = Table(caption=about, caption_justify="left", box=None)
    table.add_column("model", no_wrap=True)
    table.add_column("checkpointing", no_wrap=True)
    for part in PARTS:
        table.add_column(part, justify="right")
    for row in rows(options.models, options.batch, options.precision):
        sizes = [f"{getattr(row.memory, part) / GIB:.1f}" for part in PARTS]
        table.add_row(row.model, "yes" if row.checkpoint else "no", *sizes)
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
