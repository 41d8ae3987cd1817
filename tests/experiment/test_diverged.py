"""A number that is not finite ends a run, at once or at its end, and everything says so."""

import json
from threading import Event
from types import SimpleNamespace

import pytest
import torch

import evaluate as evaluate_command
import sample as sample_command
import train as train_command
from analysis.figures import convergence
from analysis.figures.tasks import losses_of
from analysis.read.runs import read
from analysis.tables.tables import table
from dtr_lightning.errors import Stopped
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import read_checkpoint, run
from dtr_lightning.objectives import Constant
from dtr_lightning.rundir.run import Run, to_json
from sweeps.engine.study import Study
from tests.conftest import ROOT, TINY

HUGE = {"module.lr": 1e30}  # finite at step 1, infinite at step 2


class Breaks(Constant):
    """Counts alike, but is nan after some steps of a range of tasks that starts at low or above."""

    def __init__(self, after: int, low: int = 0) -> None:
        super().__init__()
        self.left, self.low = after, low

    def forward(self, mse, vb, t):
        self.left -= self.process.tasks[0] >= self.low
        return super().forward(mse, vb, t) * (1 if self.left >= 0 else float("nan"))


def breaking(tiny, **options):
    """Returns a config of 6 steps whose weights are nan from step 4 on, their loss from step 5."""
    weight = {"loss_weight": "tests.experiment.test_diverged.Breaks", "loss_weight.after": 3}
    return tiny(trainer__log_every_n_steps=1, **weight, **options)


def strict(text):
    """Returns what a JSON text holds; nan and infinity are no JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} in {text}")

    return json.loads(text, parse_constant=refuse)


def strictly(path):
    return strict(path.read_text())


def test_the_run_ends_and_says_so(tiny, tmp_path):
    config, seen = breaking(tiny), []
    results = run(config, tmp_path / "run", lambda progress: seen.append(progress.step))
    own = Run(tmp_path / "run")
    assert strictly(own.results_file) == json.loads(json.dumps(results))
    wanted = {"score": None, "score_name": "fd_digits_v1", "n": 20, "loss": None, "diverged_at": 5}
    assert results | wanted | {"seed": 0, "steps": 5, "tasks": [0, 1000]} == results
    assert results["parameters"] > 0 and results["seconds"] > 0
    assert own.meta["status"] == "diverged" and "finished" in own.meta
    assert own.meta["traceback"] is None
    assert [record["step"] for record in own.metrics()] == [1, 2, 3, 3, 4, 5]
    assert max(seen) < 5
    before = {file: file.stat().st_mtime_ns for file in own.path.rglob("*") if file.is_file()}
    assert run(config, own.path) == strictly(own.results_file)
    assert before == {f: f.stat().st_mtime_ns for f in own.path.rglob("*") if f.is_file()}


def test_the_last_checkpoint_is_from_before(tiny, tmp_path):
    config = breaking(tiny, checkpoint__milestones=5)
    run(config, tmp_path / "run")
    own = Run(tmp_path / "run")
    checkpoint = read_checkpoint(own.last)
    assert checkpoint["global_step"] == 3
    for weights in (checkpoint["state_dict"], checkpoint["current_model_state"]):
        assert all(weight.isfinite().all() for weight in weights.values())
    assert [file.name for file in own.checkpoints.iterdir()] == ["last.ckpt"]
    assert not list(own.samples.iterdir())


@pytest.mark.slow
def test_a_stop_before_does_not_hide_it(tiny, tmp_path):
    """The loss is noticed at a logged step, and that is the same one for a resumed run."""
    config = tiny(**HUGE)
    whole = run(config, tmp_path / "whole")
    assert whole["diverged_at"] == whole["steps"] == TINY["trainer.log_every_n_steps"]
    stop = Event()
    stop.set()
    with pytest.raises(Stopped):
        run(config, tmp_path / "parts", stop=stop)
    assert Run(tmp_path / "parts").results is None
    resumed = run(config, tmp_path / "parts")
    timed = {"seconds", "steps_per_second"}
    assert {k: v for k, v in resumed.items() if k not in timed} == {
        k: v for k, v in whole.items() if k not in timed
    }
    a, b = (Run(tmp_path / name).metrics_file.read_text() for name in ("whole", "parts"))
    assert a == b


@pytest.mark.parametrize(("low", "step"), [(0, 5), (500, 6 + 5)])
@pytest.mark.slow
def test_one_expert_that_diverges_ends_the_whole_run(tiny, tmp_path, low, step):
    config = breaking(tiny, experts=2, loss_weight__low=low)
    results = run(config, tmp_path / "run")
    own = Run(tmp_path / "run")
    first, second = (own.expert(tasks) for tasks in ((0, 500), (500, 1000)))
    assert own.meta["status"] == "diverged"
    assert (results["diverged_at"], results["score"], results["n"]) == (step, None, 20)
    if low:
        assert "diverged_at" not in first.results and second.results["diverged_at"] == 5
        seconds = first.results["seconds"] + second.results["seconds"]
        assert results["seconds"] == pytest.approx(seconds)
    else:
        assert first.results["diverged_at"] == 5 and not second.path.exists()
        assert first.results["tasks"] == [0, 500] and "score" not in first.results
    assert run(config, own.path) == strictly(own.results_file)


@pytest.mark.slow
def test_commands(call, tmp_path, capsys):
    options = [f"--{key}={value}" for key, value in (TINY | HUGE).items()]
    config = ROOT / "configs" / "digits.yaml"
    for _ in range(2):
        arguments = ["--config", config, *options, "--checkpoint.milestones=1"]
        assert call(train_command, *arguments, "--out", tmp_path / "run") == 1
        assert "\ndiverged: the loss is not finite at step 4\n" in capsys.readouterr().out
    for command in (sample_command, evaluate_command):
        assert call(command, tmp_path / "run") == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and "diverged" in printed.err
        assert printed.out == ""
    assert call(sample_command, tmp_path / "run", "--checkpoint", "step=1", "--n", "1") == 0


def ends(results, path, what, step=6):
    """Asserts that a run ended as diverged, in every file that it left."""
    own = Run(path)
    assert own.meta["status"] == "diverged"
    assert (results["score"], results["loss"]) == (None, None)
    assert (results["diverged"], results["diverged_at"]) == (f"the {what} not finite", step)
    assert strictly(own.results_file) == results
    for line in own.metrics_file.read_text().splitlines():
        strict(line)
    row = table([own]).iloc[0]
    assert (row.status, row.ended_at) == ("diverged", step)


def test_weights_that_break_in_the_last_step(tiny, tmp_path):
    """All losses that were logged are finite."""
    config = breaking(tiny, evaluation__every=0)
    config["loss_weight"]["init_args"]["after"] = 5
    results = run(config, tmp_path / "run")
    ends(results, tmp_path / "run", "weights are")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["score", "loss"])
def test_a_final_number_that_is_not_finite(tiny, tmp_path, monkeypatch, what, value):
    evaluate, held_out = Experiment.evaluate, Experiment.val_losses

    def broken_score(*args):
        scores, *images = evaluate(*args)
        return scores | {"score": value}, *images

    if what == "score":
        monkeypatch.setattr(Experiment, "evaluate", broken_score)
    else:
        monkeypatch.setattr(Experiment, "val_losses", lambda *a: held_out(*a) | {"val/loss": value})
    results = run(tiny(evaluation__every=0), tmp_path / "run")
    ends(results, tmp_path / "run", f"{what} is")


def test_numbers_on_the_way_are_null_and_do_not_end_a_run(tiny, tmp_path):
    config = tiny(loss_weight="tests.experiment.test_diverged.Breaks", loss_weight__after=1)
    config["trainer"]["log_every_n_steps"] = 6
    results = run(config, tmp_path / "run")
    ends(results, tmp_path / "run", "loss is")
    first, *_ = Run(tmp_path / "run").metrics()
    assert first["step"] == 3 and first["val/loss"] is first["eval/score"] is None
    (finished,) = read([Run(tmp_path / "run")]).finished
    assert losses_of(finished) == {} and convergence.needs([finished])


def test_the_last_val_losses_are_those_of_the_end():
    """A null there is no reason to take those from before."""
    good, bad = {"step": 3, "val_tasks/t000-124": 0.5}, {"step": 6, "val_tasks/t000-124": None}
    assert losses_of(SimpleNamespace(records=[good])) == {(0, 124): 0.5}
    assert losses_of(SimpleNamespace(records=[good, bad])) == {}


def test_evaluating_a_broken_checkpoint(call, tiny, tmp_path, capsys):
    run(tiny(evaluation__every=0), tmp_path / "run")
    last = Run(tmp_path / "run").last
    content = torch.load(last, weights_only=True)
    content["state_dict"]["model.final_layer.linear.bias"].fill_(float("nan"))
    torch.save(content, last)
    for _ in range(2):  # computed, then read
        assert call(evaluate_command, tmp_path / "run", "--evaluation.n=12") == 1
        printed = capsys.readouterr()
        results = strict(printed.out)
        assert results["score"] is results["kid"] is results["copies"] is None
        assert "diverged: the score is not finite at step 6\n" in printed.err
    assert strictly(next(Run(tmp_path / "run").evaluations.iterdir())) == results
    assert call(sample_command, tmp_path / "run", "--n", "1") == 1
    line = "diverged: the pixels that the network draws are not finite\n"
    assert capsys.readouterr().err.endswith(line)


def test_a_diverged_point_of_a_sweep_has_no_value():
    """Not even of what does not depend on the weights: Optuna must not choose it."""
    diverged = {"score": None, "parameters": 3, "diverged_at": 5}
    for results, values in ((diverged, None), ({"score": 1.0, "parameters": 3}, [3])):
        sweep = SimpleNamespace(recipe=SimpleNamespace(objectives={"parameters": "minimize"}))
        assert Study._values(SimpleNamespace(sweep=sweep), results) == values


def test_json_is_strict():
    content = {"a": [1.5, float("nan"), {"b": -float("inf")}], "c": (True, "nan", 7, None)}
    assert strict(to_json(content)) == {"a": [1.5, None, {"b": None}], "c": [True, "nan", 7, None]}
