"""Nothing in a file is ever executed, and what is no checkpoint is one line that says so."""

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dtr_lightning.checkpoints.reading import plain, read
from dtr_lightning.errors import UserError

WEIGHTS = {"a": torch.arange(3.0)}


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class SetsState:
    """An object that acts when its state is set."""

    marker = None

    def __getstate__(self):
        return {"path": self.marker}

    def __setstate__(self, state):
        Path(state["path"]).touch()


@pytest.fixture
def marker(tmp_path):
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def hostile(marker):
    SetsState.marker = str(marker)
    command = f"touch {marker}"
    return {
        "posix.system": Calls(os.system, command),
        "eval": Calls(eval, f"__import__('os').system({command!r})"),
        "exec": Calls(exec, f"open({str(marker)!r}, 'w')"),
        "Popen": Calls(__import__("subprocess").Popen, ["touch", str(marker)]),
        "getattr": Calls(getattr, Path, "touch"),
        "SetsState": SetsState(),
    }


@pytest.mark.parametrize("name", hostile("x"))
@pytest.mark.parametrize("how", ["zip", "legacy", "zip of protocol 4", "pickle", "pickle 4"])
def test_a_file_with_code_is_refused_and_named(tmp_path, marker, name, how):
    content, file = {"model": WEIGHTS, "args": hostile(marker)[name]}, tmp_path / "evil.pt"
    if "pickle" in how:
        file.write_bytes(pickle.dumps(content["args"], protocol=4 if "4" in how else 2))
    else:
        protocol = {"pickle_protocol": 4} if "4" in how else {}
        torch.save(content, file, _use_new_zipfile_serialization=how != "legacy", **protocol)
    with pytest.raises(UserError) as error:
        read(file)
    message = str(error.value)
    assert "\n" not in message
    assert "would call" in message
    assert name in message


def test_a_stand_in_never_becomes_what_it_stands_for(tmp_path, monkeypatch):
    """A class of an allowed name that acts on its state: it is there, and is not asked."""
    module, acted = types.ModuleType("omegaconf.dictconfig"), []

    class DictConfig:
        def __init__(self, value):
            self._content = {"schedule_name": Node("cosine"), "depth": Node(3)}

        def __setstate__(self, state):
            acted.append(state)

    class Node:
        def __init__(self, value):
            self._val = value

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    nodes = types.ModuleType("omegaconf.nodes")
    Node.__module__, Node.__qualname__, Node.__name__ = "omegaconf.nodes", "AnyNode", "AnyNode"
    module.DictConfig, nodes.AnyNode = DictConfig, Node
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    monkeypatch.setitem(sys.modules, "omegaconf.nodes", nodes)
    torch.save({"config": DictConfig(1), "model": WEIGHTS}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt").content
    assert plain(found["config"]) == {"schedule_name": "cosine", "depth": 3}
    assert acted == []


@pytest.mark.parametrize("zipped", [True, False])
def test_what_official_checkpoints_hold_is_read(tmp_path, zipped):
    content = {
        "model": WEIGHTS,
        "args": argparse.Namespace(model="DiT-XL/2", lr=1e-4, results_dir=Path("results")),
        "best": np.float64(3.5),
        "noise": np.ones(4),
        "opt": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "a.pt").content
    assert torch.equal(found["model"]["a"], WEIGHTS["a"])
    assert plain(found["args"])["model"] == "DiT-XL/2"
    assert found["opt"]["param_groups"][0]["lr"] == 1e-3


def test_safetensors_are_read_by_their_content(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.bin", {"about": "x"})
    found = read(tmp_path / "weights.bin")
    assert torch.equal(found.content["a"], WEIGHTS["a"])
    assert found.metadata == {"about": "x"}


def damaged(folder):
    """Returns {name: what its line says} of files that are no checkpoint."""
    torch.save({"a": torch.ones(10_000)}, folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    save_file({"a": torch.ones(100)}, folder / "whole.safetensors")
    tensors = (folder / "whole.safetensors").read_bytes()
    contents = {
        "half.pt": (whole[: len(whole) // 2], "truncated"),
        "tail.pt": (whole[:-50], "truncated"),
        "half.safetensors": (tensors[:-50], "truncated"),
        "empty.pt": (b"", "is empty"),
        "text.pt": (b"hello world " * 9, "no checkpoint"),
        "picture.pt": (b"\x89PNG\r\n\x1a\n" + bytes(200), "no checkpoint"),
        "zeros.pt": (bytes(1000), "no checkpoint"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    np.savez(folder / "arrays.npz", a=np.ones(3))
    torch.save([1, 2], folder / "list.pt")
    (folder / "folder").mkdir()
    return {name: says for name, (_, says) in contents.items()} | {
        "arrays.npz": "zip file, but no checkpoint",
        "list.pt": "holds a list",
        "folder": "is a directory, neither a run",
        "nothing.pt": "does not exist",
    }


def test_what_is_no_checkpoint_is_one_line(tmp_path):
    for name, says in damaged(tmp_path).items():
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        assert says in str(error.value), name
        assert name in str(error.value)
        assert "\n" not in str(error.value)
