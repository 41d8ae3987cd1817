"""Data workers: what reaches them, and that one that dies is one line, whenever it dies."""

import os
import signal
import sys
import time
from multiprocessing import active_children
from random import Random
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from dtr_lightning.data import ImageFolder
from dtr_lightning.errors import known_failure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(20):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (9 * i, 99, 0)).save(path)
    return str(folder)


def test_no_draw_on_its_way_to_a_worker_is_a_file_descriptor(folder):
    loader = ImageFolder(folder, 8, held_out=0.3, batch_size=4).train_dataloader()
    assert [type(part) for part in next(iter(loader.sampler))] == [np.ndarray, np.ndarray]


def test_a_worker_that_ends_interrupts_nothing_but_the_reading(folder):
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(ImageFolder(folder, 8, held_out=0.3, batch_size=4, workers=1).train_dataloader())
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked")
def test_a_worker_that_dies_at_any_time_is_one_line(folder, capfd):
    chance = Random(0)

    def kill():
        time.sleep(chance.uniform(0, 0.02))
        os.kill(chance.choice(active_children()).pid, signal.SIGKILL)

    for _ in range(12):
        data = ImageFolder(folder, 8, held_out=0.3, batch_size=4, workers=2)
        batches = iter(data.train_dataloader())
        next(batches)
        killer = Thread(target=kill)
        killer.start()
        with pytest.raises(RuntimeError, match="DataLoader worker") as error:
            for _ in batches:
                pass
        killer.join()
        assert known_failure(error.value).startswith("a data worker ")
        del batches, error, data
    assert "Traceback" not in capfd.readouterr().err
