"""Negative transfer by score: none where the specialist is the joint model; nothing drawn twice."""

import shutil

import pandas as pd
import pytest

from analysis.probes import transfer
from analysis.read.runs import read
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import fit
from dtr_lightning.rundir.run import Run, find_runs
from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.usefixtures("empty_pdfs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("transfer")
    for name, experts in (("joint", 1), ("experts", [[0, 250], [250, 1000]])):
        options = TINY | {"trainer.max_steps": 2, "evaluation.every": 0, "experts": experts}
        fit.run(resolve(ROOT / "configs" / "digits.yaml", options), root / name)
    first = Run(root / "experts").expert((0, 250)).last
    shutil.copy(Run(root / "joint").last, first)  # the first specialist is the joint model
    return root


def finished(root):
    return read(find_runs([root])).finished


@pytest.mark.slow
def test_gaps_are_stored_and_a_range_of_the_joint_model_has_none(runs, monkeypatch):
    both = finished(runs)
    assert transfer.needs(both) is None
    table = transfer.draw(both).numbers
    assert table.t_first.tolist() == [0, 250] and table.t_last.tolist() == [249, 999]
    assert table.gap[0] == pytest.approx(0, abs=1e-4 * table.score_joint[0])
    assert table.gap[1] == table.score_joint[1] - table.score_expert[1] != 0
    joint = next(run for run in both if run.path.name == "joint")
    assert table.score_joint[0] == pytest.approx(joint.score, rel=1e-4)
    monkeypatch.setattr(transfer, "_measure", lambda *_: pytest.fail("sampled again"))
    pd.testing.assert_frame_equal(transfer.draw(both).numbers, table)
    with pytest.raises(pytest.fail.Exception):
        transfer.draw(both, transfer.TransferConfig(n=12))


@pytest.mark.slow
def test_what_is_missing_is_told(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    Run(tmp_path / "runs" / "experts").expert((250, 1000)).last.unlink()
    assert "checkpoints" in transfer.needs(finished(tmp_path))
    with pytest.raises(UserError, match="at least 2; got 1"):
        transfer.TransferConfig(n=1)
