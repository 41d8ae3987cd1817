"""A stored reference gives the numbers of a computed one, and no image is read for it twice."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

from dtr_lightning.data import Digits
from dtr_lightning.experiment.fit import run
from dtr_lightning.experiment.load import TrainedRun, other_protocol
from dtr_lightning.metrics import DigitsFeatures, Scorer
from dtr_lightning.metrics.reference import reference_key
from dtr_lightning.rundir.run import Run


class Mine(DigitsFeatures):
    """A person's own features."""


class Counted(Digits):
    """Digits with a place for references, that count the images that are read for them."""

    everywhere = 0  # by all of them

    def __init__(self, folder: str, batch_size: int = 8):
        super().__init__(batch_size)
        self.folder, self.read = Path(folder), 0

    def reference_file(self, key):
        return self.folder / "references" / f"{key}.npz"

    def image_batches(self, *arguments):
        for images, labels in super().image_batches(*arguments):
            self.read += len(images)
            Counted.everywhere += len(images)
            yield images, labels


def scores(folder, limit=400, features=DigitsFeatures, first=40):
    """Returns the scores of the first held-out images twice, and how many images were read."""
    data = Counted(folder)
    scorer = Scorer(features(), data, limit=limit, kid_subsets=3)
    found = []
    for _ in range(2):
        scorer.reset()
        scorer.update(*(part[:first] for part in data.split("val").tensors))
        found.append(scorer.compute())
    assert found[0] == found[1]
    return found[0], data.read


def test_a_stored_reference_is_the_computed_one_to_the_bit(tmp_path):
    computed, read = scores(tmp_path)
    assert read == 400 + 360
    assert scores(tmp_path) == (computed, 0)
    other, read = scores(tmp_path, limit=300)  # another reference
    assert read == 300 + 300 and other["reference_n"] == 300
    assert len(list((tmp_path / "references").iterdir())) == 2


def test_features_of_a_persons_own_keep_nothing(tmp_path):
    assert scores(tmp_path, features=Mine) == scores(tmp_path, features=Mine)
    assert scores(tmp_path, features=Mine)[1] == 760 and not list(tmp_path.iterdir())


DAMAGES = ["cut", "flipped", "text", "version", "key"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reference_that_is_damaged_or_older_is_computed_again(damage, tmp_path, caplog):
    computed, _ = scores(tmp_path)
    (path,) = (tmp_path / "references").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "text":
        path.write_text("statistics")
    else:
        with np.load(path) as arrays:
            np.savez(path, **dict(arrays) | {damage: 0})
    with caplog.at_level(logging.WARNING):
        assert scores(tmp_path) == (computed, 760)
    assert "the reference is computed again" in caplog.text
    assert scores(tmp_path) == (computed, 0)


def test_where_no_file_can_be_written_a_note_says_so(tmp_path, caplog):
    (tmp_path / "references").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert scores(tmp_path)[1] == 760
    assert "the next score computes it again" in caplog.text


LIMITS = (400, 300, 300)


def as_rank(rank, folder, found):
    """Scores as one of two processes, whose samples are the halves of those of `scores`."""
    torch.set_num_threads(1)
    place = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    own = []
    for limit in LIMITS:
        data = Counted(folder)
        scorer = Scorer(DigitsFeatures(), data, limit=limit, kid_subsets=3)
        scorer.next_index = rank * 20
        scorer.update(*(part[rank * 20 : rank * 20 + 20] for part in data.split("val").tensors))
        own.append((scorer.compute(), data.read))
    found[rank] = own
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_a_reference(tmp_path):
    """They read what one computed, and one reads what they did; each image is read once."""
    alone, _ = scores(tmp_path, LIMITS[0])
    with multiprocessing.Manager() as manager:
        found = manager.dict()
        multiprocessing.spawn(as_rank, (tmp_path, found), nprocs=2)
        first, second = found[0], found[1]
    assert [a[0] == b[0] for a, b in zip(first, second, strict=True)] == [True] * 3
    assert [a[1] + b[1] for a, b in zip(first, second, strict=True)] == [0, 600, 0]
    expected, read = scores(tmp_path, LIMITS[1])
    assert read == 0
    for (numbers, _), whole in zip(first, (alone, expected, expected), strict=True):
        assert numbers.keys() == whole.keys()
        for key, value in whole.items():
            near = isinstance(value, float)  # two processes add in another order
            assert numbers[key] == (pytest.approx(value, rel=1e-5) if near else value)


def test_a_run_and_its_evaluations_read_the_reference_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Counted, "everywhere", 0)
    run(tiny(data=f"{__name__}.Counted", data__folder=str(tmp_path)), tmp_path / "run")
    stored = Run(tmp_path / "run")
    trained = TrainedRun(stored, other_protocol(stored, ["--evaluation.n", "24"]))
    assert trained.evaluate()["n"] == 24
    assert Counted.everywhere == 1797


def test_a_key_names_features_images_and_limit(tmp_path):
    data = Counted(tmp_path)
    keys = {reference_key(DigitsFeatures(), data, limit) for limit in (None, 300, 400)}
    assert len(keys) == 3
    largest = len(data.split("train"))
    keys |= {reference_key(DigitsFeatures(), data, limit) for limit in (largest, 10 * largest)}
    assert len(keys) == 3  # these are all images
    assert reference_key(DigitsFeatures(), data, largest - 1) not in keys
    data.digest = lambda: "other"
    assert reference_key(DigitsFeatures(), data, None) not in keys
