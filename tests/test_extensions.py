"""A router, a loss weight, a sampler, a data set and a figure are each one file of a person's own.

The five lie in a folder outside the package, are named by their import paths alone, and go the
way of the real commands: `train.py` trains with four of them, `python -m analysis` draws the fifth.
A sixth file has images with captions, which a text-conditional network is told. To ship one of the
four takes no more than its file in the room.
"""

import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch

import dtr_lightning as dtr
import train
from analysis.__main__ import main as draw
from dtr_lightning.cli.commands import STOPS
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY

ROUTER = '''
import torch
from dtr_lightning.routing import MaskRouter

class Halves(MaskRouter):
    """Noisy tasks read the first channels, clean ones the last.

    Args:
        share: of the channels that a task reads.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def mask(self, channels: int, block: int) -> torch.Tensor:
        c, active = torch.arange(channels), int(self.share * channels)
        noisy = (torch.arange(self.tasks) >= self.tasks // 2)[:, None]
        return torch.where(noisy, c < active, c >= channels - active)
'''
LOSS_WEIGHT = '''
import torch
from dtr_lightning.objectives import LossWeight

class Scaled(LossWeight):
    """The mean loss times a number.

    Args:
        scale: the number.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, mse: torch.Tensor, vb: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.scale * (mse + vb).mean()
'''
SAMPLER = '''
import torch
from dtr_lightning.diffusion.samplers import DDIM

class Dark(DDIM):
    """DDIM whose images end black."""

    def __call__(self, *arguments, **options) -> torch.Tensor:
        return super().__call__(*arguments, **options).mul(0).sub(1)
'''
DATA = '''
import torch
from torch.utils.data import TensorDataset
from dtr_lightning.data import Data

class Bars(Data):
    """Horizontal and vertical bars.

    Args:
        n: images of a split.
        batch_size: images per step.
    """

    in_channels, image_size, num_classes, class_names = 1, 8, 2, ("horizontal", "vertical")

    def __init__(self, n: int = 40, batch_size: int = 8) -> None:
        super().__init__(batch_size, flip=False)
        rows = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
        rows[torch.arange(n), 0, torch.arange(n) % 8] = 255
        labels = torch.arange(n) // 8 % 2
        self.images = torch.where(labels[:, None, None, None] == 1, rows.transpose(2, 3), rows)
        self.labels = labels

    def split(self, name: str) -> TensorDataset:
        return TensorDataset(self.images, self.labels)
'''
CAPTIONED = '''
import torch
from torch import Tensor
from dtr_lightning.data import Captions
from mine.data import Bars

class Two(Captions):
    """Two captions of each label, as one random token."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("null", torch.zeros(1, 6), persistent=False)
        table = torch.randn(2, 2, 1, 6, generator=torch.Generator().manual_seed(0))
        self.register_buffer("table", table, persistent=False)

    def draw(self, n: int, device: torch.device) -> Tensor:
        return torch.randint(2, (n,), device=device)

    def forward(self, labels: Tensor, which: Tensor) -> Tensor:
        return self.table[labels, which % 2]

class CaptionedBars(Bars):
    """The bars, with captions."""

    def __init__(self) -> None:
        super().__init__()
        self.captions = Two()
'''
FIGURE = """
import pandas as pd
from analysis.drawing.style import Drawing, new_figure, styled

TITLE = "Last loss of every run"

def needs(runs):
    return None if runs else "no run is finished"

@styled
def draw(runs):
    losses = [run.results["loss"] for run in runs]
    figure = new_figure(3.25, 2)
    figure.subplots().plot(losses, "o")
    return Drawing(figure, pd.DataFrame({"loss": losses}))
"""
FILES = {"router": ROUTER, "loss_weight": LOSS_WEIGHT, "sampler": SAMPLER, "data": DATA}
FILES |= {"figure": FIGURE, "captioned": CAPTIONED}
ROOMS = {"router": "routing", "loss_weight": "objectives", "sampler": "diffusion.samplers"}
ROOMS |= {"data": "data"}
CHOICES = {"router": "mine.router.Halves", "router.share": 0.25}
CHOICES |= {"loss_weight": "mine.loss_weight.Scaled", "loss_weight.scale": 0.0}
CHOICES |= {"sampler": "mine.sampler.Dark", "data": "mine.data.Bars", "data.n": 48}
CHOICES |= {"features": "TimmFeatures", "features.size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A person's working directory with the five files in it, and nothing else of theirs."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "mine").mkdir()
    for name, text in FILES.items():
        (folder / "mine" / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield folder


@pytest.fixture(scope="module")
def trained(folder):
    """The run that `train.py` makes of the four."""
    words = [f"--{key}={value}" for key, value in (TINY | CHOICES).items()]
    handlers = [signal.getsignal(number) for number in STOPS]
    with pytest.MonkeyPatch.context() as patch:
        config = ["--config", str(ROOT / "configs" / "digits.yaml"), "--out", "runs/own"]
        patch.setattr(sys, "argv", ["train.py", *config, *words])
        try:
            assert train.main() == 0
        finally:
            for number, handler in zip(STOPS, handlers, strict=True):
                signal.signal(number, handler)
    return Run(folder / "runs" / "own")


def test_own_classes_train_together(trained):
    assert trained.results["protocol"]["sampler"] == "mine.sampler.Dark"
    config = trained.config
    for axis in ("router", "loss_weight", "sampler", "data"):
        assert config[axis]["class_path"] == CHOICES[axis]
    assert config["data"]["init_args"]["n"] == 48


def test_a_stored_run_uses_them_again(trained):
    """The masks are the router's, the classes the data's, the samples the sampler's.

    The loss weight was the own one too: of a loss of zero the network has learned nothing.
    """
    run = dtr.load(trained.path)
    table = run.router.table(0)
    assert table.shape == (1000, 16) and (table.sum(1) == 4).all()
    assert table[999, :4].all() and table[0, -4:].all()
    assert run.labels(2, ["vertical", "horizontal"]).tolist() == [1, 0]
    assert (run.sample(2) == 0).all()
    x, t = torch.ones(2, 1, 8, 8), torch.tensor([0, 999])
    assert not run.network(x, t, torch.tensor([0, 1])).any()


def test_a_file_in_a_room_is_a_choice_by_its_name(tmp_path):
    """In a process of its own, whose rooms have a second folder with one file."""
    for axis in ROOMS:
        (tmp_path / axis).mkdir()
        (tmp_path / axis / "own.py").write_text(FILES[axis])
    code = f"""
from importlib import import_module
from dtr_lightning.config.parser import AXES, valid_choices
for axis, room in {ROOMS}.items():
    import_module(f"dtr_lightning.{{room}}").__path__.append(f"{tmp_path}/{{axis}}")
for axis in {ROOMS}:
    print(*{{"Halves", "Scaled", "Dark", "Bars"}} & {{*valid_choices(AXES[axis][0])}})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["Halves", "Scaled", "Dark", "Bars"], "")


def test_own_captions_train_and_are_drawn_and_refuse_prompts_that_they_cannot_encode(folder):
    config = ROOT / "configs" / "backbones" / "text_dit.yaml"
    changes = TINY | {"data": "mine.captioned.CaptionedBars", "evaluation.every": 0}
    run = dtr.train(str(config), changes, out=folder / "runs" / "captioned")
    assert run.sample(3).shape == (3, 1, 8, 8)
    with pytest.raises(UserError, match="Two encodes no prompts; sample without them"):
        run.sample(3, prompts=["a bar"])


def test_an_own_figure_is_drawn_by_its_import_path(trained, capsys):
    assert draw([str(trained.path), "--only", "mine.figure"]) == 0
    written = trained.path / "figures" / "figure.csv"
    assert str(written) in capsys.readouterr().out
    assert pd.read_csv(written).loss[0] == pytest.approx(trained.results["loss"])
    assert written.with_suffix(".png").stat().st_size and written.with_suffix(".pdf").stat().st_size
