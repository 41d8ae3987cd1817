"""Time and memory of the metrics: python benchmarks/metrics.py [--n 10000] [--features 2048]

Precision and recall (k = 3) of n random features against n others, and the Frechet distance of two
covariances, each once. Memory is what the process grows by at its peak.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dtr_lightning.commands import Options, command
from dtr_lightning.errors import UserError
from dtr_lightning.metrics import frechet_distance, precision_recall
from dtr_lightning.run import to_json


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


@command
def main() -> int:
    """Measures and prints a line of JSON for each."""
    parser = Options(__doc__)
    parser.add_argument("--n", type=int, default=10_000, help="images of either side")
    parser.add_argument("--features", type=int, default=2048, help="features of an image")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    given = parser.parse_args()
    if given.n < 4 or given.features < 1 or given.threads < 1:
        raise UserError("--n must be at least 4, --features and --threads at least 1")
    torch.set_num_threads(given.threads)
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
