"""Laws of stores whose images are mended: what is the same stays, and the bytes are those of all.

A folder of images of which some cannot be read is mended in every way that people do it.
"""

import shutil
from threading import Event

import numpy as np
import pytest
from PIL import Image

from dtr_lightning.data import VAE, ImageFolder, Pixels
from dtr_lightning.data.encoding import EncodedImages
from dtr_lightning.data.store import read_begun
from dtr_lightning.data.store_writer import write_store
from dtr_lightning.errors import Stopped, Unreadable, UserError
from tests.data.stores import contents
from tests.data.tiny_vae import tiny_vae

BLOCK = 8


def draw(folder, *numbers):
    """Writes an image of noise for each number, of one of two classes."""
    for i in numbers:
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path):
    """A folder of 44 training images and 8 held out."""
    draw(tmp_path / "images" / "train", *range(44))
    draw(tmp_path / "images" / "val", *range(100, 108))
    return tmp_path / "images"


class Seen(EncodedImages):
    """Images on their way, which tells what of each split was encoded."""

    def __init__(self, folder, codec=None):
        data = ImageFolder(folder, 8, channels=1, workers=0)
        super().__init__(data, codec or Pixels(), False, source=str(folder), block=BLOCK)
        self.seen = []

    def parts(self, split, indices):
        for part, rows in zip(indices, super().parts(split, indices), strict=True):
            self.seen.append((split, int(part[0])))
            yield rows


def train(*starts):
    return [("train", start) for start in starts]


def spoil(path):
    """Cuts an image, and returns what makes it whole again."""
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    return lambda: path.write_bytes(whole)


def direct(tmp_path, images, codec=None):
    """Returns the bytes of a store that is made at once, with the manifest's place of images."""
    shutil.rmtree(tmp_path / "direct", ignore_errors=True)
    write_store(tmp_path / "direct", Seen(images, codec))
    return contents(tmp_path / "direct")


def write(folder, images, codec=None):
    source = Seen(images, codec)
    assert write_store(folder, source).complete
    return source.seen


@pytest.mark.parametrize("encoded", [False, True])
def test_after_a_replaced_image_and_added_ones_the_rest_stays(tmp_path, images, encoded):
    codec = VAE(tiny_vae(tmp_path / "vae")) if encoded else None
    store = tmp_path / "store"
    paths = ImageFolder(images, 8).files["train"].paths
    replace = spoil(images / "train" / paths[20])  # of the third block
    with pytest.raises(Unreadable, match="cannot read image"):
        write_store(store, Seen(images, codec))
    replace()
    stop, source = Event(), Seen(images, codec)

    def report(what, done, total):
        if done > 3 * BLOCK:
            stop.set()

    with pytest.raises(Stopped):
        write_store(store, source, report=report, stop=stop)
    assert source.seen == train(16, 24)
    draw(images / "train", 201)  # the last one
    assert write(store, images, codec) == [*train(32, 40), ("val", 0)]
    assert contents(store) == direct(tmp_path, images, codec)


def test_only_blocks_of_other_images_are_encoded_again(tmp_path, images, caplog):
    store, mended = tmp_path / "store", spoil(images / "val" / "a" / "104.png")
    with pytest.raises(Unreadable):
        write_store(store, Seen(images))
    draw(images / "train", 1001)  # after all others
    mended()
    assert write(store, images) == [*train(40), ("val", 0)]
    assert "5 of its blocks stay, 1 are encoded again" in caplog.text
    assert contents(store) == direct(tmp_path, images)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_removed_images_leave_the_bytes_of_those_that_stay(tmp_path, images, split, place):
    store, files = tmp_path / "store", sorted((images / split).rglob("*.png"))
    path = files[0 if place == "first" else -1]
    spoil(path)
    with pytest.raises(Unreadable):
        write_store(store, Seen(images))
    path.unlink()
    seen = write(store, images)
    assert contents(store) == direct(tmp_path, images)
    everything = [*train(0, 8, 16, 24, 32, 40), ("val", 0)]
    again = {("train", "first"): everything, ("train", "last"): everything[-2:]}
    assert seen == again.get((split, place), [("val", 0)])


def test_an_image_that_was_there_and_is_replaced_too_is_encoded_again(tmp_path, images):
    store, mended = tmp_path / "store", spoil(images / "val" / "a" / "104.png")
    with pytest.raises(Unreadable):
        write_store(store, Seen(images))
    mended()
    other = sorted((images / "train").rglob("*.png"))[10]
    Image.new("L", (8, 8), 7).save(other)
    assert write(store, images) == [*train(8), ("val", 0)]
    assert contents(store) == direct(tmp_path, images)


def test_processes_share_what_is_to_be_encoded_again(tmp_path, images):
    store, mended = tmp_path / "store", spoil(images / "val" / "a" / "104.png")
    write_store(store, Seen(images), 1, 2)
    with pytest.raises(Unreadable):
        write_store(store, Seen(images), 0, 2)
    mended()
    draw(images / "train", 1001)
    seen = []
    for rank in (1, 0):
        source = Seen(images)
        write_store(store, source, rank, 2)
        seen.append(source.seen)
    assert seen == [train(40), [("val", 0)]]
    assert contents(store) == direct(tmp_path, images)


def test_another_command_takes_nothing_back(tmp_path, images):
    store, mended = tmp_path / "store", spoil(images / "val" / "a" / "104.png")
    with pytest.raises(Unreadable):
        write_store(store, Seen(images))
    mended()
    before = contents(store)
    shutil.copytree(images, tmp_path / "others")
    draw(tmp_path / "others" / "train", 1001)
    with pytest.raises(UserError, match="another train: 44, not 45"):
        write_store(store, Seen(tmp_path / "others"))
    assert contents(store) == before
    assert read_begun(store).train == 44
    assert write(store, images) == [("val", 0)]
