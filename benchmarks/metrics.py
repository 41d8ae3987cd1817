"""Time and memory of the metrics: python benchmarks/metrics.py [--n 10000] [--features 2048]

Precision and recall (k = 3) of n random features against n others, and the Frechet distance of two
covariances, each once. Memory is what the process grows by at its peak.

`--references 1281167` instead takes that many random references, in blocks of 512 as a score does,
and shows what each metric keeps of them: the distance's sums, the rows of KID and of precision and
recall, the thumbnails for copies. As many as ImageNet has take 5 to 6 minutes of one core.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dtr_lightning.cli.commands import Options, command
from dtr_lightning.data.base import REFERENCE_BATCH
from dtr_lightning.errors import UserError
from dtr_lightning.metrics import (
    BoundedRows,
    FrechetDistance,
    KernelDistance,
    PrecisionRecall,
    frechet_distance,
    precision_recall,
)
from dtr_lightning.metrics.copies import SIDE, TRAIN
from dtr_lightning.rundir.run import to_json


def measured(function: Callable[[], object]) -> dict[str, float]:
    """Returns seconds, and GB of the process at its peak before and after a call."""
    before, began = peak(), time.perf_counter()
    function()
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_gb_before": round(before, 2),
        "peak_gb": round(peak(), 2),
    }


def peak() -> float:
    """Returns the largest memory of this process so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def take_references(n: int, features: int) -> Iterator[dict[str, Any]]:
    """Yields seconds, rows that are kept and peak memory of each metric, given n references."""
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> Tensor:
        return torch.randn(count, features, generator=generator)

    def pixels(count: int) -> Tensor:
        shape = count, 3 * SIDE**2
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    distance, kid, near = FrechetDistance(features), KernelDistance(features), PrecisionRecall()
    copies = BoundedRows(TRAIN)
    for name, take, draw, kept in (
        ("Frechet distance", lambda x: distance.update(x, real=True), rows, ()),
        ("KID", lambda x: kid.update(x, real=True), rows, kid.real_features),
        ("precision and recall", lambda x: near.update(x, real=True), rows, near.real),
        ("thumbnails", copies.update, pixels, copies),
    ):

        def stream(take: Callable = take, draw: Callable = draw) -> None:
            for first in range(0, n, REFERENCE_BATCH):
                take(draw(min(REFERENCE_BATCH, n - first)))

        row = measured(stream)
        yield {"what": name, "references": n, "rows_kept": sum(map(len, kept)), **row}


@command
def main() -> int:
    """Measures and prints a line of JSON for each."""
    parser = Options(__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="images of either side")
    parser.add_argument("--features", type=int, default=2048, help="features of an image")
    parser.add_argument("--references", type=int, help="what metrics keep of so many, instead")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    given = parser.parse_args()
    if given.n < 4 or given.features < 1 or given.threads < 1:
        raise UserError("--n must be at least 4, --features and --threads at least 1")
    torch.set_num_threads(given.threads)
    if given.references is not None:
        if given.references < 4:
            raise UserError("--references must be at least 4")
        for row in take_references(given.references, given.features):
            print(to_json(row, None), flush=True)
        return 0
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, given.n, given.features, generator=generator)
    size = {"features": given.features, "threads": given.threads}
    row = measured(lambda: precision_recall(real, fake))
    print(to_json({"what": "precision and recall", "n": given.n, **size, **row}, None), flush=True)
    moments = [m for x in (real, fake) for m in (x.mean(0).double(), torch.cov(x.T).double())]
    row = measured(lambda: frechet_distance(*moments))
    print(to_json({"what": "Frechet distance", **size, **row}, None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
