"""The shape of the code: who may import whom, and how long a file may be."""

import ast

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "dtr_lightning"
# From the bottom up: a module imports from layers below its own, or from its own folder.
LAYERS = [
    {"errors", "naming"},
    {"run", "captions", "macs", "expect"},
    {"recipes", "masks", "diffusion", "provenance", "mistakes", "commands"},
    {"tasks"},
    {"routers", "data", "samplers", "loss_weights", "gradients"},
    {"models", "metrics"},
    {"module", "pictures"},
    {"callbacks", "hparams", "ema", "evaluation", "bar", "weights"},
    {"building", "own_classes"},
    {"checks", "planning"},
    {"config"},
    {"experiment"},
    {"progress", "notes"},
    {"experts"},
    {"fit"},
    {"trained"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_dependencies_point_downwards(file):
    own = part(file)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "dtr_lightning" and len(parts) > 1 and parts[1] in RANK:
            assert parts[1] == own or RANK[parts[1]] < RANK[own], f"{own} imports {name}"
        assert parts[0] not in ("sweeps", "analysis", "optuna", "pandas"), name


@pytest.mark.parametrize("file", sorted((ROOT / "analysis").glob("*.py")), ids=lambda f: f.name)
def test_analysis_never_trains(file):
    for name in imports(file):
        assert not name.startswith(("dtr_lightning.fit", "dtr_lightning.module", "sweeps")), name


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
