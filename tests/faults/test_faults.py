"""What a sweep survives, in short; and that the benchmark of it sees what does not survive.

`python -m pytest -m faults` makes every fault with the stand-in, which takes minutes.
"""

import itertools
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run, find_runs
from sweeps.engine import plan, recipe
from sweeps.engine.database import Database
from sweeps.engine.folder import Folder
from sweeps.engine.grace import GRACE
from sweeps.engine.study import Study
from tests.faults import campaigns as faults
from tests.faults.kills import campaign, reference
from tests.faults.mishaps import eight_starts
from tests.faults.postgres import Server
from tests.faults.verdict import equal, judge, wait_for
from tests.faults.victims import Lab
from tests.sweeps import standin
from tests.sweeps.standin import write

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sees faults in /proc")


@pytest.fixture
def light(monkeypatch):
    """Sweeps without the imports of a real config and of the figures."""
    standin.install(monkeypatch)


@linux
@pytest.mark.faults
def test_killed_twice_every_point_is_trained_once(tmp_path):
    lab = Lab(tmp_path, 6, light=True)
    tally = campaign(lab, reference(lab), 2, 0, None, 1)
    assert tally.kills == 2 and tally.caught.total() > 0
    assert tally.wrong == []
    assert tally.count("equal") == tally.count("points") >= 6


@linux
@pytest.mark.faults
def test_eight_commands_at_one_instant_make_one_plan(tmp_path):
    assert eight_starts(Lab(tmp_path, 6, light=True), tmp_path) == []


@linux
@pytest.mark.faults
def test_a_machine_that_vanishes_is_replaced_after_thirty_seconds_of_grace(tmp_path):
    """Two machines by name, whose clocks are two hours apart."""
    lab, out = Lab(tmp_path, 1, light=True), tmp_path / "out"
    path = lab.write("one", grid=[{"router": "NoRouting"}], seeds=1, smoke={"pace": 3.0})

    def start(host, clock):
        environment = {"FAULT_HOST": host, "FAULT_CLOCK": clock}
        return lab.start(out, "--grace", "30", workers=1, sweep=path, environment=environment)

    dead = start("one", "3600")
    assert wait_for(lambda: out.is_dir() and find_runs([out]), 120)
    observer = start("two", "-3600")
    (run,) = find_runs([out])
    assert wait_for(lambda: len([*(out / ".owners").iterdir()]) == 2, 120)
    assert dead.kill("group")
    died = time.monotonic()
    assert wait_for(lambda: (run.path / "starts").read_text() == "xx", 120)
    assert 20 < time.monotonic() - died < 60
    assert observer.end() == 0 and (run.path / "ends").read_text() == "x"


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_jumps_by_an_hour_changes_nothing(light, tmp_path, monkeypatch, hours):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    folder.prepare(sweep)
    living, observer = (Study(sweep, folder, name, Database(folder)) for name in ("a", "b"))
    living.host, observer.host = "one", "two"
    living.plan()
    claim = living.claim(set())
    wall, steady, jumps = time.time, 1e6, itertools.cycle([0, 3600 * hours])
    monkeypatch.setattr(time, "time", lambda: wall() + next(jumps))
    monkeypatch.setattr(time, "monotonic", lambda: steady)
    for beat in range(4):
        assert living.beat(claim.trial_id, beat)
        observer.recover()
        assert observer.open() == (4, 1)
        steady += 0.9 * GRACE
    steady += GRACE
    observer.recover()
    assert observer.open() == (5, 0)


@pytest.mark.slow
def test_the_verdict_tells_what_is_lost_done_twice_or_other(light, tmp_path):
    path, whole = write(tmp_path), tmp_path / "whole"
    standin.run(path, whole)
    assert judge(whole, None, whole, set()) == (5, 0, 0, 5, [])
    name = next(whole.glob("norouting*")).name

    def hurt(change):
        out = tmp_path / "hurt"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        change(Run(out / name))
        return judge(out, None, whole, set())

    lost = hurt(lambda run: run.results_file.unlink())
    assert (lost.lost, lost.equal) == (1, 4)
    record = {"step": standin.STEPS}
    again = hurt(lambda run: run.append_metrics(record))
    assert (again.twice, again.equal) == (1, 4)
    other = hurt(lambda run: run.write_results(run.results | {"score": 0.9999}))
    assert other.wrong == [f"{name}: results.json differs"]
    later = hurt(lambda run: run.write_results(run.results | {"seconds": 9.0}))
    assert later.wrong == []
    assert judge(whole, None, whole, {name}).twice == 1


def test_trees_are_equal_to_the_bit():
    tree = {"a": [torch.ones(2), 1], "b": (None, "x")}
    assert equal(tree, {"b": (None, "x"), "a": [torch.ones(2), 1]})
    for other in (
        {"a": [torch.ones(2) + 1e-7, 1], "b": (None, "x")},
        {"a": [torch.ones(2).double(), 1], "b": (None, "x")},
        {"a": [torch.ones(2), True], "b": (None, "x")},
        {"a": [torch.ones(2)], "b": (None, "x")},
    ):
        assert not equal(tree, other)


@pytest.fixture
def server():
    """A PostgreSQL server of this test's own."""
    try:
        with Server() as server:
            yield server
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.faults
@linux
def test_sweeps_that_begin_at_once_on_a_new_server_share_it(light, tmp_path, server):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    barrier = Barrier(8, timeout=60)

    def begin(number):
        folder = Folder(tmp_path / str(number))
        folder.prepare(sweep)
        barrier.wait()
        study = Study(sweep, folder, "me", Database(folder, server.url()))
        study.plan()
        return study.open()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(begin, range(8))) == [(5, 0)] * 8


@pytest.mark.faults
@linux
def test_a_server_that_restarts_in_the_middle_of_a_claim_gives_a_point_once(
    light, tmp_path, server
):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    folder.prepare(sweep)
    one, two = (Study(sweep, folder, name, Database(folder, server.url())) for name in "ab")
    one.plan()
    choose, claims = one._next, []

    def cut(trials):
        point = choose(trials)
        one._next = choose
        server.restart(0)
        claims.append(two.claim(set()))
        return point

    one._next = cut
    claims.append(one.claim(set()))
    assert claims[0].point.name != claims[1].point.name
    assert one.open() == (3, 2)


@pytest.mark.faults
@linux
@pytest.mark.parametrize("more", [(), ("--postgres",)])
def test_every_fault_with_the_stand_in(tmp_path, monkeypatch, more):
    file = tmp_path / "rows.json"
    options = ("--quick", "--kills", "30", "--starts", "3", "--json", str(file), *more)
    monkeypatch.setattr(sys, "argv", ["tests/faults/campaigns.py", *options])
    assert faults.main() == 0
    rows = json.loads(file.read_text())["rows"]
    assert rows[0]["times"] == 30 and not any(row["wrong"] for row in rows)
