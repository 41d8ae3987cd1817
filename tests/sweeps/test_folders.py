"""Laws of a folder of sweeps: all are checked before one trains; --status and --stop are of all."""

import sys
from functools import partial

import pytest

import sweep as command
from dtr_lightning.rundir.run import find_runs
from sweeps.engine import driver, recipe
from sweeps.engine.folder import Folder
from tests.sweeps import standin
from tests.sweeps.standin import counts, write

TWO = "config: base.yaml\ngrid: [{router: [NoRouting, RTR]}]"


@pytest.fixture
def sweeps(tmp_path, monkeypatch):
    """A folder `mine` of two shipped sweeps, and what sweep.py says of it with some options."""
    standin.install(monkeypatch)
    monkeypatch.setattr(recipe, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(driver, "check_sweep", partial(driver.check_sweep, train=standin.train))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shipped" / "mine"
    folder.mkdir(parents=True)
    for name in ("a.yaml", "b.yaml"):
        write(folder, TWO, name)

    def run(*options, sweep="mine"):
        monkeypatch.setattr(sys, "argv", ["sweep.py", sweep, *options])
        return command.main()

    run.folder, run.out = folder, tmp_path / "runs" / "mine"
    return run


def another(out):
    Folder(out / "b").path.mkdir(parents=True)
    (out / "b" / "sweep.yaml").write_text("study: x\nmetric: {score: minimize}\nconfig: {}\n")


MISTAKES = {
    "its YAML": (lambda out: None, "grid: []", "grid has no entries"),
    "its place": (lambda out: out.mkdir(parents=True) or (out / "b").touch(), TWO, "cannot write"),
    "another sweep": (another, TWO, "belongs to another sweep"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_last_sweep_is_told_before_the_first_trains(sweeps, mistake, capsys):
    prepare, text, says = MISTAKES[mistake]
    write(sweeps.folder, f"config: base.yaml\n{text}" if text != TWO else TWO, "b.yaml")
    prepare(sweeps.out)
    before = sorted(sweeps.out.rglob("*"))
    assert sweeps() == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1
    assert sorted(sweeps.out.rglob("*")) == before


@pytest.mark.slow
def test_a_sweep_that_is_trained_longer_already_is_told_before_another_trains(sweeps, capsys):
    assert sweeps("--set", "trainer.max_steps=20", sweep="mine/b") == 0
    capsys.readouterr()
    assert sweeps() == 2
    assert "mine/b: " in (told := capsys.readouterr().err) and "past trainer.max_steps 10" in told
    assert not (sweeps.out / "a").exists()


@pytest.mark.slow
def test_all_sweeps_of_a_folder_are_trained_shown_and_stopped(sweeps, capsys):
    assert sweeps("--status") == 2
    told = capsys.readouterr().err
    assert "none of the 2 sweeps in mine has begun" in told and told.count("\n") == 1
    assert sweeps(sweep="mine/a") == 0
    assert sweeps("--status", sweep="mine/") == 0
    told = capsys.readouterr().out
    assert "runs/mine/a: 2 done" in told and "not begun: 1 of 2 sweeps in mine/" in told
    assert sweeps() == 0
    for name in "ab":
        assert [*counts(sweeps.out / name).values()] == [(1, 1)] * 2
    capsys.readouterr()
    assert sweeps("--status") == 0
    told = capsys.readouterr().out
    assert all(f"runs/mine/{name}: 2 done" in told for name in "ab") and "not begun" not in told
    owners = [sweeps.out / name / ".owners" / "x" for name in "ab"]
    for owner in owners:
        owner.write_text("another-host")  # may live
    assert sweeps("--stop", "save") == 0
    assert capsys.readouterr().out.count("asked 1 command in runs/mine/") == 2
    assert [owner.with_suffix(".stop").read_text() for owner in owners] == ["save"] * 2


def test_out_holds_every_sweep_of_a_folder_below_its_name(sweeps, tmp_path, capsys):
    assert sweeps("--out", "place") == 0
    found = {run.path.parent for run in find_runs([tmp_path / "place"])}
    assert found == {tmp_path / "place" / "mine" / name for name in "ab"}
    assert sweeps("--status", "--out", "place") == 0
    assert capsys.readouterr().out.count(": 2 done") == 2
