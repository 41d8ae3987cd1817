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

from analysis.measure.probe import Probe
from analysis.probes import affinity, cka
from benchmarks.settings import SETTINGS
from dtr_lightning.cli.commands import Options, command, whole
from dtr_lightning.data import Digits
from dtr_lightning.diffusion import Diffusion
from dtr_lightning.models import DiT
from dtr_lightning.objectives import Constant
from dtr_lightning.routing import DTR
from dtr_lightning.training.module import DiffusionModule


@command
def main() -> int:
    """Measures both and prints the table."""
    parser = Options(__doc__)
    parser.add_argument("--blocks", type=whole, default=4, metavar="N", help="of the DiT")
    parser.add_argument("--threads", type=whole, default=2, metavar="N", help="of the CPU")
    parser.add_argument(
        "--timesteps", type=whole, default=50, metavar="N", help="of the figures' protocols"
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
    for name, probe_figure in {"cka": cka, "affinity": affinity}.items():
        if options.only not in (None, name):
            continue
        config = probe_figure.CONFIG(timesteps=options.timesteps)
        wall, cpu = time.perf_counter(), time.process_time()
        probe = Probe.on(module, Digits(), config.images, config.seed)
        probe_figure.measure(probe, config, lambda share: None)
        taken = [f"{time.perf_counter() - wall:.1f}", f"{time.process_time() - cpu:.1f}"]
        shown.add_row(name, str(config.timesteps), str(len(probe.x0)), *taken)
    Console().print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
