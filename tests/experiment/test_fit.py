"""Runs: paired, resumable to the bit, idempotent, and honest about what they hold."""

import json
import math
import os
import signal
import subprocess
import sys
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import fit
from dtr_lightning.experiment.evaluation import sample
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import Stopped, read_checkpoint, run
from dtr_lightning.experiment.notes import notes_of, print_notes
from dtr_lightning.routing.masks import dtr, mean_overlap
from dtr_lightning.rundir.run import OBJECTIVES, Run
from tests.conftest import ROOT, TINY, slow_except
from tests.faults.verdict import repeated


def train(config, path, stop_at=None):
    """Runs to the end, or asks to stop once a step is reached."""
    stop = Event()

    def report(progress):
        if stop_at is not None and progress.step >= stop_at:
            stop.set()

    return run(config, path, report, stop)


def trained(path):
    """Returns what a run has computed: weights, average, optimiser state and the record."""
    checkpoint = read_checkpoint(Run(path).last)
    return checkpoint, Run(path).metrics_file.read_text()


def assert_equal(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


STATE = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "global_step")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished tiny DTR run: its config, directory and results."""
    config = resolve(ROOT / "configs" / "digits.yaml", TINY | {"router": "DTR"})
    path = tmp_path_factory.mktemp("whole") / "run"
    return config, path, train(config, path)


@pytest.mark.parametrize("step", slow_except([1, 3, 4, 5], 4))
def test_stopped_and_resumed_equals_uninterrupted(whole, tmp_path, step):
    config, path, results = whole
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop_at=step)
    assert Run(tmp_path / "run").meta["status"] == "stopped"
    resumed = train(config, tmp_path / "run")
    (a, record_a), (b, record_b) = trained(path), trained(tmp_path / "run")
    for key in STATE:
        assert_equal(a[key], b[key], key)
    assert record_a == record_b
    timed = {"seconds", "steps_per_second"}
    assert {k: v for k, v in results.items() if k not in timed} == {
        k: v for k, v in resumed.items() if k not in timed
    }


def test_the_benchmark_of_faults_sees_no_record_twice_in_a_whole_run(whole):
    records = Run(whole[1]).metrics()
    assert len({record["step"] for record in records}) < len(records)  # train and val, at the end
    assert not repeated(records) and repeated([*records, records[-1]])


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_equals_uninterrupted(whole, tmp_path):
    """SIGKILL after random waits, until the run is done; a worn checkpoint or record would show."""
    config, path, _ = whole
    (tmp_path / "config.json").write_text(json.dumps(config))
    script = (
        "import json, sys; from dtr_lightning.experiment.fit import run;"
        "run(json.load(open(sys.argv[1])), sys.argv[2],"
        " lambda p: print(p.step, flush=True))"
    )
    command = [sys.executable, "-c", script, tmp_path / "config.json", tmp_path / "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True)
    for line in child.stdout:
        if int(line) >= 4:  # past the first checkpoint and the first record
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert Run(tmp_path / "run").results is None
    train(config, tmp_path / "run")
    (a, record_a), (b, record_b) = trained(path), trained(tmp_path / "run")
    for key in STATE:
        assert_equal(a[key], b[key], key)
    assert record_a == record_b


def test_done_is_done(whole, monkeypatch):
    config, path, results = whole
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    monkeypatch.setattr(fit, "_train", lambda *_: pytest.fail("trained again"))
    assert run(config, path) == json.loads(json.dumps(results))
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_results_state_their_protocol(whole):
    _, path, results = whole
    assert results["score_name"] == "fd_digits_v1"
    assert results["n"] == 20
    assert results["floor"] > 0
    assert 0 <= results["copies"] <= 1
    assert (
        results["protocol"]
        | {
            "sampler": "DDIM",
            "sampler_steps": 3,
            "guidance": 1.5,
            "weights": "ema",
            "seed": 0,
            "schedule": "cosine",
        }
        == results["protocol"]
    )
    assert [r["step"] for r in Run(path).metrics()] == [3, 4, 6, 6]
    assert {*OBJECTIVES} <= results.keys()  # what a sweep may be about
    damaged = Run(path.parent / "damaged")
    damaged.path.mkdir()
    for value in ("3", [1], True, 10**400):
        damaged.results_file.write_text(json.dumps(results | {"score": value}))
        with pytest.raises(UserError, match=r"results\.json is damaged: score is"):
            _ = damaged.results


@pytest.mark.parametrize("classes", [["a", "b"], ["."]], ids=["classes", "unconditional"])
def test_images_of_a_folder(tmp_path, classes):
    """Colour images of mixed sizes, without a classifier, with and without classes."""
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "images" / classes[i % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (10 + i, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    data = {"data.root": str(tmp_path / "images"), "data.size": 8, "data.workers": 0}
    guidance = {} if len(classes) > 1 else {"evaluation.guidance": 1}
    features = {"features": "TimmFeatures", "features.size": 32}
    config = resolve(
        ROOT / "configs" / "images.yaml",
        {"model": "DiT", **TINY, "trainer.precision": "32-true", **data, **features, **guidance},
    )
    results = run(config, tmp_path / "run")
    assert results["score_name"] == "fd_resnet18_untrained_32px"
    assert results["accuracy"] is None
    arrays = np.load(Run(tmp_path / "run").sample_arrays)
    assert arrays["images"].shape == (20, 3, 8, 8)
    assert arrays["classes"].tolist() == (classes if len(classes) > 1 else ["all"])
    assert {"random", "few_samples", "few_references", "few_held_out"} <= notes_of(results).keys()


def test_results_state_what_they_are_judged_by(tiny, caplog, capsys, tmp_path):
    """What is known before the training is told before it, the rest with the numbers."""
    shipped = Experiment(resolve(ROOT / "configs" / "digits.yaml"))
    assert notes_of(shipped.scoring() | shipped.facts() | {"labels": "balanced"}) == {}
    slow = {"module__ema_decay": 0.9999, "module__ema_warmup": False}
    config = tiny(trainer__max_steps=2, evaluation__every=0, **slow)
    results = run(config, tmp_path / "run")
    early, found = caplog.messages, notes_of(results)
    assert early == [f"note: {found[name]}" for name in ("initial", "few_samples")]
    assert found["initial"].startswith("100% of the averaged weights")
    assert found["few_samples"].startswith("20 samples are fewer than the 48 features need (49)")
    assert results["notes"] == [*found.values()] and {"far", "chance"} <= found.keys()
    capsys.readouterr()
    print_notes(results)
    assert capsys.readouterr().err == "".join(f"note: {line}\n" for line in results["notes"])
    stored = {"reference_n": 1437, "floor_n": 360, "num_features": 48, "num_classes": 10}
    assert {key: results[key] for key in stored} == stored
    assert results["class_images"] == [139, 146] and results["chance"] == pytest.approx(
        0.1, abs=1e-3
    )
    assert results["imbalance"] < 0.02 and results["extractor_random"] is results["smoke"] is False
    warm = Experiment(tiny(module__ema_decay=0.9999, module__ema_warmup=True, evaluation__n=49))
    assert notes_of(warm.scoring() | warm.facts()) == {}


def test_routers_are_compared_in_pairs(tiny):
    """Same weights, batches, tasks and noise for one seed, whatever the router."""

    def first_step(**router):
        experiment = Experiment(tiny(**router))
        module = experiment.module
        seen = {}
        module.losses = lambda x0, t, y, noise: (
            seen.update(x0=x0, t=t, y=y, noise=noise)
            or (type(module).losses(module, x0, t, y, noise))
        )
        trainer = experiment.trainer([], [])
        trainer.fit_loop.epoch_loop.max_steps = 1
        trainer.fit(module, datamodule=experiment.data)
        return seen, Experiment(tiny(**router)).module.state_dict()

    a, b = first_step(router="NoRouting"), first_step(router="RTR", router__beta=0.6)
    assert_equal(list(a[0].values()), list(b[0].values()))
    assert_equal(dict(a[1]), dict(b[1]))


def test_samples_depend_on_their_index_not_on_the_batch(tiny):
    experiment = Experiment(tiny())
    for parameter in experiment.module.model.parameters():
        parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))

    def draw(indices, batch_size):
        experiment.protocol.batch_size = batch_size
        labels = torch.tensor([i % 10 for i in indices])
        data, protocol = experiment.data, experiment.protocol
        parts = sample(experiment.module, data, experiment.sampler, labels, indices, protocol)
        return torch.cat([images for images, _ in parts]).int()

    together = draw(range(7), 7)
    apart = torch.cat([draw(range(3), 2), draw(range(3, 7), 3)])
    assert (together - apart).abs().max() <= 1  # a grey level where a float32 sum rounds otherwise


def test_evaluation_reads_the_average_even_when_saving_was_interrupted(whole):
    """The average is in state_dict, the raw weights beside it, and they differ."""
    checkpoint = read_checkpoint(Run(whole[1]).last)
    average, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    name = "model.blocks.0.mlp.fc1.weight"
    assert not torch.equal(average[name], raw[name])


def test_a_run_tells_how_many_channels_two_tasks_share(tiny):
    wide = {"model__hidden_size": 64, "diffusion__T": 40}
    expected = {"DTR": mean_overlap(dtr(40, 64)) / 64, "NoRouting": None, "Switch": None}
    for router, overlap in expected.items():
        assert Experiment(tiny(router=router, **wide)).overlap() == overlap
    both = tiny(router="DTR", experts=2, trainer__max_steps=2, **wide)
    assert Experiment(both).overlap() == expected["DTR"]


def test_a_network_that_diverged_has_no_score(tiny):
    experiment = Experiment(tiny())
    trainer = experiment.trainer([], [])
    for parameter in experiment.module.model.final_layer.parameters():
        parameter.data.fill_(float("nan"))
    scores, *_ = experiment.evaluate(trainer, experiment.module, 20, 0)
    assert math.isnan(scores["score"])
    assert math.isnan(scores["kid"])


def test_tensorboard_after_a_resume_shows_every_step_once(whole, tmp_path):
    config, _, _ = whole
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop_at=4)
    train(config, tmp_path / "run")
    events = EventAccumulator(str(Run(tmp_path / "run").tensorboard)).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [4, 6]
    assert [e.step for e in events.Scalars("val/loss")] == [3, 6]
    assert [e.step for e in events.Images("samples")] == [3, 6]


@pytest.mark.parametrize("every", [0, 4, 3])
def test_the_losses_at_the_end_are_logged_once(tiny, tmp_path, every):
    results = run(tiny(evaluation__every=every), tmp_path / "run")
    losses = [r for r in Run(tmp_path / "run").metrics() if r["step"] == 6 and "val/loss" in r]
    (last,) = losses
    assert last["val/loss"] == results["loss"]
    assert len([key for key in last if key.startswith("val_tasks/")]) == 8


def test_average_is_the_recursion(tiny, tmp_path):
    """ema <- d ema + (1 - d) theta from the initial weights on, d = min(decay, (1+n)/(10+n))."""
    from lightning.pytorch.callbacks import LambdaCallback

    from dtr_lightning.training.ema import EMA

    experiment = Experiment(tiny())
    ema, seen = EMA(0.3, warmup=True), []
    expected = [p.detach().clone() for p in experiment.module.parameters()]

    def follow(trainer, module, *_):
        n = trainer.global_step
        d = min(0.3, (1 + n) / (10 + n))
        for e, p in zip(expected, module.parameters(), strict=True):
            e.mul_(d).add_(p.detach(), alpha=1 - d)
        seen.append([p.detach().clone() for p in ema.module.parameters()])

    trainer = experiment.trainer([], [ema, LambdaCallback(on_train_batch_end=follow)])
    trainer.fit(experiment.module, datamodule=experiment.data)
    for a, b in zip(seen[-1], expected, strict=True):
        torch.testing.assert_close(a, b)
