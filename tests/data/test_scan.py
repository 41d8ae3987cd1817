"""Laws of folders of images: each image once, splits are recognised or asked for, all is told."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import make_reference
from dtr_lightning.data import ImageFolder
from dtr_lightning.data.scan import Paths
from dtr_lightning.data.splits import role
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.fit import run
from sweeps.engine import driver

RANDOM = np.random.default_rng(0)


def write(*paths, many=1):
    """Writes small images that all differ: one at each path, or several in each folder."""
    for path in paths:
        for file in [path] if path.suffix else [path / f"{i}.png" for i in range(many)]:
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, format="PNG")


def instantiate(root, **options):
    return ImageFolder(str(root), 4, **{"held_out": 0.25, "batch_size": 1, "workers": 0} | options)


def images(data):
    """Returns {(split, class): number of images}, after a look that no image is there twice."""
    counts, seen = {}, set()
    for split in ("train", "val"):
        for image, label in data.split(split):
            assert image.numpy().tobytes() not in seen
            seen.add(image.numpy().tobytes())
            key = split, data.class_names[label]
            counts[key] = counts.get(key, 0) + 1
    return counts


def total(data):
    return sum(images(data).values())


@pytest.mark.parametrize(
    "links",
    [
        {"a/all": "."},
        {"a/all": ".", "b/all": "."},
        {"a/up": "..", "b/root": "/"},
        {"a/self": "a", "b/b": "b/b"},
        {"c": "a"},
        {"a/b": "b", "b/a": "a"},
        {"a/9.png": "a/0.png", "b/9.png": "a/1.png"},
        {"a/9.png": "a/9.png", "b/9.png": "nowhere.png", "d": "nowhere"},
        {"a/outside": "../outside", "b/again": "../outside"},
    ],
)
def test_links_bring_no_image_twice_and_end(tmp_path, links):
    root = tmp_path / "data"
    write(root / "a", root / "b", tmp_path / "outside", many=4)
    for name, target in links.items():
        (root / name).symlink_to(os.path.normpath(root / target))
    data = instantiate(root)
    outside = 4 if "a/outside" in links else 0
    assert total(data) == 8 + outside
    found = images(data)
    assert found["train", "b"] + found.get(("val", "b"), 0) == 4
    assert len(data.class_names) == 2 and "passed over: " in data.describe()


def test_a_hard_link_counts_once_and_a_real_file_before_a_link(tmp_path):
    write(tmp_path / "b", tmp_path / "c", many=4)
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "own.png")
    (tmp_path / "a" / "linked.png").symlink_to(tmp_path / "b" / "0.png")
    os.link(tmp_path / "b" / "1.png", tmp_path / "c" / "hard.png")
    data = instantiate(tmp_path)
    sizes = np.bincount(np.concatenate([files.labels for files in data.files.values()]))
    assert total(data) == 9 and sizes.tolist() == [1, 4, 4]
    assert "passed over: 2 repeated images" in data.describe()


def test_a_farm_of_links_is_a_data_set(tmp_path):
    write(tmp_path / "all" / "x", many=8)
    for i in range(6):
        link = tmp_path / "some" / "ab"[i % 2] / f"{i}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "all" / "x" / f"{i}.png")
    data = instantiate(tmp_path / "some")
    assert total(data) == 6 and data.class_names == ("a", "b")
    (tmp_path / "linked").mkdir()
    for split in ("train", "val"):
        write(tmp_path / "far" / split / "cat", many=3)
        (tmp_path / "linked" / split).symlink_to(tmp_path / "far" / split)
    assert images(instantiate(tmp_path / "linked")) == {("train", "cat"): 3, ("val", "cat"): 3}


def test_no_held_out_image_is_trained_on(tmp_path):
    write(tmp_path / "train" / "a", tmp_path / "val" / "a", many=3)
    os.link(tmp_path / "train" / "a" / "0.png", tmp_path / "val" / "a" / "same.png")
    (tmp_path / "train" / "a" / "more").symlink_to(tmp_path / "val" / "a")
    assert images(instantiate(tmp_path)) == {("train", "a"): 3, ("val", "a"): 3}
    other = tmp_path / "other"
    write(other / "train" / "a", many=3)
    (other / "val").symlink_to(other / "train")
    with pytest.raises(UserError, match=r"val holds no images of its own"):
        instantiate(other)
    (other / "val").unlink()
    (other / "val" / "a").mkdir(parents=True)
    for i in range(3):
        (other / "val" / "a" / f"{i}.png").symlink_to(other / "train" / "a" / f"{i}.png")
    with pytest.raises(UserError, match=r"val holds no images that .*train has not"):
        instantiate(other)


def test_what_is_passed_over_is_counted_and_named(tmp_path):
    for i, name in enumerate(["cat", "dog", "eel"]):
        write(tmp_path / name / "x", many=20)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / name / "one.TIFF")
    for i in range(88):
        (tmp_path / "cat" / f"{i}.txt").touch()
    for name in (".hidden.png", "Thumbs.db", "noext", "odd.a b", "line.\n"):
        (tmp_path / "dog" / name).touch()
    write(tmp_path / "@eaDir" / "thumb.png", tmp_path / ".cache" / "x.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "heic").mkdir()
    (tmp_path / "heic" / "x.heic").touch()
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    data = instantiate(tmp_path, held_out=0.1)
    assert data.class_names == ("cat", "dog", "eel")
    told = data.describe()
    start = "63 images, 3 classes, 6 held out (by a hash of their paths); passed over: 88 .txt, 3"
    assert told.startswith(start)
    assert "; without images: empty, heic" in told and told.isprintable()
    for kind in ("1 .db", "1 without extension", "2 of other kinds", "1 .heic", "1 special file"):
        assert kind in told or "more" in told
    write(tmp_path / "whole" / "a", many=4)
    assert "; nothing passed over" in instantiate(tmp_path / "whole" / "a").describe()
    with pytest.raises(UserError, match=r"no images in .*heic \(passed over: 1 \.heic\)"):
        instantiate(tmp_path / "heic")


NAMED = {
    "train": ["train", "Train", "TRAINING", "train2017", "training_set", "ILSVRC2012_img_train"],
    "val": ["val", "Valid", "validation", "dev", "val2017", "held-out", "imagenet-val"],
    "test": ["test", "Testing", "test_set", "seg_test"],
    None: ["cat", "trains", "invalid", "train_station", "tests", "n01440764", "tést", "2", "data"],
}


def test_the_usual_names_of_splits():
    for wanted, names in NAMED.items():
        assert [role(name) for name in names] == [wanted] * len(names)


@pytest.mark.parametrize(
    ("folders", "train", "val", "told"),
    [
        (["train"], None, None, "by a hash of their paths"),
        (["Train", "Test"], 6, 6, "(from Test/)"),
        (["training", "testing"], 6, 6, "(from testing/)"),
        (["train", "dev"], 6, 6, "(from dev/)"),
        (["train", "val", "test"], 6, 6, "not read: test"),
        (["train", "val", "masks"], 6, 6, "not read: masks"),
        (["training_set/training_set", "test_set/test_set"], 6, 6, "(from test_set/test_set/)"),
    ],
)
def test_splits_are_recognised(tmp_path, folders, train, val, told):
    for folder in folders:
        write(tmp_path / folder / "cat", tmp_path / folder / "dog", many=3)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").touch()
    data = instantiate(tmp_path)
    assert data.class_names == ("cat", "dog") and told in data.describe()
    sizes = [len(data.split(name)) for name in ("train", "val")]
    assert sizes == ([train, val] if train else [4, 2])
    assert instantiate(tmp_path, class_folders=False).num_classes == 1
    every = instantiate(tmp_path, split_folders=False, class_folders=False)
    assert total(every) == 6 * len(folders)


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (["val/cat"], r"holds val but no train; give --data\.root \S*val"),
        (["test/cat", "cat", "dog"], r"holds test beside|holds test but no train beside cat, dog"),
        (["train/a", "Train/a", "val/a"], "Train, train, which could each be the same split"),
        (["train/a", "val/a", "dev/a"], "dev, val, which could each be the same split"),
        (["train/a", "car/a"], r"holds train with folders of images beside car; give --data\.root"),
        (["set/train/cat", "set/val/cat"], r"set holds train, val; give --data\.root \S*set"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "splits inside cat, dog; the folders"),
    ],
)
def test_what_could_be_splits_or_classes_is_asked(tmp_path, folders, says):
    for folder in folders:
        write(tmp_path / folder, many=3)
    with pytest.raises(UserError, match=says) as error:
        instantiate(tmp_path)
    assert "split_folders false" in str(error.value) or "--data.root" in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    data = instantiate(tmp_path, split_folders=False)
    assert data.class_names == tuple(sorted({folder.split("/")[0] for folder in folders}))


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path / "train", tmp_path / "car", tmp_path / "bus", many=3)
    assert instantiate(tmp_path).class_names == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("train", "val", "says"),
    [
        (["cat", "dog"], [""], "outside of class folders, and .* 2 classes; .*class_folders false"),
        (["cat", "dog"], ["cat", "eel", "fox"], "'eel' and 1 more classes, .*valid: cat, dog"),
        (["Cat", "dog"], ["cat"], r"has a class 'cat', .*train 'Cat'; give both one name"),
        ([f"{i:04d}" for i in range(300)], ["cat"], "valid: 0000, .* and 295 more"),
        ([f"{i:04d}" for i in range(300)], [""], "300 classes"),
    ],
)
def test_classes_that_do_not_fit_are_told_shortly(tmp_path, train, val, says):
    root = tmp_path / "r"
    write(*(root / "train" / name for name in train), *(root / "val" / name for name in val))
    with pytest.raises(UserError, match=says) as error:
        instantiate(root)
    assert len(str(error.value)) < 500
    if val == [""]:
        assert instantiate(root / "train").num_classes == len(train)
        assert instantiate(root, class_folders=False).num_classes == 1


def test_a_class_without_held_out_images_is_named(tmp_path):
    write(tmp_path / "train" / "cat", tmp_path / "train" / "dog", tmp_path / "val" / "cat")
    data = instantiate(tmp_path)
    assert images(data) == {("train", "cat"): 1, ("train", "dog"): 1, ("val", "cat"): 1}
    assert "; none held out of: dog" in data.describe()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a", tmp_path / "b", many=2)
    scandir = os.scandir

    def refuse(place):
        if os.path.basename(place) == "b":
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list image folder \S*b: Permission denied"):
        instantiate(tmp_path)


STRANGE = [
    "café",
    "猫",
    "a b",
    "new\nline",
    os.fsdecode(b"latin-\xe9"),
    "x" * 200,
    "$m_1^2$",
    "1e3",
]


def test_any_name_is_read(tmp_path):
    for name in STRANGE:
        write(tmp_path / name / f"{name}.png", tmp_path / name / "other.png")
    data = instantiate(tmp_path)
    assert data.class_names == tuple(sorted(STRANGE)) and total(data) == 2 * len(STRANGE)
    assert data.describe().isprintable()


def test_paths_are_held_in_one_buffer():
    names = sorted([*STRANGE, *(f"n{i:08d}/{i:08d}.JPEG" for i in range(2000))])
    paths = Paths(names)
    assert list(paths) == names and len(paths) == len(names) and paths[-1] == names[-1]
    with pytest.raises(IndexError):
        paths[len(names)]
    characters = sum(len(os.fsencode(name)) for name in names)
    assert len(pickle.dumps(paths)) < characters + 9 * len(names)


@pytest.mark.slow
def test_every_command_says_once_what_it_reads(tmp_path, tiny, capsys):
    write(tmp_path / "train" / "a", tmp_path / "val" / "a", many=2)
    (tmp_path / "readme.txt").touch()
    said = "data: 4 images, 1 class, 2 held out (from val/); passed over: 1 .txt\n"
    instantiate(tmp_path).announce()
    assert capsys.readouterr() == ("", said)
    choice = {"class_path": "ImageFolder", "init_args": {"root": str(tmp_path), "size": 4}}
    driver._announce(SimpleNamespace(points=(), config={"data": choice}))
    assert capsys.readouterr() == ("", said)
    _, n = make_reference.source(str(tmp_path), 4, 0)
    assert n == 4 and capsys.readouterr().err == "data: 4 images; passed over: 1 .txt\n"
    run(tiny(experts=2, trainer__max_steps=1), tmp_path / "run")
    assert capsys.readouterr().err.count("data: 1,797 images, 10 classes, 360 held out\n") == 1


def test_images_of_any_depth_of_folders_keep_the_class_of_the_first(tmp_path):
    write(tmp_path / "a" / "x" / "y" / "z", tmp_path / "b", many=2)
    data = instantiate(tmp_path)
    assert data.class_names == ("a", "b")
    assert torch.equal(
        torch.tensor(sorted(label for s in data.files.values() for _, label in s)),
        torch.tensor([0, 0, 1, 1]),
    )
