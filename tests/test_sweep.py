"""Laws of a sweep: every point exactly one result, whatever dies, however many commands work."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import optuna
import pytest
from rich.console import Console

import sweep as command
from dtr_lightning.errors import UserError
from dtr_lightning.run import find_runs
from sweeps import driver, plan, report
from sweeps.folder import Folder
from sweeps.study import Study
from sweeps.view import Bars
from sweeps.workers import Machine, Workers, look
from tests import standin

ROOT = Path(__file__).parent.parent
GRID = """
config: base.yaml
grid:
  - {router: NoRouting}
  - {router: DTR, router.alpha: [1, 4.0], router.beta: [0.6, 0.8]}
"""


@pytest.fixture
def light(monkeypatch):
    """Sweeps without the imports of a real config and of the figures."""
    stub = SimpleNamespace(resolve=standin.resolve)
    monkeypatch.setitem(sys.modules, "dtr_lightning.config", stub)
    monkeypatch.setattr(driver, "report", lambda *arguments: None)
    monkeypatch.setattr(driver, "look", lambda: Machine(2, ()))
    monkeypatch.setattr(driver, "LOOK", 0.1)


def write(folder, text=GRID, name="sweep.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def run(path, out, **options):
    text = StringIO()
    console = Console(file=text, width=100)
    outcome = driver.run_sweep(path, out=out, train=standin.train, console=console, **options)
    return outcome, text.getvalue()


def counts(out):
    """Returns {run name: (starts, ends)}."""
    return {
        run.path.name: tuple(
            len((run.path / name).read_text()) if (run.path / name).exists() else 0
            for name in ("starts", "ends")
        )
        for run in find_runs([out])
    }


def trials(out):
    storage = f"sqlite:///{out / 'study.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


# The plan


def test_a_grid_is_the_product_of_its_lists_for_every_seed(light, tmp_path):
    sweep = plan.resolve_all(plan.read(write(tmp_path), seeds=2))
    assert len(sweep.points) == 2 * (1 + 2 * 2)
    assert sweep.points[0].params == {"router": "NoRouting", "seed": 0}
    assert sweep.points[4].params["router.beta"] == 0.8
    assert len({point.name for point in sweep.points}) == 10
    assert [point.params["seed"] for point in sweep.points] == [0] * 5 + [1] * 5


def test_points_that_mean_the_same_are_one(light, tmp_path):
    path = write(tmp_path, "config: b\ngrid: [{router: DTR}, {router: [DTR, RTR]}]")
    assert len(plan.resolve_all(plan.read(path)).points) == 2


def test_every_shipped_sweep_resolves_and_smoke_is_shorter():
    for name in plan.names():
        whole, smoke = (plan.read(name, smoke=smoke) for smoke in (False, True))
        assert len(whole.assignments) == len(smoke.assignments)
        points = plan.resolve_all(smoke).points
        assert len(points) == len(smoke.assignments)
        whole = plan.resolve_all(whole)
        steps = [p.config["trainer"]["max_steps"] for p in (points[0], whole.points[0])]
        assert steps[0] < steps[1]


def test_alpha_beta_is_figure_4():
    points = plan.read("alpha_beta").assignments
    routers = [point["router"] for point in points]
    assert [routers.count(name) for name in ("NoRouting", "RTR", "DTR")] == [1, 2, 12]
    assert {p["router.alpha"] for p in points if p["router"] == "DTR"} == {0.5, 1, 2, 4, 6, 8}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("config: b\n\tgrid: []", "not YAML"),
        ("- a", "valid keys"),
        ("config: b\ngird: []", "unknown key .*'gird'; valid: config, grid"),
        ("config: 3\ngrid: [{a: 1}]", "config is to be"),
        ("config: b", "grid is to be a list"),
        ("config: b\ngrid: {a: 1}", "grid is to be a list"),
        ("config: b\ngrid: [3]", "entry 1 of grid"),
        ("config: b\ngrid: [{a: []}]", "a in entry 1"),
        ("config: b\ngrid: [{a: [{}]}]", "a in entry 1"),
        ("config: b\ngrid: [{seed: [1, 2]}]", "use seeds"),
        ("config: b\ngrid: [{a: 1}]\nseeds: two", "seeds is to be"),
        ("config: b\ngrid: [{a: 1}]\nseeds: 0", "seeds is to be"),
        ("config: b\ngrid: [{a: 1}]\ndirection: up", "valid: minimize, maximize"),
        ("config: b\ngrid: [{a: 1}]\nmetric: [a]", "metric is to be"),
        ("config: b\ngrid: [{a: 1}]\nsmoke: 3", "smoke is to map"),
    ],
)
def test_a_bad_yaml_is_one_line(tmp_path, text, says):
    with pytest.raises(UserError, match=says) as caught:
        plan.read(write(tmp_path, text))
    assert "\n" not in str(caught.value)


# The study


def test_planned_twice_at_once_is_planned_once(light, tmp_path):
    sweep = plan.resolve_all(plan.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")

    folder.prepare(sweep)
    started = Barrier(4)

    def work(_):
        with folder.owner() as owner:
            started.wait()
            study = Study(sweep, folder, owner)
            study.plan()
            claims = []
            while claim := study.claim():
                claims.append(claim.point.name)
            started.wait()
        return claims

    with ThreadPoolExecutor(4) as pool:
        claimed = [name for names in pool.map(work, range(4)) for name in names]
    assert sorted(claimed) == sorted(point.name for point in sweep.points)
    assert len(trials(folder.path)) == len(sweep.points)


def test_the_trial_of_a_dead_owner_waits_again_and_of_a_living_one_does_not(light, tmp_path):
    sweep = plan.resolve_all(plan.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    folder.prepare(sweep)
    with folder.owner() as owner:
        study = Study(sweep, folder, owner)
        study.plan()
        claim = study.claim()
        study.recover()
        assert study.open() == (4, 1)
    study.recover()
    assert study.open() == (5, 0)
    claim = study.claim()
    folder.run(claim.point).prepare(claim.point.config)
    with folder.run(claim.point).lock():
        study.recover()
        assert study.open() == (4, 1)
    folder.run(claim.point).write_results({"score": 3.0})
    study.recover()
    assert study.open() == (4, 0)
    assert [trial.value for trial in trials(folder.path) if trial.value] == [3.0]


def test_another_machines_trial_is_taken_over_only_without_heartbeat(light, tmp_path, monkeypatch):
    sweep = plan.resolve_all(plan.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    folder.prepare(sweep)
    study = Study(sweep, folder, "here")
    study.plan()
    claim = study.claim()
    study.storage.set_trial_user_attr(claim.trial_id, "host", "elsewhere")
    study.recover()
    assert study.open() == (4, 1)
    study.storage.grace_period = -1
    study.recover()
    study.recover()
    assert study.open() == (5, 0)


def test_a_study_knows_the_parameters_and_takes_more_points(light, tmp_path):
    out = tmp_path / "out"
    run(write(tmp_path), out)
    found = trials(out)
    assert {trial.params["router"] for trial in found} == {"NoRouting", "DTR"}
    assert {trial.params.get("router.alpha") for trial in found} == {None, 1.0, 4.0}
    more = GRID.replace("[1, 4.0]", "[1, 4.0, 8]") + "  - {router: RTR}\n"
    outcome, _ = run(write(tmp_path, more), out, seeds=2)
    assert len(outcome.results) == 16
    assert set(counts(out).values()) == {(1, 1)}


# The whole


def test_again_trains_nothing_and_starts_no_process(light, tmp_path, monkeypatch):
    path, out = write(tmp_path), tmp_path / "out"
    first, text = run(path, out)
    assert text.count("NoRouting seed=0: score") == 1
    assert "[5/5]" in text
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


def test_a_failing_trial_does_not_stop_the_others_and_is_tried_again(light, tmp_path):
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
    run(path, out)
    starts = {name.split("-")[0]: n for name, (n, _) in counts(out).items()}
    assert starts == {"raises": 2, "norouting": 1, "diverges": 1, "exits": 2}


def test_another_sweep_is_refused(light, tmp_path):
    out = tmp_path / "out"
    run(write(tmp_path), out)
    for change, says in (
        ("metric: loss", "metric is 'score' there and 'loss' here"),
        ("smoke: {pace: 0.001}", "pace is 0.0 there and 0.001 here"),
    ):
        path = write(tmp_path, GRID + change, "other.yaml")
        with pytest.raises(UserError, match=says):
            run(path, out, smoke=True)
    (out / "sweep.yaml").write_text("[")
    with pytest.raises(UserError, match="damaged"):
        run(write(tmp_path), out)


def test_bad_places_are_one_line(light, tmp_path):
    path = write(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        run(path, tmp_path / "file" / "out")
    for url in ("nonsense", "sqlite:////no/such/folder/a.db", f"sqlite:///{path}", "mysql://a:b@c"):
        with pytest.raises(UserError, match=r"the database .* cannot be used") as caught:
            run(path, tmp_path / "out", storage=url)
        assert "\n" not in str(caught.value)
        assert ":b@" not in str(caught.value)
    with pytest.raises(UserError, match="workers is to be"):
        run(path, tmp_path / "out", workers=0)


def spawn(path, out, pace):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.standin", str(path), str(out), str(pace)],
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


def test_killed_and_started_again_every_point_has_one_result(tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    process = spawn(path, out, 0.05)
    wait_for(lambda: under_way(out))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(run.in_use() for run in find_runs([out])), 5)  # orphans die
    text = spawn(path, out, 0.05).communicate()[0]
    assert "ended 5" in text
    assert {ends for _, ends in counts(out).values()} == {1}
    assert max(starts for starts, _ in counts(out).values()) == 2
    for found in find_runs([out]):
        assert [record["step"] for record in found.metrics()] == list(range(1, standin.STEPS + 1))


def test_ctrl_c_saves_gives_back_and_two_commands_share_the_rest(tmp_path):
    path, out = write(tmp_path), tmp_path / "out"
    process = spawn(path, out, 0.05)
    wait_for(lambda: under_way(out))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole group
    text = process.communicate()[0]
    assert "state saved" in text
    assert re.search("^stopped", text, re.M)
    assert not any(trial.state == optuna.trial.TrialState.RUNNING for trial in trials(out))
    assert len(trials(out)) == 5
    both = [spawn(path, out, 0.05) for _ in range(2)]
    for process in both:
        assert "ended 5" in process.communicate()[0]
    assert {ends for _, ends in counts(out).values()} == {1}
    assert len(trials(out)) == 5


# The command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["alpha_bta"], "unknown sweep 'alpha_bta'; valid: .*alpha_beta"),
        (["none.yaml"], "shipped sweeps: .*alpha_beta"),
        (["--smok"], "unrecognized arguments: --smok; valid options: .*--smoke"),
        (["--workers", "two"], "invalid int value: 'two'"),
        (["--seeds", "0"], "seeds is to be"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    assert command.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(says, printed.err)
    assert printed.err.count("\n") == 1


def test_dry_run_writes_nothing_and_knows_what_is_done(light, tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path), tmp_path / "out"
    monkeypatch.setitem(
        sys.modules, "dtr_lightning.fit", SimpleNamespace(seconds_per_step=lambda config: 6.0)
    )
    monkeypatch.setattr(report, "look", lambda: Machine(2, ()))
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(path), "--dry-run", "--out", str(out)])
    monkeypatch.chdir(tmp_path)
    assert command.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("waiting ") == 5
    assert "about 2.5 min of training with 2 workers" in " ".join(printed.split())
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.yaml"]
    run(path, out)
    before = sorted(out.rglob("*"))
    assert command.main() == 0
    assert "5 of 5 points done" in capsys.readouterr().out
    assert sorted(out.rglob("*")) == before


def test_the_report_is_drawn_once(light, tmp_path, monkeypatch):
    sweep = plan.resolve_all(plan.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    drawn = []

    def draw_all(directories):
        drawn.append(directories)
        folder.figures.mkdir(exist_ok=True)
        (folder.figures / "a.png").write_text("")
        folder.table.write_text("")

    monkeypatch.setattr("analysis.draw_all", draw_all)
    monkeypatch.setattr("analysis.tables.table", len)
    monkeypatch.setattr("analysis.tables.console_table", lambda frame: f"{frame} rows")
    results = {}
    for point in sweep.points[:2]:
        folder.run(point).prepare(point.config)
        results[point.name] = {"score": 1.0}
        folder.run(point).write_results(results[point.name])
    failed = {sweep.points[2].name: "bad [luck]"}
    for _ in range(2):
        console = Console(file=StringIO(), width=60)
        report.report(sweep, folder, results, failed, console)
        text = console.file.getvalue()
        assert "2 rows" in text
        assert "failed: DTR alpha=1 beta=0.8 seed=0: bad [luck]" in text
        assert f"tensorboard --logdir {folder.path}\n" in text
    assert drawn == [[folder.path]]


# Slots and view


def test_slots_share_the_cores_or_the_gpus(tmp_path, monkeypatch):
    workers = Workers(Folder(tmp_path))
    for machine, asked, trials_, number, threads in (
        (Machine(8, ()), None, 15, 8, 1),
        (Machine(8, ()), None, 2, 2, 4),
        (Machine(8, ()), 3, 15, 3, 2),
        (Machine(8, ("0", "1")), None, 15, 2, 4),
        (Machine(8, ("0",)), 4, 15, 4, 2),
        (Machine(2, ()), 16, 15, 15, 1),
    ):
        workers.divide(machine, asked, trials_)
        assert (workers.number, workers.threads) == (number, threads)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert look().gpus == ()


def test_a_terminal_has_a_bar_per_trial_and_the_best_so_far(light, tmp_path):
    sweep = plan.resolve_all(plan.read(write(tmp_path)))
    console = Console(file=StringIO(), force_terminal=True, width=120)
    first, second = sweep.points[:2]
    with Bars(sweep, console) as view:
        for point in (first, second):
            view.start(point)
        progress = {"stage": "train", "done": 5, "total": 10, "step": 5, "loss": 0.2, "score": 9.0}
        view.progress(first, progress)
        assert view.whole.tasks[0].completed == 0.5
        assert [task.description for task in view.trials.tasks] == [first.label, second.label]
        view.finish(first, {"score": 2.0, "loss": 0.1, "seconds": 3.0})
        view.finish(second, {"score": float("nan")})
        assert view.best == (2.0, first.label)
        assert view.whole.tasks[0].completed == 2
        assert not view.trials.tasks


def test_train_run_stops_and_returns_stored_results(tmp_path, monkeypatch):
    from dtr_lightning import fit
    from sweeps.child import train_run

    def stopped(*arguments):
        raise fit.Stopped

    monkeypatch.setattr(fit, "run", stopped)
    assert train_run({}, tmp_path, print, None) is None
    monkeypatch.setattr(fit, "run", lambda *arguments: {"score": 1.0})
    assert train_run({}, tmp_path, print, None) == {"score": 1.0}
