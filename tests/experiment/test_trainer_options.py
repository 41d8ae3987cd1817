"""What a training can be told beside what it is: a time limit, a profiler, a development run."""

import json
import tempfile
import time
from threading import TIMEOUT_MAX

import pytest

import train as command
from dtr_lightning.config.checks import check, seconds_of
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import Stopped, UserError
from dtr_lightning.experiment.fast_dev_run import STEPS, shortened
from dtr_lightning.experiment.fit import read_checkpoint, run
from dtr_lightning.rundir.naming import identity
from dtr_lightning.rundir.run import Run
from sweeps.engine.driver import prepare
from tests.conftest import ROOT, TINY
from tests.experiment.test_fit import assert_equal, trained

DIGITS = str(ROOT / "configs" / "digits.yaml")


@pytest.mark.slow
def test_a_time_limit_stops_like_a_signal_and_the_same_run_goes_on(tiny, tmp_path):
    config = tiny(trainer__max_steps=20, trainer__max_time="00:00:00:01", evaluation__every=0)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(tiny(trainer__max_steps=20, evaluation__every=0), whole)
    with pytest.raises(Stopped):
        run(config, parts, lambda progress: time.sleep(0.3))
    assert 0 < read_checkpoint(Run(parts).last)["global_step"] < 20
    assert Run(parts).meta["status"] == "stopped"
    run(config, parts)
    for key in ("state_dict", "optimizer_states"):
        assert_equal(*(trained(path)[0][key] for path in (parts, whole)), key)
    assert trained(parts)[1] == trained(whole)[1]


def test_a_time_limit_is_days_to_seconds(tiny):
    assert seconds_of("01:02:03:04") == 93_784 and seconds_of("00:90:00:00") == 324_000
    assert "max_time" not in tiny()["trainer"]
    assert seconds_of("9999:00:00:00") < TIMEOUT_MAX  # of a timer, which waits no longer
    wrong = ["12:00:00", "1", "00:00:00:00", "1:2:3:x", "9999:00:00:01", "99999999:00:00:00"]
    for text in (*wrong, "9" * 5000 + ":0:0:0", "0:0:0:" + "9" * 30):
        with pytest.raises(UserError, match=r"trainer\.max_time must be DAYS:.* to 9,999 days"):
            tiny(trainer__max_time=text)


def test_a_sweep_refuses_a_time_limit_for_its_trials():
    with pytest.raises(UserError, match=r"trainer\.max_time ends a single training"):
        prepare("alpha_beta", options=["trainer.max_time=00:01:00:00"], warm=False)


@pytest.mark.slow
def test_the_profiler_leaves_a_trace_and_changes_no_number(tiny, tmp_path, capfd):
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    run(tiny(trainer__max_steps=12), plain)
    said = capfd.readouterr()
    run(tiny(trainer__max_steps=12, trainer__profiler="pytorch"), profiled)
    assert capfd.readouterr() == said
    assert "aten::" in (profiled / "profile" / "operators.txt").read_text()
    (trace,) = (profiled / "profile").glob("*.pt.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {f"ProfilerStep#{step}" for step in range(5, 10)} <= names
    assert not (plain / "profile").exists()
    assert trained(plain)[1] == trained(profiled)[1]
    assert identity(Run(plain).config) == identity(Run(profiled).config)


FILES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_fast_development_run_is_the_same_run_in_few_steps(file):
    config = resolve(file)
    short = shortened(config)
    check(short)
    assert identity(short) == identity(config)
    assert short["trainer"]["max_steps"] == STEPS < config["trainer"]["max_steps"]


def test_a_fast_development_run_goes_all_the_way_and_keeps_nothing(
    call, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words = [f"--{key}={value}" for key, value in TINY.items()]
    kept = []

    def keep(self, results):
        kept.extend(path.name for path in self.path.rglob("*") if path.is_file())
        kept.extend(key for record in self.metrics() for key in record)

    monkeypatch.setattr(Run, "write_results", keep)
    assert call(command, "--config", DIGITS, "--fast-dev-run", *words) == 0
    said = capsys.readouterr().out
    assert "--fast-dev-run: training, evaluation, checkpoint and sampling: ok" in said
    assert {"last.ckpt", "samples.png", "train/loss", "val/loss", "eval/score"} < {*kept}
    assert [*tmp_path.iterdir()] == []


def test_a_mistake_is_told_by_a_fast_development_run_too(call, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert call(command, "--config", DIGITS, "--fast-dev-run", "--model.num_heads=7") == 2
    assert capsys.readouterr().err.strip().startswith("error: hidden_size 64")
    assert [*tmp_path.iterdir()] == []
