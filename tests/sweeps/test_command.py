"""Laws of the command: one line for a mistake, a look before, slots, the view and the report."""

import re
import sys
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

import sweep as command
from sweeps.engine import outputs, plan, preview, recipe
from sweeps.engine.folder import Folder
from sweeps.engine.view import Bars
from sweeps.engine.workers import Machine, Workers, this_machine
from tests.sweeps import standin
from tests.sweeps.standin import run, write


@pytest.fixture
def light(monkeypatch):
    """Sweeps without the imports of a real config and of the figures."""
    standin.install(monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["alpha_bta"], "unknown sweep 'alpha_bta'; valid: .*alpha_beta"),
        (["none.yaml"], "shipped sweeps: .*alpha_beta"),
        (["--smok"], "unrecognized arguments: --smok; valid options: .*--smoke"),
        (["--workers", "two"], "--workers: two is not a whole number from 1"),
        (["--seeds", "0"], "--seeds: 0 is not a whole number from 1"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    assert command.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(says, printed.err)
    assert printed.err.count("\n") == 1


def steps_take(seconds, monkeypatch):
    fit = SimpleNamespace(seconds_per_step=lambda config: seconds)
    work = SimpleNamespace(
        work=lambda: 30, training_work=lambda: 20, parameters=lambda: 10**6, networks=1
    )
    experiment = SimpleNamespace(Experiment=lambda config: work)
    monkeypatch.setitem(sys.modules, "dtr_lightning.experiment.fit", fit)
    monkeypatch.setitem(sys.modules, "dtr_lightning.experiment.experiment", experiment)
    monkeypatch.setattr(preview, "this_machine", lambda: Machine(2, ()))


@pytest.mark.parametrize(
    ("seconds", "lasts"), [(0.04, "2 s"), (6.0, "4 min"), (600.0, "6 h 15 min")]
)
def test_a_look_before_tells_time_in_units_that_fit(light, tmp_path, monkeypatch, seconds, lasts):
    steps_take(seconds, monkeypatch)
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    configs = [point.config for point in sweep.points]
    told, _ = preview._cost(sweep, configs, SimpleNamespace(slots=2, threads=1, gpus=[]))
    assert told.startswith(f"about {lasts} with 2 workers of 1 threads: ")


@pytest.mark.slow
def test_dry_run_writes_nothing_and_knows_what_is_done(light, tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path), tmp_path / "out"
    steps_take(6.0, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["sweep.py", str(path), "--dry-run", "--out", str(out)])
    monkeypatch.chdir(tmp_path)
    assert command.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("waiting ") == 5
    text = " ".join(printed.split())
    assert "about 4 min with 2 workers of 1 threads" in text
    assert "0.125 hours of a worker" in text  # 50 steps of 6 s, and a half more for evaluations
    assert "about 0.08 GB of checkpoints in 5 runs" in text  # 5 times 4 copies of 4 MB
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.yaml"]
    run(path, out)
    before = sorted(out.rglob("*"))
    assert command.main() == 0
    assert "5 of 5 points done" in capsys.readouterr().out
    assert sorted(out.rglob("*")) == before


def test_the_report_is_drawn_once(light, tmp_path, monkeypatch):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    drawn = []

    def draw_all(directories):
        drawn.append(directories)
        folder.figures.mkdir(exist_ok=True)
        (folder.figures / "a.png").write_text("")
        folder.table.write_text("")

    monkeypatch.setattr("analysis.draw_all", draw_all)
    monkeypatch.setattr("analysis.tables.tables.table", len)
    monkeypatch.setattr("analysis.tables.tables.console_table", lambda frame: f"{frame} rows")
    results = {}
    for point in sweep.points[:2]:
        folder.run(point).prepare(point.config)
        results[point.name] = {"score": 1.0}
        folder.run(point).write_results(results[point.name])
    failed = {sweep.points[2].name: "bad [luck]"}
    for _ in range(2):
        console = Console(file=StringIO(), width=60)
        points = {point.name: point for point in sweep.points}
        outputs.show(outputs.Ending(sweep, folder, points, results, failed, {}), console)
        text = console.file.getvalue()
        assert "2 rows" in text
        assert "failed: DTR alpha=1 beta=0.8 seed=0: bad [luck]" in text
        assert f"tensorboard --logdir {folder.path}\n" in text
    assert drawn == [[folder.path]]


@pytest.mark.parametrize("space", [{}, {"router.alpha": None}], ids=["grid", "search"])
def test_a_search_alone_has_optunas_pictures(space, light, tmp_path, monkeypatch):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    monkeypatch.setattr("analysis.draw_all", lambda directories: None)
    monkeypatch.setattr("analysis.tables.tables.table", len)
    monkeypatch.setattr("analysis.tables.tables.console_table", lambda frame: f"{frame} rows")
    drawn = []
    monkeypatch.setattr("sweeps.engine.plots.draw", lambda *_: drawn.append(1))
    point, kind = sweep.points[0], replace(sweep.recipe, space=space)
    folder.run(point).prepare(point.config)
    folder.run(point).write_results({"score": 1.0})
    points = {point.name: point}
    ending = outputs.Ending(replace(sweep, recipe=kind), folder, points, {point.name: {}}, {}, {})
    outputs.show(ending, Console(file=StringIO()))
    assert len(drawn) == len(space)


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
        assert (workers.slots, workers.threads) == (number, threads)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine().gpus == ()


def test_a_terminal_has_a_bar_per_trial_and_the_best_so_far(light, tmp_path):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
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
        assert view.whole.tasks[0].completed == 2
        view.stored(second, {"score": 1.0, "smoke": True})
        assert view.best == (2.0, first.label)
        assert not view.trials.tasks


def test_train_run_stops_and_returns_stored_results(tmp_path, monkeypatch):
    from dtr_lightning.experiment import fit
    from sweeps.engine.child import train_run

    def stopped(*arguments):
        raise fit.Stopped

    monkeypatch.setattr(fit, "run", stopped)
    assert train_run({}, tmp_path, print, None) is None
    monkeypatch.setattr(fit, "run", lambda *arguments: {"score": 1.0})
    assert train_run({}, tmp_path, print, None) == {"score": 1.0}
