"""Steps per second of training, as ratios: python benchmarks/step.py [--peer DIR] [--compile]

A step is t and noise drawn, q_sample, forward, hybrid loss, backward, AdamW and the average of the
weights. Rows are interleaved; the table gives median and quartiles over the rounds, and the ratio
to the first row within each round. `--peer DIR` puts a checkout of byeongjun-park/DTR first. All
rows are in memory at once: for dit_s4 that is 0.7 GB each.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.interleaved import Row, Spread, Summary, compare, machine, repeated
from benchmarks.peer import Peer
from benchmarks.settings import SETTINGS, Setting
from dtr_lightning.cli.commands import Options, check_file, command, whole
from dtr_lightning.config.parser import resolve
from dtr_lightning.diffusion import Diffusion
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.models import DiT
from dtr_lightning.objectives import Constant
from dtr_lightning.routing import DTR, NoRouting
from dtr_lightning.rundir.provenance import provenance
from dtr_lightning.rundir.run import write_json
from dtr_lightning.training.ema import EMA
from dtr_lightning.training.memory import step_memory
from dtr_lightning.training.module import DiffusionModule

DIGITS = Path(__file__).resolve().parent.parent / "configs" / "digits.yaml"
EMA_DECAY = 0.9999
WARM_UP = 3

Context = Callable[[], AbstractContextManager]


def precision(bf16: bool, device: torch.device) -> Context:
    """Returns the forward context of Lightning's `bf16-mixed`, or of float32."""
    if bf16:
        return MixedPrecision("bf16-mixed", device.type).forward_context
    return torch.enable_grad


def our_step(
    setting: Setting, routed: bool, context: Context, compile: bool, device: torch.device
) -> Callable[[], None]:
    """Returns our step outside the Trainer."""
    router = DTR() if routed else NoRouting()
    model = DiT(**setting.model_options(), router=router)
    module = DiffusionModule(model, Diffusion(), Constant(), compile=compile).to(device)
    return training_step(module, setting, context, device)


def training_step(
    module: DiffusionModule, setting: Setting, context: Context, device: torch.device
) -> Callable[[], None]:
    """Returns one whole step of a module: loss, backward, AdamW, average of the weights."""
    batch = setting.batch(device)
    optimizer = module.configure_optimizers()
    ema = EMA(EMA_DECAY, warmup=False)
    ema.setup(None, module, "fit")
    ema.on_fit_start(None, module)

    def step() -> None:
        with context():
            loss = module.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(module)

    return step


def counted(setting: Setting, routed: bool) -> dict[str, int]:
    """Returns the parameters of our network and the bytes of its training step in float32."""
    with torch.device("meta"):
        model = DiT(**setting.model_options(), router=DTR() if routed else NoRouting())
        x = torch.empty(setting.batch_size, setting.channels, setting.size, setting.size)
        t = y = torch.zeros(setting.batch_size, dtype=torch.long)
    memory = step_memory(model, (x, t, y), "32-true").total
    return {"parameters": sum(p.numel() for p in model.parameters()), "memory": memory}


def through_trainer(name: str, device: torch.device) -> Callable[[int], float]:
    """Returns the timer of our DTR step in the Lightning Trainer, start and end of fit() apart."""
    setting = SETTINGS[name]
    config = resolve(
        DIGITS,
        {
            "router": "DTR",
            "trainer.accelerator": "gpu" if device.type == "cuda" else "cpu",
            "trainer.devices": 1,
        },
    )
    config["data"] = {"class_path": "benchmarks.settings.SameBatch", "init_args": {"setting": name}}
    config["model"] = {"class_path": "DiT", "init_args": setting.network}
    config["features"] = {"class_path": "torch.nn.Identity"}  # nothing is scored

    def seconds(steps: int) -> float:
        config["trainer"]["max_steps"] = WARM_UP + steps
        experiment = Experiment(config)
        times: list[float] = []
        clock = LambdaCallback(on_train_batch_end=lambda *_: times.append(time.perf_counter()))
        trainer = experiment.trainer([], [EMA(EMA_DECAY, warmup=False), clock])
        trainer.fit(experiment.module, datamodule=experiment.data)
        del experiment, trainer
        gc.collect()  # a trainer and its parts refer to each other
        return times[-1] - times[WARM_UP - 1]

    return seconds


def rows(
    name: str, device: torch.device, modes: list[tuple[bool, bool]], peer: Peer | None
) -> Iterator[Row]:
    """Yields the rows of a setting; modes are (compile, bf16)."""
    setting = SETTINGS[name]
    for compile, bf16 in modes:
        mode = f"{'compiled' if compile else 'eager'} {'bf16' if bf16 else 'fp32'}"
        context = precision(bf16, device)
        for label in ("DTR", "none") if peer else ("none", "DTR"):
            routed = label == "DTR"
            if peer:
                beta = 0.8 if routed else 1.0
                batch = setting.batch(device)
                step = peer.step(setting.model_options(), beta, batch, context, compile)
                yield Row(f"official {label}", mode, repeated(step, device))
            step = our_step(setting, routed, context, compile, device)
            yield Row(f"ours {label}", mode, repeated(step, device))
    yield Row("ours DTR, Trainer", "eager fp32", through_trainer(name, device))


def table(title: str, summaries: list[Summary]) -> Table:
    """Returns the printed table of a setting."""
    shown = Table(title=title, title_justify="left")
    for column in ("step", "mode"):
        shown.add_column(column)
    for column in ("steps/s", "quartiles", "ratio", "quartiles"):
        shown.add_column(column, justify="right")
    for name, mode, speed, ratio, _ in summaries:
        shown.add_row(name, mode, *_cells(speed, 1), *_cells(ratio, 2))
    return shown


def _cells(spread: Spread, digits: int) -> tuple[str, str]:
    low, median, high = (f"{value:.{digits}f}" for value in spread)
    return median, f"{low} - {high}"


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = Options(__doc__)
    names = list(SETTINGS)
    parser.add_argument("--config", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--rounds", type=whole, default=7, metavar="N", help="turns of each")
    parser.add_argument("--steps", type=whole, metavar="N", help="a round, default: 30, dit_s4 3")
    parser.add_argument("--peer", metavar="DIR", help="checkout of byeongjun-park/DTR")
    parser.add_argument("--compile", action="store_true", help="compiled rows too (minutes)")
    parser.add_argument("--bf16", action="store_true", help="rows under bf16 autocast too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser.parse_args()


@command
def main() -> int:
    """Measures every chosen setting and prints its table."""
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; valid: cpu")
    if options.json:
        check_file("--json", str(options.json), ".json")
    device = torch.device(options.device)
    peer = Peer(options.peer) if options.peer else None
    modes = [
        (compile, bf16)
        for compile in (False, True)[: 1 + options.compile]
        for bf16 in (False, True)[: 1 + options.bf16]
    ]
    console = Console()
    console.print(about := machine(device), soft_wrap=True)
    record = []
    for name in options.config:
        threads = SETTINGS[name].threads
        torch.set_num_threads(threads)
        torch.compiler.reset()  # a few models per setting stay below the limit of recompilations
        torch.manual_seed(0)
        chosen = list(rows(name, device, modes, peer))
        steps = options.steps or SETTINGS[name].steps
        summaries = compare(chosen, options.rounds, steps, WARM_UP)
        console.print(table(f"{name}, {options.device}, {threads} threads", summaries))
        record += [
            {"config": name, "threads": threads, "steps": steps, "name": s.name, "mode": s.mode}
            | {"steps_per_second": s.speed._asdict(), "ratio": s.ratio._asdict()}
            | {"ratios": s.ratios}
            | (counted(SETTINGS[name], "DTR" in s.name) if s.name.startswith("ours") else {})
            for s in summaries
        ]
    if options.json:
        stated = {"machine": about, "rounds": options.rounds, "device": options.device}
        write_json(options.json, stated | provenance() | {"rows": record})
    return 0


if __name__ == "__main__":
    sys.exit(main())
