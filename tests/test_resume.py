"""Whatever keeps state of its own: stopped and resumed equals uninterrupted, bit for bit."""

import pytest
import torch

from dtr_lightning.errors import Stopped
from tests.test_fit import STATE, assert_equal, train, trained

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
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_stopped_and_resumed_equals_uninterrupted(tiny, tmp_path, system):
    config = tiny(**SYSTEMS[system])
    results = train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", stop_at=3)
    assert train(config, tmp_path / "parts")["score"] == pytest.approx(
        results["score"], nan_ok=True
    )
    (a, record_a), (b, record_b) = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    for key in STATE:
        assert_equal(a[key], b[key], key)
    assert record_a == record_b
    raw, average = a["current_model_state"], a["state_dict"]
    assert any(not torch.equal(raw[key], average[key]) for key in raw)  # the average moves
