"""From Python: a run is trained, loaded, sampled from and tabled as the commands do it."""

import logging

import pytest
import torch

import dtr_lightning as dtr
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import fit
from tests.conftest import ROOT, TINY

DIGITS = ROOT / "configs" / "digits.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for alpha in (4, 1):
        options = TINY | {"router": "DTR", "router.alpha": alpha}
        dtr.train(DIGITS, options, folder / f"alpha{alpha}")
    return folder


def test_samples_follow_seed_and_class_and_are_those_of_the_run(trained):
    run = dtr.load(trained / "alpha4")
    images = run.sample(6, classes=[3, "7"], guidance=2.0)
    assert images.shape == (6, 1, 8, 8) and images.dtype == torch.uint8
    assert run.labels(6, [3, "7"]).tolist() == [3, 7] * 3
    assert torch.equal(images[:2], run.sample(2, classes=[3, 7], guidance=2.0))
    assert not torch.equal(images, run.sample(6, classes=[3, 7], guidance=2.0, seed=1))
    stored = run.sample(4)  # the run's own protocol draws the classes in their proportions
    assert torch.equal(stored, run.sample(4, classes=range(10), seed=0))


def test_network_and_router_are_those_that_were_trained(trained):
    run = dtr.load(trained / "alpha4")
    table = run.router.table(0)
    assert torch.equal(table, dtr.masks.dtr(1000, table.shape[1], 4.0, 0.8))
    with torch.no_grad():
        output = run.network(torch.zeros(2, 1, 8, 8), torch.tensor([0, 999]), torch.tensor([1, 2]))
    assert output.shape == (2, 2, 8, 8) and not run.network.training
    assert run.config["router"]["init_args"]["alpha"] == 4
    assert run.metrics()["step"].max() == 6
    assert (
        run.results["score"]
        == dtr.runs(trained).to_frame().set_index("run").score[str(trained / "alpha4")]
    )


def test_a_table_has_a_row_per_run_with_options_and_scores(trained):
    frame = dtr.runs(trained).to_frame()
    assert len(dtr.runs(trained)) == len(frame) == 2
    assert sorted(frame["router.alpha"]) == [1, 4] and set(frame.status) == {"done"}
    assert frame.score.notna().all()


def test_a_notebook_shows_which_runs_an_object_holds(trained):
    first, second = (str(trained / name) for name in ("alpha1", "alpha4"))
    assert repr(dtr.load(first)) == f"StoredRun({first!r})"
    runs = dtr.runs(trained)
    assert repr(runs) == f"<RunList of 2 runs: {first}, {second}>"
    assert repr(runs[:1]) == f"<RunList of 1 run: {first}>" and repr(runs[0]) == f"Run({first!r})"


def test_lightning_is_as_quiet_as_in_the_commands(trained, monkeypatch):
    speaker, levels = logging.getLogger("lightning.pytorch.utilities.rank_zero"), []
    monkeypatch.setattr(fit, "run", lambda *_: levels.append(speaker.level))
    speaker.setLevel(logging.INFO)
    dtr.train(DIGITS, TINY, trained / "alpha4")
    speaker.setLevel(logging.INFO)
    dtr.load(trained / "alpha4")
    assert [*levels, speaker.level] == [logging.WARNING] * 2


def test_a_run_that_is_done_is_not_trained_again(trained, monkeypatch):
    monkeypatch.setattr(fit, "_train", lambda *_: pytest.fail("trained again"))
    options = TINY | {"router": "DTR", "router.alpha": 4}
    assert dtr.train(DIGITS, options, trained / "alpha4").results["steps"] == 6


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda run: run.sample(0), "n must be at least 1"),
        (lambda run: run.sample(2, classes=[10]), "unknown class '10'; valid: 0 to 9"),
        (lambda run: run.sample(2, guidance=-1.0), "guidance must be 0 or more"),
        (lambda run: dtr.load(run.files.path.parent), "is not a run directory"),
        (lambda run: dtr.runs("nowhere"), "nowhere is not a directory"),
    ],
)
def test_a_mistake_is_a_user_error(trained, ask, says):
    with pytest.raises(UserError, match=says):
        ask(dtr.load(trained / "alpha4"))
