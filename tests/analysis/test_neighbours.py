"""Neighbours in feature space, the rule of copies beside them, and class sheets."""

import numpy as np
import pytest
import torch

from analysis.drawing.style import WIDE
from analysis.probes import classes, neighbours
from analysis.probes.neighbours import Reference, nearest
from analysis.read.runs import read
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import fit
from dtr_lightning.metrics.copies import thumbnails
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis.synthetic_runs import make_run
from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.usefixtures("empty_pdfs")
AXES = {
    "data": {"class_path": "Digits", "init_args": {}},
    "features": {"class_path": "DigitsFeatures", "init_args": {}},
    "evaluation": {"n": 1797, "seed": 0, "reference": 200},
}


def finished(root):
    return read(find_runs([root]), records=False).finished


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("r") / "r", **AXES)
    return Reference.of(finished(run.path)[0])


def images_of(reference, positions):
    train = reference.data.split("train")
    places = reference.indices(torch.tensor(positions))
    return torch.stack([train[i][0] for i in places.tolist()])


def test_reference_is_that_of_the_score(reference):
    assert reference.size == len(reference.copies.train) == 200
    images, _ = map(torch.cat, zip(*reference.data.image_batches("train", 200), strict=True))
    assert torch.equal(images, images_of(reference, list(range(200))))


@pytest.mark.parametrize("batch", [512, 64, 2])
def test_nearest_equals_brute_force(reference, batch, monkeypatch):
    monkeypatch.setattr("dtr_lightning.data.base.REFERENCE_BATCH", batch)
    images = torch.cat([x for x, _ in reference.data.image_batches("val", 12)])
    found = nearest(images, reference, 3)
    train = images_of(reference, list(range(200)))
    vectors, others = (reference.features(x).double() for x in (images, train))
    gaps = (vectors[:, None] - others).norm(dim=2)
    order = gaps.argsort(1)[:, :3]
    assert torch.equal(found.indices, reference.indices(order))
    assert torch.allclose(found.features.double(), gaps.gather(1, order), rtol=1e-4)
    rows = thumbnails(images).double()
    pixels = (rows[:, None] - reference.copies.train.double()).norm(dim=2)
    assert torch.allclose(found.pixels.double(), pixels.gather(1, order), rtol=1e-4)
    assert torch.allclose(found.closest.double(), pixels.amin(1), rtol=1e-3)


def test_a_copy_is_its_own_neighbour_at_distance_zero(reference):
    images = images_of(reference, [3, 77])
    found = nearest(images, reference)
    assert found.indices[:, 0].tolist() == reference.indices(torch.tensor([3, 77])).tolist()
    assert found.features[:, 0].max() < 1e-2 and found.pixels[:, 0].max() == 0
    assert reference.copies(thumbnails(images)).all()


def test_copies_come_first_and_are_framed(tmp_path, reference):
    run = make_run(tmp_path / "r", "DTR", {"alpha": 4.0, "beta": 0.8}, **AXES)
    images, labels = (x.numpy().copy() for x in next(iter(reference.data.image_batches("val", 30))))
    images[[4, 9]] = images_of(reference, [3, 77]).numpy()
    np.savez(run.sample_arrays, images=images, labels=labels)
    runs = finished(tmp_path)
    figure, numbers, note, _ = neighbours.draw(runs)
    copies = reference.copies(thumbnails(torch.from_numpy(images)))
    assert set(numbers["sample"][numbers["copy"]]) >= {4, 9} and note == ""
    assert numbers["sample"].iloc[0] == 4 and numbers.closest_rms_grey.is_monotonic_increasing
    assert len(numbers) == neighbours.SAMPLES * neighbours.NEIGHBOURS
    assert f"{int(copies.sum())} of 30 samples copy" in figure.axes[0].get_title()
    first = numbers.groupby("sample").first()
    framed = int(first["copy"].sum()) + int((numbers.rms_grey <= numbers.threshold_rms_grey).sum())
    assert len(figure.axes[0].patches) == framed >= 4
    assert figure.get_figwidth() == pytest.approx(WIDE / 3) and len(figure.axes) == 1
    figure.canvas.draw()
    top = figure.axes[0].title.get_window_extent().y1
    assert figure.bbox.y1 - 20 < top < figure.bbox.y1
    train = reference.data.split("train")
    assert all(int(train[r.train_index][1]) == r.train_label for r in numbers.itertuples())


def test_differences_are_root_mean_squares_over_pixels_and_channels(tmp_path, reference):
    run = make_run(tmp_path / "r", **AXES)
    images, labels = (x.numpy() for x in next(iter(reference.data.image_batches("val", 12))))
    np.savez(run.sample_arrays, images=images, labels=labels)
    numbers = neighbours.draw(finished(tmp_path)).numbers
    train = reference.data.split("train")
    for row in numbers.itertuples():
        gap = images[row.sample].astype(float) - np.asarray(train[row.train_index][0])
        assert row.rms_grey == pytest.approx(np.sqrt(np.square(gap).mean()), rel=1e-4)
        assert 0 <= row.closest_rms_grey <= row.rms_grey * (1 + 1e-4) <= 255
    assert (numbers["copy"] == (numbers.closest_rms_grey <= numbers.threshold_rms_grey)).all()


def test_no_routing_and_the_best_are_shown(tmp_path):
    points = {"none": ("NoRouting", {}, 9.0), "rtr": ("RTR", {"beta": 0.8}, 8.0)}
    points |= {f"dtr{a}": ("DTR", {"alpha": a, "beta": 0.8}, a) for a in (1.0, 2.0, 4.0)}
    for name, (router, args, score) in points.items():
        make_run(tmp_path / name, router, args, score=score, **AXES)
    _, numbers, note, _ = neighbours.draw(finished(tmp_path))
    assert list(dict.fromkeys(numbers.run)) == ["none", "dtr1.0", "dtr2.0"]
    assert note == "settings not shown: 2; name their runs to show them"


def test_what_is_missing_is_told(tmp_path):
    run = make_run(tmp_path / "r")
    assert "names its data" in neighbours.needs(finished(tmp_path))
    run = make_run(tmp_path / "s", **AXES)
    assert neighbours.needs(finished(tmp_path)) is None
    run.sample_arrays.unlink()
    assert "stored samples" in neighbours.needs(finished(tmp_path))
    assert "checkpoint" in classes.needs(finished(tmp_path))


def test_class_sheets_hold_the_samples_of_the_evaluation(tmp_path):
    plain = {**TINY, "trainer.max_steps": 2, "evaluation.every": 0, "router": "DTR"}
    fit.run(resolve(ROOT / "configs" / "digits.yaml", plain), tmp_path / "run")
    figure, numbers, note, _ = classes.draw(finished(tmp_path), classes.ClassesConfig(3, 2))
    assert note == "" and numbers.label.tolist() == [0] * 4 + [3] * 4 + [6] * 4
    assert numbers["index"].tolist()[4:8] == [3, 13, 23, 33]
    with np.load(Run(tmp_path / "run").sample_arrays) as arrays:
        stored = arrays["images"]
    for ax, label in zip(figure.axes, (0, 3, 6), strict=True):
        picture = ax.images[0].get_array()
        assert ax.get_title() == f"class {label}" and picture.shape == (17, 17, 3)
        for j in (0, 1):
            own = picture[:8, 9 * j : 9 * j + 8, 0].astype(int)
            assert np.abs(own - stored[label + 10 * j, 0].astype(int)).max() <= 1


def test_protocol_of_class_sheets():
    with pytest.raises(UserError, match=r"classes\.side must be at least 1"):
        classes.ClassesConfig(side=0)
    sheet = classes.sheet(np.arange(4, dtype=np.uint8).repeat(3 * 4).reshape(4, 3, 2, 2), 2)
    assert sheet.shape == (5, 5, 3) and sheet[[0, 0, 4, 4], [0, 4, 0, 4], 0].tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert (sheet[2] == 255).all()
