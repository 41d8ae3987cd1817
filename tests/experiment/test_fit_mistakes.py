"""What stops a run: options, devices, folders and checkpoints that cannot be used."""

import os
import pickle

import pytest
import torch

from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import read_checkpoint, run
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished tiny DTR run: its config, directory and results."""
    config = resolve(ROOT / "configs" / "digits.yaml", TINY | {"router": "DTR"})
    path = tmp_path_factory.mktemp("whole") / "run"
    return config, path, run(config, path)


def test_directory_of_another_config(whole, tiny):
    with pytest.raises(UserError, match=r"router is 'DTR' there and 'RTR' here"):
        run(tiny(router="RTR"), whole[1])


def test_directory_in_use(whole, tiny, tmp_path):
    with Run(tmp_path / "run").lock(), pytest.raises(UserError, match="in use by another"):
        run(tiny(), tmp_path / "run")


def test_directory_of_something_else(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty and not a run"):
        run(tiny(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_directory_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot write to"):
            run(tiny(), path)


def test_batch_larger_than_the_data(tiny, tmp_path):
    with pytest.raises(UserError, match=r"training set; give --data\.batch_size 1437"):
        run(tiny(data__batch_size=5000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer__accelerator", "cuda"),
        ("trainer__accelerator", "foo"),
        ("trainer__devices", "foo"),
        ("trainer__devices", 0),
        ("trainer__strategy", "foo"),
    ],
)
def test_devices_that_are_not_there(tiny, tmp_path, key, value):
    if value == "cuda" and torch.cuda.is_available():
        value = "tpu"
    with pytest.raises(UserError, match=r"trainer[.:]"):
        run(tiny(**{key: value}), tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0), ("betas", [2, 3]), ("weight_decay", -1), ("ema_decay", 1)],
)
def test_optimiser_out_of_range(tiny, tmp_path, key, value):
    with pytest.raises(UserError, match=key):
        run(tiny(**{f"module__{key}": value}), tmp_path / "run")


def test_guidance_without_a_null_class(tiny, tmp_path):
    with pytest.raises(UserError, match=r"guidance 2 needs .*: train with --model"):
        run(tiny(model__class_dropout_prob=0, evaluation__guidance=2), tmp_path / "run")


def test_truncated_checkpoint(whole, tmp_path):
    content = Run(whole[1]).last.read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated or no plain checkpoint"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_checkpoint_of_something_else(whole, tiny, tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="no plain checkpoint"):
        read_checkpoint(tmp_path / "last.ckpt")
    larger = Experiment(tiny(model__hidden_size=32)).module
    with pytest.raises(UserError, match="weights of another network"):
        read_checkpoint(Run(whole[1]).last, larger)


@pytest.mark.parametrize("content", [b"\xff\x00", b"[1]", b"{", b"3"])
@pytest.mark.parametrize("name", ["config.yaml", "meta.json", "results.json", "metrics.jsonl"])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content + b"\n")
    read = {"config.yaml": "config", "meta.json": "meta", "results.json": "results"}
    with pytest.raises(UserError, match=name):
        value = getattr(Run(tmp_path), read.get(name, "metrics"))
        value() if callable(value) else value


def test_checkpoint_with_code_in_it(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    for dump in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))):
        dump({"global_step": 1, "state_dict": Trap()}, tmp_path / "last.ckpt")
        with pytest.raises(UserError, match="no plain checkpoint"):
            read_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "executed").exists()


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    from dtr_lightning.training.callbacks import AtomicCheckpointIO

    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full(checkpoint, file):
        file.write(b"half of it")
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos") from None  # as torch's writer does

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_failure_is_recorded(tiny, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(Experiment, "val_losses", broken)
    with pytest.raises(RuntimeError):
        run(tiny(), tmp_path / "run")
    meta = Run(tmp_path / "run").meta
    assert meta["status"] == "failed"
    assert "a bug of ours" in meta["traceback"]
