"""A person's own class that gives something else than expected is one line before training."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from dtr_lightning.data import Digits
from dtr_lightning.data.codec import Pixels
from dtr_lightning.diffusion.samplers import DDIM
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import run
from dtr_lightning.experiment.load import TrainedRun
from dtr_lightning.metrics import DigitsFeatures
from dtr_lightning.models import DiT
from dtr_lightning.objectives import Constant, PCGrad
from dtr_lightning.routing import MaskRouter, NoRouting
from dtr_lightning.rundir.run import Run

MASKS = {
    "an array": lambda t, c: np.ones((t, c), dtype=bool),
    "None": lambda t, c: None,
    "floats": torch.ones,
    "integers": lambda t, c: torch.ones(t, c, dtype=torch.long),
    "channels first": lambda t, c: torch.ones(c, t, dtype=torch.bool),
    "other tasks": lambda t, c: torch.ones(t - 1, c, dtype=torch.bool),
    "one row": lambda t, c: torch.ones(c, dtype=torch.bool),
    "an empty row": lambda t, c: torch.arange(t)[:, None].expand(t, c) != 7,
}
SPLITS = {
    "float images": lambda x, y: (x / 255, y),
    "channels last": lambda x, y: (x.permute(0, 2, 3, 1), y),
    "another size": lambda x, y: (x[..., :6, :6], y),
    "labels from 1": lambda x, y: (x, y + 1),
    "negative labels": lambda x, y: (x, y - 1),
    "float labels": lambda x, y: (x, y.float()),
}


class OwnMask(MaskRouter):
    how = "floats"

    def mask(self, channels, block):
        return MASKS[self.how](self.tasks, channels)


class OwnRoutes(NoRouting):
    def forward(self, t, emb):
        return super().forward(t, emb)[1:]


class OwnPenalty(NoRouting):
    def penalty(self, t, embed):
        return torch.zeros(len(t))


class OwnWeight(Constant):
    def forward(self, mse, vb, t):
        return mse + vb


class OwnTimes(Constant):
    def timesteps(self, n, device):
        return torch.zeros(n + 1, dtype=torch.long)


class OwnNumber(Constant):
    def forward(self, mse, vb, t):
        return 0.5


class OwnModel(DiT):
    def forward(self, x, t, y):
        return super().forward(x, t, y)[:, :1]


class OwnFeatures(DigitsFeatures):
    def forward(self, images):
        return super().forward(images)[:, :3]


class OwnSampler(DDIM):
    def __call__(self, *arguments, **options):
        return super().__call__(*arguments, **options)[:1]


class OwnRule(PCGrad):
    def merge(self, grads, step):
        return grads


class OwnData(Digits):
    how, by_item = "float images", False

    def split(self, name):
        split = TensorDataset(*SPLITS[self.how](*super().split(name).tensors))
        return list(split) if self.by_item else split


class Inverted(Pixels):
    """Black for white: what it decodes tells it from pixels."""

    def __init__(self, top=255):
        self.top = top

    def arguments(self):
        return {"top": self.top}

    def sample(self, stored, randn):
        return self.mean(stored)

    def mean(self, stored):
        return super().mean(self.top - stored)

    def decode(self, x, precision="float32"):
        return self.top - super().decode(x)


class OwnCodec(Digits):
    codec = Inverted()


class NoClasses(Digits):
    class_names = ("one",)


class OwnNumpy(NoRouting):
    def forward(self, t, emb):
        mean = float(t.cpu().numpy().mean())
        return [lambda x: x * (1 + 0 * mean)] * self.blocks


def check(config, axis, cls):
    choice = {"class_path": f"{__name__}.{cls.__name__}", "init_args": config[axis]["init_args"]}
    Experiment(config | {axis: choice}).check()


@pytest.mark.parametrize("how", MASKS)
def test_a_mask_that_is_no_table(tiny, monkeypatch, how):
    monkeypatch.setattr(OwnMask, "how", how)
    with pytest.raises(
        UserError, match=r"^OwnMask\.mask (gives|leaves task 7 no channel).*expected"
    ):
        check(tiny(), "router", OwnMask)


@pytest.mark.parametrize("by_item", [False, True])
@pytest.mark.parametrize("how", SPLITS)
def test_data_of_another_kind(tiny, monkeypatch, how, by_item):
    monkeypatch.setattr(OwnData, "how", how)
    monkeypatch.setattr(OwnData, "by_item", by_item)
    with pytest.raises(UserError, match=r"^OwnData\.split\('train'\).*expected"):
        check(tiny(), "data", OwnData)


@pytest.mark.parametrize(
    ("axis", "cls", "message"),
    [
        ("router", OwnRoutes, "OwnRoutes.forward gives 1 routes for 2 blocks"),
        ("router", OwnPenalty, "OwnPenalty.penalty gives float32 of shape"),
        ("loss_weight", OwnWeight, "OwnWeight.forward gives float32 of shape"),
        ("loss_weight", OwnTimes, "OwnTimes.timesteps gives int64 of shape"),
        ("loss_weight", OwnNumber, "OwnNumber.forward gives float; expected a float tensor"),
        ("model", OwnModel, "OwnModel.forward gives float32 of shape"),
        ("features", OwnFeatures, "OwnFeatures.forward gives float32 of shape"),
        ("sampler", OwnSampler, "OwnSampler gives float32 of shape"),
        ("gradients", OwnRule, "OwnRule.merge gives float32 of shape"),
        ("data", NoClasses, "NoClasses has 1 class_names for 10 num_classes"),
    ],
)
def test_a_class_that_gives_something_else(tiny, axis, cls, message):
    with pytest.raises(UserError) as error:
        check(tiny(), axis, cls)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_stored_run_decodes_by_the_codec_that_it_was_trained_with(tiny, tmp_path):
    config = tiny(trainer__max_steps=2)
    config["data"]["class_path"] = f"{__name__}.OwnCodec"
    run(config, tmp_path / "run")
    codec = TrainedRun(Run(tmp_path / "run"), config).experiment.data.codec
    assert type(codec) is Inverted
    assert codec.arguments() == {"top": 255}
    assert codec.decode(torch.full((1, 1, 8, 8), 1.0)).unique().tolist() == [0]


def test_what_cannot_be_counted_is_no_end_of_a_run(tiny):
    choice = {"class_path": f"{__name__}.OwnNumpy", "init_args": {}}
    assert Experiment(tiny() | {"router": choice}).macs() is None


def test_an_own_class_that_fits_is_taken_and_a_bug_in_one_keeps_its_traceback(tiny, monkeypatch):
    monkeypatch.setitem(MASKS, "sound", lambda t, c: torch.ones(t, c, dtype=torch.bool))
    monkeypatch.setattr(OwnMask, "how", "sound")
    check(tiny(), "router", OwnMask)
    monkeypatch.setitem(MASKS, "sound", lambda t, c: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        check(tiny(), "router", OwnMask)
