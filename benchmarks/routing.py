"""What routing costs a training step: python benchmarks/routing.py [--model S/4] [--pairs 15]

One network takes its steps by turns without and with a router, so both see the same memory; the
table gives the median and quartiles, over the pairs, of the time with the router by the time
without. The row NoRouting compares none with itself: the noise of the method. `--compile` compiles
a network for each router and compares those.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.interleaved import Spread, machine, repeated
from benchmarks.settings import DIT, Setting
from benchmarks.step import Context, precision, training_step
from dtr_lightning.cli.commands import Options, command, whole
from dtr_lightning.config.parser import valid_choices
from dtr_lightning.diffusion import Diffusion
from dtr_lightning.errors import UserError, choices
from dtr_lightning.models import DiT
from dtr_lightning.objectives import Constant
from dtr_lightning.routing import FixedMasks, NoRouting, Router
from dtr_lightning.rundir.provenance import provenance
from dtr_lightning.rundir.run import write_json
from dtr_lightning.training.module import DiffusionModule

ROUTERS = {
    name: cls
    for name, cls in valid_choices(Router).items()
    if cls is not FixedMasks and cls.__module__.startswith("dtr_lightning")
}
WARM_UP = 2


def network(setting: Setting, router: Router, compile: bool, device: torch.device) -> nn.Module:
    """Returns a module of the setting's DiT."""
    torch.manual_seed(0)
    model = DiT(**setting.model_options(), router=router)
    return DiffusionModule(model, Diffusion(), Constant(), compile=compile).to(device)


def eager(
    setting: Setting, names: list[str], context: Context, device: torch.device
) -> dict[str, Callable[[int], float]]:
    """Returns the timers of one network under every router."""
    module = network(setting, NoRouting(), False, device)
    depth, width = setting.network["depth"], setting.network["hidden_size"]

    def timer(router: Router) -> Callable[[int], float]:
        router.bind(1000, [width] * depth, width)
        router.to(device)
        module.model.router = router
        # made with its router in place: a learned one brings parameters of its own
        seconds = repeated(training_step(module, setting, context, device), device)

        def switched(steps: int) -> float:
            module.model.router = router
            return seconds(steps)

        return switched

    return {"none": timer(NoRouting())} | {name: timer(ROUTERS[name]()) for name in names}


def compiled(
    setting: Setting, names: list[str], context: Context, device: torch.device
) -> dict[str, Callable[[int], float]]:
    """Returns the timers of a compiled network for each router."""
    torch.compiler.reset()
    routers = {"none": NoRouting()} | {name: ROUTERS[name]() for name in names}
    return {
        name: repeated(
            training_step(network(setting, router, True, device), setting, context, device), device
        )
        for name, router in routers.items()
    }


def compare(
    timers: dict[str, Callable[[int], float]], pairs: int, steps: int
) -> dict[str, tuple[Spread, float]]:
    """Returns for each router the spread of its time by that without, and the median seconds."""
    for seconds in timers.values():
        seconds(WARM_UP)
    ratios: dict[str, list[float]] = {name: [] for name in timers if name != "none"}
    times: dict[str, list[float]] = {name: [] for name in timers}
    for pair in range(pairs):
        for name in ratios:
            order = ("none", name) if pair % 2 else (name, "none")
            taken = {which: timers[which](steps) / steps for which in order}
            ratios[name].append(taken[name] / taken["none"])
            times[name].append(taken[name])
            times["none"].append(taken["none"])
    return {
        name: (Spread.of(np.array(found)), float(np.median(times[name])))
        for name, found in ratios.items()
    }


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = Options(__doc__)
    parser.add_argument("--model", choices=list(DIT), default="S/4", help="default: S/4")
    parser.add_argument("--routers", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--pairs", type=whole, default=15, metavar="N", help="turns of each")
    parser.add_argument("--steps", type=whole, default=1, metavar="N", help="of one turn")
    parser.add_argument("--threads", type=whole, default=2, metavar="N", help="of the CPU")
    parser.add_argument("--compile", action="store_true", help="steps under torch.compile")
    parser.add_argument("--bf16", action="store_true", help="steps under bf16 autocast")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser.parse_args()


@command
def main() -> int:
    """Measures and prints the table."""
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; valid: cpu")
    names = options.routers or list(ROUTERS)
    for name in names:
        if name not in ROUTERS:
            raise choices("router", name, ROUTERS)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    make = compiled if options.compile else eager
    timers = make(DIT[options.model], names, precision(options.bf16, device), device)
    found = compare(timers, options.pairs, options.steps)
    mode = f"{'compiled' if options.compile else 'eager'} {'bf16' if options.bf16 else 'fp32'}"
    title = f"DiT-{options.model}, batch 32, {options.device}, {mode}, {options.pairs} pairs"
    shown = Table("router", "time by none", "quartiles", "seconds/step", title=title)
    for name, (spread, seconds) in found.items():
        quartiles = f"{spread.low:.3f} - {spread.high:.3f}"
        shown.add_row(name, f"{spread.median:.3f}", quartiles, f"{seconds:.4f}")
    console = Console()
    console.print(machine(device), soft_wrap=True)
    console.print(shown)
    if options.json:
        rows = [
            {"router": name, "seconds": seconds, "ratio": spread._asdict()}
            for name, (spread, seconds) in found.items()
        ]
        about = {"model": options.model, "batch": 32, "mode": mode, "pairs": options.pairs}
        about |= {
            "machine": machine(device),
            "steps": options.steps,
            "threads": options.threads,
            "device": options.device,
        }
        write_json(options.json, about | provenance() | {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
