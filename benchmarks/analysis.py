"""What CKA and task affinity cost: python benchmarks/analysis.py [--threads 2] [--blocks 4]

The protocol is the figures' own (50 timesteps, 512 digits, all blocks at once) on a DiT with random
weights: seconds on the clock and on all cores together, without starting Python and reading a run.
"""

import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis import affinity, cka
from analysis.probe import Probe
from benchmarks.settings import SETTINGS
from benchmarks.step import positive
from dtr_lightning.commands import Options, command
from dtr_lightning.data import Digits
from dtr_lightning.diffusion import Diffusion
from dtr_lightning.loss_weights import Constant
from dtr_lightning.models import DiT
from dtr_lightning.module import DiffusionModule
from dtr_lightning.routers import DTR


@command
def main() -> int:
    """Measures both and prints the table."""
    parser = Options(__doc__)
    parser.add_argument("--blocks", type=positive, default=4, metavar="N", help="of the DiT")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="of the CPU")
    parser.add_argument(
        "--timesteps", type=positive, default=50, metavar="N", help="of the figures' protocols"
    )
    parser.add_argument("--only", choices=("cka", "affinity"), help="default: both")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = DiT(**SETTINGS["digits"].model_options() | {"depth": options.blocks}, router=DTR())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    module = DiffusionModule(model, Diffusion(), Constant()).eval()
    shown = Table("figure", "timesteps", "images", "seconds", "CPU seconds")
    for figure in (cka, affinity):
        if options.only not in (None, figure.NAME):
            continue
        protocol = figure.Protocol(timesteps=options.timesteps)
        wall, cpu = time.perf_counter(), time.process_time()
        probe = Probe.on(module, Digits(), protocol.images, protocol.seed)
        figure.measure(probe, protocol, lambda share: None)
        taken = [f"{time.perf_counter() - wall:.1f}", f"{time.process_time() - cpu:.1f}"]
        shown.add_row(figure.NAME, str(protocol.timesteps), str(len(probe.x0)), *taken)
    Console().print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
