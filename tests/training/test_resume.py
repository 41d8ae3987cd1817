"""Whatever keeps state of its own: stopped and resumed equals uninterrupted, bit for bit."""

import pytest
import torch
from torch.nn import functional as F

from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import Stopped
from dtr_lightning.experiment.fit import read_checkpoint, run
from dtr_lightning.models import DiT
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY, slow_except
from tests.experiment.test_fit import STATE, assert_equal, train, trained
from tests.two_ranks import Later

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


@pytest.mark.parametrize("system", slow_except(SYSTEMS, "dropout"))
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with masks that change: its config, directory and results."""
    config = resolve(ROOT / "configs" / "digits.yaml", TINY | SYSTEMS["roaming"])
    path = tmp_path_factory.mktemp("whole")
    return config, path, train(config, path)


@pytest.mark.parametrize(("question", "step"), slow_except([(4, 3), (10, 6), (14, 6)], (10, 6)))
@pytest.mark.slow
def test_an_evaluation_that_was_stopped_is_made_up_for(whole, tmp_path, question, step):
    """Asked after every step and 3 times an evaluation: those on the way begin at 3 and 9."""
    config, path, results = whole
    with pytest.raises(Stopped):
        run(config, tmp_path, stop=Later(question))
    parts = Run(tmp_path)
    stopped = read_checkpoint(parts.last)
    assert stopped["global_step"] == step and parts.meta["status"] == "stopped"
    missing = stopped["callbacks"]["PeriodicEvaluation"]["missing"]
    assert missing is (question != 14)  # the 14th is in the final evaluation
    evaluated = [record["step"] for record in parts.metrics() if "val/loss" in record]
    assert (step in evaluated) is (question == 14)
    timed = {"seconds", "steps_per_second"}
    for _ in range(2):  # a run that ended after it had made up for it does not record it twice
        resumed = train(config, tmp_path)
        assert {k: resumed[k] for k in resumed.keys() - timed} == {
            k: results[k] for k in results.keys() - timed
        }
        (a, record_a), (b, record_b) = trained(path), trained(tmp_path)
        for key in STATE:
            assert_equal(a[key], b[key], key)
        assert record_a == record_b
        parts.results_file.unlink()
