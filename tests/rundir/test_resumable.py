"""The trainings of what ships: stopped and gone on with, they end with the same weights."""

import subprocess
import sys
from threading import Event

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dtr_lightning.data import MNIST, Digits, train_vae
from dtr_lightning.errors import Stopped, UserError
from dtr_lightning.metrics import DigitsFeatures, train_classifier
from dtr_lightning.rundir import resumable
from dtr_lightning.rundir.resumable import Resumable
from tests.conftest import ROOT, slow_except

RECIPE = {"seed": 0, "rate": 0.1}
BATCHES = 3  # an epoch


def small(state, stop_at=None, steps=8):
    """Trains a linear map of random rows; asks it to stop at a step."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.fill_(0.5)
        net.bias.zero_()
    optimizer = torch.optim.AdamW(net.parameters(), RECIPE["rate"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    rows = torch.arange(18.0).view(9, 2)
    done = []
    for step in state.steps(steps, generator, {"net": net, "o": optimizer, "s": schedule}):
        if step % BATCHES == 0:
            state.order = torch.randperm(9, generator=generator)
        batch = rows[state.order[step % BATCHES * 3 :][:3]]
        (net(batch) + torch.randn(3, 1, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        done.append(step)
        if step == stop_at:
            state.stop.set()
    return net.weight.tolist(), done


@pytest.mark.parametrize("stop_at", range(8))
def test_stopped_at_any_step_it_ends_the_same(stop_at, tmp_path):
    file = tmp_path / "new" / "x.pt"
    weights, _ = small(Resumable(None, RECIPE))
    with pytest.raises(Stopped):
        small(Resumable(file, RECIPE), stop_at)
    state = Resumable(file, RECIPE)
    assert small(state) == (weights, [*range(stop_at + 1, 8)])
    state.end()
    assert not [*file.parent.iterdir()]


def test_a_kill_costs_what_came_after_the_last_saving(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "EVERY", -1.0)
    weights, _ = small(Resumable(tmp_path / "x.pt", RECIPE))
    state = Resumable(tmp_path / "x.pt", RECIPE)
    assert small(state) == (weights, [])
    assert state.cpu_seconds() > state.cpu_before > 0


def test_another_state_is_refused_and_kept(tmp_path):
    file = tmp_path / "x.pt"
    with pytest.raises(Stopped):
        small(Resumable(file, RECIPE), 2)
    with pytest.raises(UserError, match="by another recipe; remove it"):
        small(Resumable(file, RECIPE | {"rate": 0.2}))
    content = file.read_bytes()
    for broken in (content[:100], b"", content[: len(content) // 2]):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"x.pt cannot be read; remove it"):
            small(Resumable(file, RECIPE))
        assert file.read_bytes() == broken


def classifier(recipe, progress, state):
    net, accuracy = train_classifier.train(DigitsFeatures, Digits(64), progress, state)
    return net.state_dict() | {"accuracy": torch.tensor(accuracy)}


class _FewImages(MNIST):
    """The first images alone: an autoencoder takes its time."""

    def split(self, name):
        return TensorDataset(*(part[:200] for part in super().split(name).tensors))


def vae(recipe, progress, state):
    pytest.importorskip("diffusers")
    trained = train_vae.train(progress, state)
    factor = torch.tensor(trained.config.scaling_factor)
    return trained.state_dict() | {"scaling_factor": factor}


@pytest.mark.parametrize(
    ("train", "recipe", "stop_at"),
    [
        (classifier, train_classifier.RECIPE | {"epochs": 2}, 30),
        (vae, train_vae.RECIPE | {"epochs": 2, "batch_size": 40}, 7),
    ],
)
def test_a_shipped_training_that_was_stopped_ends_bit_equal(
    train, recipe, stop_at, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_vae, "RECIPE", recipe)
    monkeypatch.setattr(train_vae, "MNIST", _FewImages)
    whole = train(recipe, lambda *_: None, Resumable(None, recipe))
    stop, file = Event(), tmp_path / "state.pt"

    def progress(done, total, text):
        assert done <= stop_at < total
        if done == stop_at:
            stop.set()

    with pytest.raises(Stopped):
        train(recipe, progress, Resumable(file, recipe, stop))
    resumed = train(recipe, lambda *_: None, Resumable(file, recipe))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("module", "word"),
    slow_except(
        [("metrics.train_classifier", "x"), ("data.train_vae", "--x")], ("data.train_vae", "--x")
    ),
)
def test_a_mistake_in_a_module_is_exit_code_2(module, word):
    call = [sys.executable, "-m", f"dtr_lightning.{module}", word]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


@pytest.mark.slow
def test_ctrl_c_names_the_command_that_goes_on(tmp_path):
    call = [sys.executable, "-m", "dtr_lightning.metrics.train_classifier", "digits", "--out"]
    process = subprocess.Popen(
        [*call, tmp_path], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "10 %" in line:
            break
    process.send_signal(2)
    said = process.communicate()[1]
    assert process.returncode == 130
    command = f"python -m dtr_lightning.metrics.train_classifier digits --out {tmp_path}"
    assert said.splitlines()[-1].endswith(command[len("python") :])
    assert [path.name for path in tmp_path.iterdir()] == ["fd_digits_v1.training.pt"]
