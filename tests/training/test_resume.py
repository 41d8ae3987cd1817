"""Whatever keeps state of its own: stopped and resumed equals uninterrupted, bit for bit."""

import pytest
import torch
from torch.nn import functional as F

from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import Stopped
from dtr_lightning.models import DiT
from tests.conftest import ROOT, TINY
from tests.experiment.test_fit import STATE, assert_equal, train, trained

OF_DIT = ("model.hidden_size", "model.depth", "model.num_heads")
SYSTEMS = {
    "roaming": {"router": "MaxRoaming", "router.interval": 2},
    "switch": {"router": "Switch", "router.match_every": 4},
    "uw": {"loss_weight": "UW", "loss_weight.clusters": 4},
    "cuw": {"loss_weight": "CUW", "trainer.gradient_clip_val": 0.5},
    "pcgrad": {"gradients": "PCGrad", "gradients.clusters": 4, "trainer.gradient_clip_val": 0.5},
    "nash": {"gradients": "NashMTL", "gradients.clusters": 4, "gradients.update_every": 4},
    "flow": {"diffusion": "FlowMatching", "sampler": "Heun", "router": "DTR"},
    "v": {"diffusion.prediction": "v", "sampler": "DPMSolver", "loss_weight": "P2"},
    "text": {"data": "DigitsCaptions", "model": "TextDiT"},
    "dropout": {"model": "tests.training.test_resume.DroppingDiT"},
    "adm": {
        **{"model": "ADM", "model.model_channels": 32, "model.channel_mult": [1, 2]},
        **{"model.num_res_blocks": 1, "model.attention_resolutions": [2], "model.dropout": 0.5},
        "model.class_dropout_prob": 0.1,
    },
}


class DroppingDiT(DiT):
    """A DiT with dropout in what its blocks are told of the time."""

    def embed(self, t):
        return F.dropout(super().embed(t), 0.5, self.training)


@pytest.mark.parametrize("system", SYSTEMS)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, system):
    options = TINY | SYSTEMS[system]
    if system == "adm":
        options = {k: v for k, v in options.items() if k not in OF_DIT}
    config = resolve(ROOT / "configs" / "digits.yaml", options)
    results = train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", stop_at=3)
    resumed = train(config, tmp_path / "parts")
    assert [resumed[key] for key in ("score", "loss")] == [results["score"], results["loss"]]
    (a, record_a), (b, record_b) = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    for key in STATE:
        assert_equal(a[key], b[key], key)
    assert record_a == record_b
    raw, average = a["current_model_state"], a["state_dict"]
    assert any(not torch.equal(raw[key], average[key]) for key in raw)  # the average moves
