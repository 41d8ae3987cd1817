"""Parameters, MACs, FLOPs and steps per second (Table 7): python benchmarks/cost.py

Counts take seconds, on any machine, and no memory. `--steps-per-second` also measures training
steps: the networks of one size take turns, and the ratio is to the first router in the same round;
they are in memory at once. Batch 32 is 256 on eight GPUs, which the paper presumably had.
"""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.tables.paper_rows import published
from analysis.tables.paper_tables import APART
from analysis.tables.text import Text, published_cells, write_texts
from benchmarks.counts import NETWORKS, ROUTERS, costs, network
from benchmarks.interleaved import Row, compare, repeated
from benchmarks.settings import Setting
from benchmarks.step import precision, training_step
from dtr_lightning.cli.commands import Options, command, whole
from dtr_lightning.diffusion import Diffusion
from dtr_lightning.errors import UserError, choices
from dtr_lightning.objectives import Constant
from dtr_lightning.training.module import DiffusionModule

PAPER = ["S/2", "B/2", "L/2", "XL/2"]
NAMES = {"NoRouting": "no routing", "Switch": "Switch-DiT"}
COUNTS = {
    "parameters": ("parameters (M)", 1e6, 2),
    "trained": ("trained (M)", 1e6, 2),
    "active": ("active (M)", 1e6, 2),
    "macs": ("MACs (G)", 1e9, 2),
    "one_by_one": ("MACs one by one (G)", 1e9, 2),
    "flops": ("FLOPs (G)", 1e9, 2),
    "masking": ("masking (G)", 1e9, 4),
}
TERMINAL = ["model", "router", "parameters (M)", "MACs (G)", "published GFLOPs"]
COUNTED = ["FLOPs (G)", "masking (G)"]  # on the terminal unless steps are measured
MEASURED = ["steps/s", "ratio (quartiles)", "published it/s"]
ABOUT = (
    "Ours, one sample. Parameters: stored, trained (without the fixed table of positions), active "
    "(of Switch-DiT's experts the k that are chosen). MACs: multiply-adds of matrix products and "
    "convolutions as computed here; one by one: Switch-DiT's k experts as a product each. FLOPs: "
    "2 MACs. Masking: 10^9 elementwise operations of Eq. 7, not in MACs (3 an element of DiT, of "
    "which this code does 1; 1 of ADM)"
)


def speeds(
    name: str, routers: list[str], step: Callable[[DiffusionModule], Callable[[], None]],
    compile: bool, device: torch.device, rounds: int, steps: int,
) -> pd.DataFrame:  # fmt: skip
    """Returns steps per second of a network under each router, and the ratio to the first."""
    torch.compiler.reset()
    rows = []
    for router in routers:
        torch.manual_seed(0)
        model = network(name, ROUTERS[router]())
        module = DiffusionModule(model, Diffusion(), Constant(), compile=compile).to(device)
        rows.append(Row(router, "", repeated(step(module), device)))
    found = [
        {"model": name, "router": row.name, "steps_per_second": row.speed.median}
        | {f"ratio_{part}": value for part, value in row.ratio._asdict().items()}
        for row in compare(rows, rounds, steps)
    ]
    del rows, model, module
    gc.collect()
    return pd.DataFrame(found)


def text(frame: pd.DataFrame, measured: str) -> Text:
    """Returns Table 7 as a reader sees it; counts that say nothing here are dropped."""
    entry = published()["table7"]
    columns = {"model": [*frame.model], "router": [NAMES.get(r, r) for r in frame.router]}
    same = {"active": "parameters", "one_by_one": "macs"}
    for key, (heading, unit, digits) in COUNTS.items():
        if key not in same or (frame[key] != frame[same[key]]).any():
            columns[heading] = [f"{n / unit:.{digits}f}" if n else "-" for n in frame[key]]
    if measured:
        columns["steps/s"] = [f"{x:.3g}" for x in frame.steps_per_second]
        parts = frame[["ratio_median", "ratio_low", "ratio_high"]].itertuples(index=False)
        columns["ratio (quartiles)"] = [
            f"{m:.3f} ({low:.3f} - {high:.3f})" for m, low, high in parts
        ]
    for heading in frame.columns[frame.columns.str.startswith("published ")]:
        columns[heading] = published_cells(frame[heading])
    caption = (
        f"{entry['number']}. {entry['title']}. {ABOUT}{measured}. Published: {entry['scale']}."
    )
    if measured:
        caption += f" {APART.replace('numbers', 'it/s')}"
    return Text(columns, ["model", "router"], caption)


def main_table(shown: Text) -> Table:
    """Returns what fits a terminal of 80 columns."""
    told = "MACs: what the papers call GFLOPs; --out DIR writes all columns and what they mean"
    table = Table(caption=told, caption_justify="left", box=None)
    names = [*TERMINAL, *(MEASURED if "steps/s" in shown.columns else COUNTED)]
    columns = {name: shown.columns[name] for name in names if name in shown.columns}
    for name in columns:
        words = name in shown.words
        heading = name.removesuffix(" (quartiles)")
        table.add_column(heading, justify="left" if words else "right", no_wrap=words)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(cell.split(" (")[0] for cell in row))
    return table


@command
def main() -> int:
    """Counts, measures if asked, and prints the table."""
    parser = Options(__doc__)
    valid = ", ".join(NETWORKS)
    parser.add_argument("--models", nargs="+", default=PAPER, metavar="NAME", help=f"of {valid}")
    routers = list(ROUTERS)
    parser.add_argument(
        "--routers", nargs="+", default=routers, metavar="NAME", help=f"of {', '.join(routers)}"
    )
    parser.add_argument("--steps-per-second", action="store_true", help="also measure steps")
    parser.add_argument("--rounds", type=whole, default=7, metavar="N", help="turns of each")
    parser.add_argument("--steps", type=whole, default=1, metavar="N", help="of one turn")
    parser.add_argument("--batch", type=whole, default=32, metavar="N", help="images of a step")
    parser.add_argument("--threads", type=whole, default=2, metavar="N", help="of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--bf16", action="store_true", help="steps under bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="steps under torch.compile")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write table7.csv, .md and .tex")
    options = parser.parse_args()
    for kind, given, known in (
        ("model", options.models, NETWORKS), ("router", options.routers, ROUTERS)
    ):  # fmt: skip
        for name in given:
            if name not in known:
                raise choices(kind, name, known)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; valid: cpu")
    frame, measured = costs(options.models, options.routers), ""
    if options.steps_per_second:
        device = torch.device(options.device)
        torch.set_num_threads(options.threads)
        context = precision(options.bf16, device)

        def of(name: str) -> pd.DataFrame:
            channels, size = (3, 64) if name == "ADM-64" else (4, 32)
            setting = Setting(channels, size, 1000, options.batch, options.threads, 1, {})
            routers = [*frame.router[frame.model == name]]
            return speeds(
                name, routers, lambda module: training_step(module, setting, context, device),
                options.compile, device, options.rounds, options.steps,
            )  # fmt: skip

        timed = pd.concat([of(name) for name in options.models])
        frame = frame.merge(timed, on=["model", "router"])
        named = torch.cuda.get_device_name() if options.device == "cuda" else (
            f"{options.threads} CPU threads"
        )  # fmt: skip
        how = f"{'compiled' if options.compile else 'eager'} {'bf16' if options.bf16 else 'fp32'}"
        measured = f". Steps/s: training, batch {options.batch}, {how}, {named}, median of "
        measured += (
            f"{options.rounds} interleaved rounds; ratio to {options.routers[0]} within a round"
        )
    shown = text(frame, measured)
    Console().print(main_table(shown))
    if options.out:
        texts = {"csv": frame.to_csv(index=False), "md": shown.markdown(), "tex": shown.latex()}
        write_texts(options.out, {f"table7.{end}": content for end, content in texts.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
