"""The shape of the code: who may import whom, and how long a file may be."""

import ast

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "dtr_lightning"
# From the bottom up: a module imports from layers below its own, or from its own folder.
LAYERS = [
    {"errors", "naming", "atomic", "yaml_values", "notes"},
    {"run", "captions", "macs", "expect"},
    {"recipes", "masks", "diffusion", "provenance", "mistakes", "commands"},
    {"tasks"},
    {"routers", "data", "samplers", "loss_weights", "gradients"},
    {"models", "metrics"},
    {"module", "pictures"},
    {"launch", "bar"},
    {"callbacks", "hparams", "ema", "evaluation", "weights"},
    {"building", "own_classes"},
    {"checks", "contents", "planning"},
    {"config"},
    {"experiment"},
    {"progress"},
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
