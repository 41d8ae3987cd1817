"""Laws of a sweep: every point exactly one result, whatever dies, however many commands work."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run, find_runs
from sweeps.engine import session as session_module
from sweeps.engine.session import Session
from sweeps.engine.workers import Workers
from tests.sweeps import standin
from tests.sweeps.standin import GRID, counts, run, trials, write

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def light(monkeypatch):
    """Sweeps without the imports of a real config and of the figures."""
    standin.install(monkeypatch)


def test_again_trains_nothing_and_starts_no_process(light, tmp_path, monkeypatch):
    path, out = write(tmp_path), tmp_path / "out"
    first, text = run(path, out)
    assert text.count("NoRouting seed=0: score") == 1
    assert "[5/5]" in text
    assert repr(first) == f"<Outcome in {out}: 5 runs, 0 failed>"
    monkeypatch.setattr(Workers, "warm", lambda self: pytest.fail("a server was started"))
    monkeypatch.setattr(Workers, "start", lambda *_: pytest.fail("a trial was started"))
    second, _ = run(path, out)
    assert first == second
    assert set(counts(out).values()) == {(1, 1)}


def test_a_lost_study_is_made_again_from_the_runs(light, tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    first, _ = run(path, out)
    for file in out.glob("study.db*"):
        file.unlink()
    second, _ = run(path, out)
    assert first == second
    assert set(counts(out).values()) == {(1, 1)}
    assert [trial.value for trial in trials(out)] == [r["score"] for r in first.results.values()]


def test_a_point_whose_results_are_gone_is_trained_again(light, tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    first, _ = run(path, out)
    name = next(iter(first.results))
    Run(out / name).results_file.unlink()
    second, text = run(path, out)
    assert "its results are gone: it goes on" in text
    assert first == second
    assert sorted(counts(out).values()) == [(1, 1)] * 4 + [(2, 2)]


def test_a_signal_that_comes_twice_at_once_counts_once(monkeypatch):
    session = Session.__new__(Session)
    session.interrupts, now = 0, iter([100.0, 100.1, 102.0])
    monkeypatch.setattr(session_module.time, "monotonic", lambda: next(now))
    with session._interruptible():
        for expected in (1, 1, 2):
            signal.raise_signal(signal.SIGTERM)
            assert session.interrupts == expected


@pytest.mark.slow
def test_a_failing_trial_does_not_stop_the_others_and_is_tried_again_on_demand(light, tmp_path):
    text = "config: b\ngrid: [{router: [Raises, NoRouting, Diverges, Exits]}]"
    path, out = write(tmp_path, text), tmp_path / "out"
    outcome, printed = run(path, out)
    failed = {name.split("-")[0]: reason for name, reason in outcome.failed.items()}
    assert failed == {
        "raises": "ValueError: no such luck",
        "diverges": "diverged: score is nan",
    }
    assert "exit 3" in printed  # its process ended in silence, and it was tried once more
    assert len(outcome.results) == 3
    assert "Traceback" in next((out / "logs").glob("raises*")).read_text()
    again, printed = run(path, out)
    assert again.failed == outcome.failed
    run(path, out, retry_failed=True)
    starts = {name.split("-")[0]: n for name, (n, _) in counts(out).items()}
    assert starts == {"raises": 2, "norouting": 1, "diverges": 1, "exits": 2}


def test_another_sweep_is_refused(light, tmp_path):
    out = tmp_path / "out"
    run(write(tmp_path), out)
    for change, says in (
        ("metric: loss", "metric is {'score': 'minimize'} there and {'loss': 'minimize'} here"),
        ("smoke: {pace: 0.001}", "pace is 0.0 there and 0.001 here"),
    ):
        path = write(tmp_path, standin.GRID + change)
        with pytest.raises(UserError, match=says):
            run(path, out, smoke=True)
    with pytest.raises(UserError, match="name is 'sweep' there and 'other' here"):
        run(write(tmp_path, name="other.yaml"), out)
    (out / "sweep.yaml").write_text("[")
    with pytest.raises(UserError, match="damaged"):
        run(write(tmp_path), out)


def test_bad_places_are_one_line(light, tmp_path):
    path = write(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        run(path, tmp_path / "file" / "out")
    for url in ("nonsense", "sqlite:////no/such/folder/a.db", f"sqlite:///{path}", "mysql://a:b@c"):
        with pytest.raises(
            UserError, match=r"the database .* (cannot be used|needs a file)"
        ) as caught:
            run(path, tmp_path / "out", storage=url)
        assert "\n" not in str(caught.value)
        assert ":b@" not in str(caught.value)
    with pytest.raises(UserError, match="--workers must be"):
        run(path, tmp_path / "out", workers=0)


def spawn(path, out, pace):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sweeps.standin", str(path), str(out), str(pace)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def under_way(out):
    """Whether a run has begun and is far from done."""
    return out.is_dir() and any(2 <= len(run.metrics()) <= 5 for run in find_runs([out]))


@pytest.mark.slow
def test_killed_and_started_again_every_point_has_one_result(tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    process = spawn(path, out, 0.03)
    wait_for(lambda: under_way(out))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(run.in_use() for run in find_runs([out])), 5)  # orphans die
    text = spawn(path, out, 0.03).communicate()[0]
    assert "ended 5" in text
    assert {ends for _, ends in counts(out).values()} == {1}
    assert max(starts for starts, _ in counts(out).values()) == 2
    for found in find_runs([out]):
        assert [record["step"] for record in found.metrics()] == list(range(1, standin.STEPS + 1))


@pytest.mark.slow
def test_ctrl_c_saves_gives_back_and_two_commands_share_the_rest(tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    process = spawn(path, out, 0.03)
    wait_for(lambda: under_way(out))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole group
    text = process.communicate()[0]
    assert "state saved" in text
    assert re.search("^stopped", text, re.M)
    assert not any(trial.state == optuna.trial.TrialState.RUNNING for trial in trials(out))
    assert len(trials(out)) == 2  # a point has a trial from when it is taken
    both = [spawn(path, out, 0.03) for _ in range(2)]
    for process in both:
        assert "ended 5" in process.communicate()[0]
    assert {ends for _, ends in counts(out).values()} == {1}
    assert len(trials(out)) == 5


@pytest.mark.parametrize("smoke", [True, False])
def test_the_runs_of_a_smoke_say_so(smoke, light, tmp_path):
    out = tmp_path / "out"
    two = GRID.replace("[1, 4.0]", "1").replace("[0.6, 0.8]", "0.8")
    run(write(tmp_path, two), out, smoke=smoke)
    assert [found.meta.get("smoke", False) for found in find_runs([out])] == [smoke] * 2


@pytest.mark.slow
def test_a_finished_sweep_is_trained_longer_and_never_shorter(light, tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    first, _ = run(path, out)
    longer, _ = run(path, out, options=["trainer.max_steps=20"])
    assert first.results.keys() == longer.results.keys() and not longer.failed
    assert set(counts(out).values()) == {(2, 2)}
    for name, results in longer.results.items():
        steps = [record["step"] for record in Run(out / name).metrics()]
        assert steps == [*range(1, 21)] and results["steps"] == 20
        kept = json.loads((out / name / "artifacts/evaluations/step=10.json").read_text())
        assert kept == first.results[name]
    again, _ = run(path, out, options=["trainer.max_steps=20"])
    assert again.results == longer.results and set(counts(out).values()) == {(2, 2)}
    with pytest.raises(UserError, match=r"is at step 20 already, past trainer\.max_steps 10"):
        run(path, out)
