"""A loss that is no number ends a run at once, and the run says so."""

import json
import signal
import sys
from threading import Event

import pytest

import evaluate as evaluate_command
import sample as sample_command
import train as train_command
from dtr_lightning.errors import Stopped
from dtr_lightning.fit import read_checkpoint, run
from dtr_lightning.loss_weights import Constant
from dtr_lightning.run import Run
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
    weight = {"loss_weight": "tests.test_diverged.Breaks", "loss_weight.after": 3}
    return tiny(trainer__log_every_n_steps=1, **weight, **options)


def strictly(path):
    """Returns what a JSON file holds; nan and infinity are no JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


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


@pytest.fixture
def call(monkeypatch):
    """Returns a function that calls a command's main with arguments."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def main(command, *arguments):
        monkeypatch.setattr(sys, "argv", [command.__name__ + ".py", *map(str, arguments)])
        return command.main()

    yield main
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_commands(call, tmp_path, capsys):
    options = [f"--{key}={value}" for key, value in (TINY | HUGE).items()]
    config = ROOT / "configs" / "digits.yaml"
    for _ in range(2):
        arguments = ["--config", config, *options, "--checkpoint.milestones=1"]
        assert call(train_command, *arguments, "--out", tmp_path / "run") == 1
        assert "\ndiverged: the loss is nan at step 4\n" in capsys.readouterr().out
    for command in (sample_command, evaluate_command):
        assert call(command, tmp_path / "run") == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and "diverged" in printed.err
        assert printed.out == ""
    assert call(sample_command, tmp_path / "run", "--checkpoint", "step=1", "--n", "1") == 0
