"""Laws of a sweep seen from outside: --status, --stop, signals."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from io import StringIO

import pytest
from rich.console import Console

from dtr_lightning.cli.commands import STOPS
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import find_runs
from sweeps.engine import status
from sweeps.engine.folder import Folder
from tests.conftest import ROOT, slow_except
from tests.sweeps import standin
from tests.sweeps.standin import counts, run, trials, write
from tests.sweeps.test_sweep import spawn, under_way, wait_for


@pytest.fixture
def light(monkeypatch):
    """Sweeps without the imports of a real config and of the figures."""
    standin.install(monkeypatch)


def seen(path, out, **reading):
    console = Console(file=StringIO(), width=100)
    status.status(path, out, None, console, **reading)
    return console.file.getvalue()


def test_status_counts_what_became_of_every_point(light, tmp_path):
    text = "config: b\ngrid: [{router: [NoRouting, Raises, Diverges, Exits]}]"
    path, out = write(tmp_path, text), tmp_path / "out"
    run(path, out)
    told = seen(path, out, seeds=2)
    assert "2 done, 4 waiting, 1 failed, 1 diverged" in told
    assert "failed   Raises seed=0: ValueError: no such luck" in told
    assert "best score 0.1: NoRouting seed=0" in told and "note:" not in told
    (best,) = (found for found in find_runs([out]) if "norouting" in found.path.name)
    best.write_results(best.results | {"smoke": True})
    told = seen(path, out, seeds=2)
    assert "note: a smoke run tests the commands" in told and "best score 0.1: NoR" not in told
    with pytest.raises(UserError, match="holds no sweep"):
        seen(path, tmp_path / "nothing")


def test_what_a_person_damaged_is_one_line(light, tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    run(path, out)
    (out / ".owners" / "folder").mkdir()
    (out / ".owners" / "binary").write_bytes(b"\xff")
    assert Folder(out).ask_to_stop(save=False) == 0
    (out / "sweep.yaml").write_text("study: 5\nmetric: {score: minimize}\nconfig: {}\n")
    with pytest.raises(UserError, match=r"sweep\.yaml is damaged"):
        seen(path, out)


def test_a_database_of_somebody_else_is_told_at_once(light, tmp_path, monkeypatch):
    path, out = write(tmp_path), tmp_path / "out"
    run(path, out)
    (out / "study.db").unlink()
    with contextlib.closing(sqlite3.connect(out / "study.db")) as connection:
        connection.execute("CREATE TABLE studies (x)")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for it"))
    with pytest.raises(UserError, match="cannot be used"):
        run(path, out)


@pytest.mark.slow
def test_status_imports_nothing_heavy(light, tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    run(path, out)
    code = (
        "import sys; from sweeps.engine.status import status; from rich.console import Console;"
        f"status({str(path)!r}, {str(out)!r}, None, Console()); print('torch' in sys.modules)"
    )
    text = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "5 done" in text.stdout, text.stderr
    assert text.stdout.endswith("False\n")


@pytest.mark.slow
def test_status_of_a_running_sweep_and_stop(tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    process = spawn(path, out, 0.25)
    wait_for(lambda: under_way(out))
    told = seen(path, out)
    assert "2 running, 3 waiting" in told
    assert "/10, " in told  # steps
    assert Folder(out).ask_to_stop(save=False) == 1
    text = process.communicate()[0]
    assert "asked to stop" in text
    assert "stopped 2" in text  # those that ran went to their end
    assert sorted(counts(out).values()) == [(1, 1), (1, 1)]
    process = spawn(path, out, 0.25)  # the request was for those that ran
    wait_for(lambda: any(len(run.metrics()) in range(1, 5) for run in standin.find_runs([out])))
    owners = out / ".owners"
    (owners / "killed").write_text(socket.gethostname())  # and nobody holds its lock
    (owners / "elsewhere").write_text("another-host")  # may live
    assert Folder(out).ask_to_stop(save=True) == 2
    assert (owners / "elsewhere.stop").is_file() and not (owners / "killed").exists()
    assert "state saved" in process.communicate()[0]
    assert sum(ends for _, ends in counts(out).values()) < 5


SENT = [(send, n) for send in (os.kill, os.killpg) for n in STOPS]


@pytest.mark.parametrize(
    ("send", "number"),
    slow_except(SENT, (os.kill, signal.SIGTERM)),
    ids=[f"{send.__name__}-{n.name}" for send, n in SENT],
)
def test_the_signal_of_a_scheduler_saves_and_gives_back(tmp_path, send, number):
    """Whether the command alone gets it or, as from `timeout`, its trials do too."""
    path, out = write(tmp_path), tmp_path / "out"
    process = spawn(path, out, 0.05)
    wait_for(lambda: under_way(out))
    send(process.pid, number)
    said = process.communicate()[0]
    assert "state saved" in said and "last checkpoint stays" not in said
    assert {trial.state.name for trial in trials(out)} == {"WAITING"}
