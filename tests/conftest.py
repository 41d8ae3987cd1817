"""What the tests share."""

import json
import os
import random
import signal
import sys
from functools import wraps
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_pdf import FigureCanvasPdf

from dtr_lightning.cli.commands import STOPS, quiet
from dtr_lightning.config.parser import resolve, valid_choices

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)
quiet()

# A run of two seconds that still does everything: evaluation on the way, EMA, checkpoints.
TINY = {
    "model.hidden_size": 16,
    "model.depth": 2,
    "model.num_heads": 2,
    "data.batch_size": 8,
    "trainer.max_steps": 6,
    "trainer.log_every_n_steps": 4,
    "checkpoint.every": 3,
    "evaluation.n": 20,
    "evaluation.every": 3,
    "evaluation.every_n": 16,
    "sampler.steps": 3,
}


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where runs are trained, sampled and scored and where networks are compared with the "
        "official ones; tests of several processes stay on CPUs (default: cpu)",
    )


def pytest_configure(config):
    TINY["trainer.accelerator"] = device = config.getoption("device")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device cuda: PyTorch sees no CUDA GPU here; leave it out")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or matmuls are not repeatable
        TINY["trainer.deterministic"] = "warn"


@pytest.fixture(autouse=True)
def seeded():
    """Gives every test the same random numbers, whichever ran before it in this process."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


@pytest.fixture(scope="session")
def device(pytestconfig):
    """The device that --device names."""
    return torch.device(pytestconfig.getoption("device"))


@pytest.fixture(scope="module")
def empty_pdfs():
    """Writes no PDF, only its file: embedding fonts takes half the time of a figure."""
    written = FigureCanvasPdf.print_pdf

    @wraps(written)  # matplotlib reads the signature
    def touch(canvas, file, **options):
        if isinstance(file, BytesIO):  # matplotlib asks for the renderer: this draws nothing
            return written(canvas, file, **options)
        return Path(file).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasPdf, "print_pdf", touch)
        yield


@pytest.fixture
def call(monkeypatch):
    """Returns a function that runs the main of a command with arguments, in this process."""
    handlers = {number: signal.getsignal(number) for number in STOPS}

    def run(module, *arguments):
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        return module.main()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny():
    """Returns a function that resolves the tiny digits config with further options."""

    def config(**options):
        dotted = {key.replace("__", "."): value for key, value in options.items()}
        return resolve(ROOT / "configs" / "digits.yaml", TINY | dotted)

    return config


def golden(name):
    """Returns a stored reference file: an archive of arrays, or what a JSON file holds."""
    path = GOLDEN / name
    return json.loads(path.read_text()) if path.suffix == ".json" else np.load(path)


def max_relative(a, b):
    """Returns max |a - b| / max |b|."""
    a, b = (torch.as_tensor(x, dtype=torch.float64, device="cpu") for x in (a, b))
    return ((a - b).abs().max() / b.abs().max()).item()


def slow_except(values, *fast):
    """Returns the values of a parametrisation, tuples for several names: slow but those in fast."""

    def param(value):
        values = value if isinstance(value, tuple) else (value,)
        return pytest.param(*values, marks=() if value in fast else pytest.mark.slow)

    return [param(value) for value in values]


def counting_graphs(model):
    """Returns the model compiled into whole graphs, and the list that they are noted in."""
    torch.compiler.reset()  # the limit of recompilations counts those of other tests too
    graphs = []

    def count(graph, example):
        graphs.append(graph)
        return graph.forward

    return torch.compile(model, fullgraph=True, backend=count), graphs


def shipped(base):
    """Returns the choices of an axis that the package brings, without those of tests."""
    found = valid_choices(base).items()
    return {name: cls for name, cls in found if cls.__module__.startswith("dtr_lightning.")}
