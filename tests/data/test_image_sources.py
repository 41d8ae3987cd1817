"""Images of torchvision and the hub are prepared as those of a folder."""

import os
import struct
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from dtr_lightning.data.image_files import prepare
from dtr_lightning.data.image_sources import hub_images, torchvision_images, torchvision_names
from dtr_lightning.errors import UserError


@pytest.fixture
def mnist(tmp_path):
    """torchvision's MNIST with 20 training and 6 test images, as its files lie after a download."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    made = {}
    for part, n in (("train", 20), ("t10k", 6)):
        rng = np.random.default_rng(n)
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        head = struct.pack(">IIII", 2051, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + bytes(labels))
        made[part] = images, labels
    return tmp_path, made


@pytest.mark.parametrize(("size", "channels"), [(None, 1), (28, 3), (32, 1)])
def test_a_set_of_torchvision_is_read_without_a_network(mnist, size, channels):
    root, made = mnist
    data = torchvision_images("MNIST", str(root), size, channels)
    assert data.num_classes == 10 and data.shape == (channels, size or 28, size or 28)
    assert data.class_names[0].startswith("0")
    for split, part in (("train", "train"), ("val", "t10k")):
        images, labels = made[part]
        assert len(data.split(split)) == len(images)
        for i in (0, 5):
            image, label = data.split(split)[i]
            expected = prepare(Image.fromarray(images[i]), size or 28, channels)
            assert torch.equal(image, expected) and label == labels[i]
    assert data.digest() != torchvision_images("MNIST", str(root), 30, 1).digest()
    batch, labels = next(iter(data.chosen_batches("train", [torch.tensor([3, 1])])))
    assert labels.tolist() == [3, 1] and torch.equal(batch[1], data.split("train")[1][0])


def test_what_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def fail(self):
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(UserError, match=r"CIFAR10 is not in .* cannot be downloaded: no route"):
        torchvision_images("CIFAR10", str(tmp_path))


def test_processes_that_start_at_once_download_one_after_the_other(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def download(self):
        (tmp_path / f"at-work-{os.getpid()}").touch(exist_ok=False)
        time.sleep(0.05)
        alone = len([*tmp_path.glob("at-work-*")]) == 1
        (tmp_path / f"at-work-{os.getpid()}").unlink()
        raise OSError("alone" if alone else "together")

    monkeypatch.setattr(CIFAR10, "download", download)
    children = []
    for _ in range(3):
        if not (pid := os.fork()):
            try:
                torchvision_images("CIFAR10", str(tmp_path))
            except UserError as error:
                os._exit(2 if ": alone" in str(error) else 3)
            os._exit(4)
        children.append(pid)
    codes = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children}
    assert codes == {2}


def test_names_of_torchvision():
    assert {"CIFAR10", "MNIST", "SVHN", "STL10", "Food101"} <= set(torchvision_names())
    assert not {"ImageFolder", "CocoCaptions", "FakeData"} & set(torchvision_names())
    with pytest.raises(UserError, match=r"unknown data set of torchvision 'CIFAR11'; valid: .*CIF"):
        torchvision_images("CIFAR11", "root")


@pytest.fixture
def hub_folder(tmp_path):
    for split, n in (("train", 6), ("test", 3)):
        for i in range(n):
            path = tmp_path / "set" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 8), (20 * i, 0, 0)).save(path)
    return tmp_path / "set"


def test_a_set_of_the_hub(hub_folder, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = hub_images(str(hub_folder), size=8, channels=3)
    assert data.class_names == ("a", "b") and data.shape == (3, 8, 8)
    assert len(data.split("train")) == 6 and len(data.split("val")) == 3
    pairs = {(int(image[0, 4, 4]), label) for image, label in data.split("train")}
    assert pairs == {(20 * i, i % 2) for i in range(6)}
    with pytest.raises(UserError, match=r"first image of .* is 10 x 8; give --size"):
        hub_images(str(hub_folder))


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        hub_images("owner/name")
