"""What writes weights says of a disk that does not take them what any other file says."""

import errno
import resource

import pytest
import torch

from dtr_lightning.checkpoints.writing import _save
from dtr_lightning.rundir.atomic import replacing, telling_of_disk


@pytest.fixture
def small_disk():
    """No file grows beyond some kilobytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_weights_as_safetensors(tmp_path, small_disk):
    with pytest.raises(OSError) as caught:
        _save(tmp_path / "model.safetensors", {"x": torch.zeros(10_000)}, {})
    assert caught.value.errno == errno.EFBIG and not any(tmp_path.iterdir())


def test_weights_as_torch_writes_them(tmp_path, small_disk):
    path = tmp_path / "model.pt"
    with (
        pytest.raises(OSError) as caught,
        telling_of_disk(path),
        replacing(path) as part,
        part.open("wb") as file,
    ):
        torch.save({"x": torch.zeros(10_000)}, file)
    assert caught.value.errno == errno.EFBIG and not any(tmp_path.iterdir())


def test_any_other_failure_stays_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="of ours"), telling_of_disk(tmp_path):
        raise ValueError("of ours")
