"""The shape of the code: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys

import pytest

from analysis.catalog import FIGURES
from tests.conftest import ROOT

# From the bottom up: a room imports from the floors below its own, and from itself.
FLOORS = [
    {"errors"},
    {"expect", "seeds", "cli", "rundir"},
    {"routing", "diffusion"},
    {"data", "models", "objectives"},
    {"metrics", "training"},
    {"config"},
    {"checkpoints"},
    {"experiment"},
]
OTHER_NAMES = {"masks", "routers", "loss_weights"}  # of routing and objectives, for old imports
ANALYSIS = [
    {"read"},
    {"tables", "measure"},
    {"drawing"},
    {"figures"},
    {"probes"},
    {"catalog"},
    {"report", "findings"},
    {"draw"},
    {"__main__"},
]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def private_parts_of_torch(source):
    """Yields each use of what torch documents nowhere: names with `_`, operators, mkldnn."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            first, *rest = name.removesuffix(".__version__").split(".")
            if first == "torch" and any(p[:1] == "_" or p in ("ops", "mkldnn") for p in rest):
                yield name


HOUSES = {"dtr_lightning": FLOORS, "analysis": ANALYSIS}
FILES = [
    file
    for house in HOUSES
    for file in sorted((ROOT / house).rglob("*.py"))
    if file != ROOT / house / "__init__.py" and file.stem not in OTHER_NAMES - {"masks"}
]
FILES.remove(ROOT / "dtr_lightning" / "masks.py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_room_imports_from_its_own_floor_or_above(file):
    house, room = file.relative_to(ROOT).parts[:2]
    room = room.removesuffix(".py")
    floor = {name: i for i, names in enumerate(HOUSES[house]) for name in names}
    for name in imports(file):
        first, *rest = name.split(".")
        if first == house and rest:
            assert rest[0] not in OTHER_NAMES, name
            if rest[0] in floor:
                assert rest[0] == room or floor[rest[0]] < floor[room], f"{room} imports {name}"
        if house == "dtr_lightning":
            allowed = {"pandas"} if file.stem == "api" else set()  # imported where it is asked for
            assert first not in {"sweeps", "analysis", "optuna", "pandas"} - allowed, name
        else:
            assert not name.startswith(("sweeps", "optuna", "dtr_lightning.experiment.fit")), name


@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "make_reference"])
def test_commands_of_one_run_need_no_optuna(command):
    needed = {name.partition(".")[0] for name in imports(ROOT / f"{command}.py")}
    assert not needed & {"sweeps", "analysis", "optuna", "pandas"}


@pytest.mark.parametrize(
    ("imported", "without"),
    [
        ("dtr_lightning, dtr_lightning.errors, dtr_lightning.cli.commands", "torch pandas rich"),
        ("analysis, analysis.draw", "torch lightning timm torchmetrics optuna"),
        (", ".join(f"analysis.figures.{name}" for name in FIGURES), "lightning timm torchmetrics"),
    ],
)
def test_what_takes_seconds_to_import_is_imported_where_it_is_needed(imported, without):
    code = f"import {imported}, sys; print(*set({without.split()}) & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize(
    "file",
    sorted(
        f
        for d in ("dtr_lightning", "sweeps", "analysis", ".")
        for f in ((ROOT / d).rglob("*.py") if d != "." else ROOT.glob("*.py"))
    ),
    ids=lambda f: str(f.relative_to(ROOT)),
)
def test_files_fit_one_sitting(file):
    assert len(file.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    "source",
    [
        "torch.ops.aten.mm(a, b)",
        "torch._foreach_lerp_(a, b, 0.1)",
        "torch.backends.mkldnn.flags()",
        "from torch import _foreach_add_",
        "from torch import ops",
        "from torch._C import _nn",
        "import torch._inductor",
        "torch.nn.functional._verify_batch_size(x)",
    ],
)
def test_private_parts_of_torch_are_recognised(source):
    assert list(private_parts_of_torch(source))


@pytest.mark.parametrize("folder", ["dtr_lightning", "analysis", "sweeps"])
def test_only_what_torch_documents_is_used(folder):
    for file in (ROOT / folder).rglob("*.py"):
        assert not list(private_parts_of_torch(file.read_text())), file
