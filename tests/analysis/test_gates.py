"""The gates of Switch are those of the trained network."""

import shutil

import pytest
import torch

from analysis.probes import gates
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import fit
from dtr_lightning.experiment.load import TrainedRun
from dtr_lightning.rundir.run import Run
from tests.analysis.synthetic_runs import finished, make_run
from tests.conftest import ROOT, TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("switch")
    options = {**TINY, "trainer.max_steps": 3, "evaluation.every": 0, "router": "Switch"}
    fit.run(resolve(ROOT / "configs" / "digits.yaml", options), root / "a")
    return root


def test_gates_are_softmax_of_the_network_and_the_matched_prior(trained):
    runs = finished(trained)
    assert gates.needs(runs) is None
    figure, numbers, note = gates.draw(runs)[:3]
    assert note == "" and len(figure.axes) == 2 + 3
    network = TrainedRun(Run(trained / "a"), Run(trained / "a").config).module.model
    router, t = network.router, torch.arange(0, 1000, 20)
    with torch.no_grad():
        emb = network.embed(t)
        p = torch.stack([part.f_gate(emb).softmax(-1) for part in router.routers], 1)
    assert numbers.p.to_numpy() == pytest.approx(p.flatten().numpy(), abs=1e-6)
    selected = numbers.selected.to_numpy().reshape(50, 2, 3)
    assert (selected.sum(-1) == 2).all() and (selected.argmin(-1) == p.argmin(-1).numpy()).all()
    prior = router.prior[t].int().numpy()
    assert (numbers.prior.to_numpy().reshape(50, 6) == prior).all()
    matched = prior[:, router.assignment.numpy()]
    assert (numbers.matched.to_numpy().reshape(50, 6) == matched).all()
    assert numbers.differ_matched.iloc[0] <= numbers.differ_before.iloc[0]


def test_what_cannot_be_loaded_is_told(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    Run(tmp_path / "runs" / "a").last.write_bytes(b"torn")
    runs = finished(tmp_path)
    assert gates.needs(runs) is None  # nothing is loaded to say so
    with pytest.raises(UserError, match=r"gates: nothing to draw: left out Switch .* truncated"):
        gates.draw(runs)


def test_a_run_of_switch_with_its_checkpoint_is_needed(tmp_path):
    run = make_run(tmp_path / "a", "Switch", {"experts": 3, "k": 2, "alpha": 4.0})
    assert "its checkpoint" in gates.needs(finished(tmp_path))
    run.last.touch()
    assert gates.needs(finished(tmp_path)) is None
