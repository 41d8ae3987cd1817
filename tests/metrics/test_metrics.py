"""Laws of the scores: golden distances, the shipped classifier, what a score must notice."""

import itertools
import json
import multiprocessing
import socket
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dtr_lightning.data import MNIST, Digits, to_float, to_uint8
from dtr_lightning.errors import UserError
from dtr_lightning.metrics import (
    BoundedRows,
    ClassifierScore,
    DigitsFeatures,
    Features,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    MNISTFeatures,
    PrecisionRecall,
    Scorer,
    TimmFeatures,
    frechet_distance,
    inception_score,
    precision,
    precision_recall,
)
from dtr_lightning.metrics import scorer as scorer_module
from dtr_lightning.metrics.copies import nearest, thumbnails

GOLDEN = Path(__file__).parent.parent / "golden" / "metrics"
SETS = np.load(GOLDEN / "distances.npz")
VALUES = json.loads((GOLDEN / "distances.json").read_text())
SAMPLES = np.load(GOLDEN / "samples.npz")
SAMPLE_VALUES = json.loads((GOLDEN / "samples.json").read_text())


@pytest.fixture(scope="module")
def data():
    return Digits()


@pytest.fixture(scope="module")
def held_out(data):
    return data.split("val").tensors


@pytest.fixture(scope="module")
def scorer(data, held_out):
    scorer = Scorer(DigitsFeatures(), data)
    scorer.update(*held_out)
    return scorer


def score(scorer, images, labels=None):
    scorer.reset()
    scorer.update(images, labels)
    return scorer.compute()


def golden(name):
    return (torch.from_numpy(SETS[f"{name}_{side}"]) for side in "ab")


def filled(metric, a, b):
    for chunk in a.split(37):  # states add up over batches
        metric.update(chunk, real=True)
    metric.update(b, real=False)
    return metric


@pytest.mark.parametrize("name", VALUES)
def test_frechet_distance_equals_the_golden(name):
    a, b = golden(name)
    metric = filled(FrechetDistance(a.shape[1]), a, b)
    assert metric.compute().item() == pytest.approx(VALUES[name]["fid_official_float64"], rel=1e-6)
    moments = [m for x in (a.double(), b.double()) for m in (x.mean(0), torch.cov(x.T))]
    value = frechet_distance(*moments).item()
    assert value == pytest.approx(VALUES[name]["fid_svd_float64"], rel=1e-8)
    metric.reset()
    metric.update(a, real=False)
    assert metric.compute() < 1e-6  # of a set to itself, and the real side survived the reset


def test_kernel_distance_equals_the_golden():
    a, b = golden("fid64_deficient")  # 50 and 50: a subset of at most 1,000 is all of them
    state = torch.get_rng_state()
    mean, spread = filled(KernelDistance(64, subsets=3), a, b).compute()
    expected = VALUES["fid64_deficient"]["kid_unbiased"]
    assert mean.item() == pytest.approx(expected, rel=1e-9) and spread < 1e-12
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("order", ["file", "class_sorted"])
@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_equals_the_golden(splits, order):
    probs, expected = SAMPLES["is_probs"], SAMPLE_VALUES["is"]
    if order == "class_sorted":
        probs = probs[np.argsort(probs.argmax(1), kind="stable")]
        expected = expected[order]
    logits = torch.from_numpy(probs).log() + 3  # a softmax does not see the 3
    split = len(logits) // splits
    mean, std = inception_score(logits, split)
    streamed = InceptionScore(split)
    for part in logits.split(split // 3 + 1):  # batches that end within a split, or over two
        streamed.update(part)
    assert streamed.compute() == pytest.approx((mean, std), rel=1e-9, abs=1e-12)
    assert mean == pytest.approx(expected[f"splits_{splits}"]["mean"], rel=1e-9)
    assert std == pytest.approx(expected[f"splits_{splits}"]["std"], rel=1e-9, abs=1e-12)


def test_a_certain_classifier_of_equal_classes_scores_their_number():
    logits = 1e4 * torch.eye(7).repeat(3, 1)
    assert inception_score(logits)[0] == pytest.approx(7)
    metric = ClassifierScore(7)
    for part in logits.split(4):
        metric.update(part)
    assert metric.compute() == pytest.approx(7)


@pytest.mark.parametrize("blocks", [(1024, 4096), (50, 70)], ids=["whole", "blocks"])
@pytest.mark.parametrize("name", ["pr", "pr_small"])
def test_precision_and_recall_equal_the_golden(name, blocks, monkeypatch):
    monkeypatch.setattr(precision, "ROWS", blocks[0])
    monkeypatch.setattr(precision, "COLUMNS", blocks[1])
    real, fake = (torch.from_numpy(SAMPLES[f"{name}_{side}"]) for side in ("ref", "gen"))
    radii = torch.from_numpy(SAMPLES[f"{name}_radii_sq_ref"])
    assert torch.allclose(precision.radii(real, 3).float(), radii, rtol=2e-6)
    expected = SAMPLE_VALUES[name]
    assert precision_recall(real, fake) == (expected["precision"], expected["recall"])
    metric = PrecisionRecall()
    for part in real.split(37):
        metric.update(part, real=True)
    for _ in range(2):  # the real side survives a reset
        metric.update(fake, real=False)
        assert metric.compute() == (expected["precision"], expected["recall"])
        metric.reset()


def test_precision_sees_what_is_wrong_and_recall_what_is_missing():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=generator)
    real[100:] += 50
    assert precision_recall(real, real) == (1, 1)
    precision, recall = precision_recall(real, real[:100])
    assert precision == 1 and recall == 0.5
    assert precision_recall(real, real + 1000) == (0, 0)
    collapsed = real[:1].expand(50, -1)
    precision, recall = precision_recall(real, collapsed)
    assert precision == 1 and recall == 1 / 200
    with pytest.raises(UserError, match="at least 4 images"):
        precision_recall(real, real[:3])


CLASSIFIERS = pytest.mark.parametrize(
    ("cls", "source", "least"), [(DigitsFeatures, Digits, 0.98), (MNISTFeatures, MNIST, 0.97)]
)


@CLASSIFIERS
def test_the_shipped_card_tells_the_truth(cls, source, least):
    card = resources.files("dtr_lightning.metrics") / f"{cls.name}.json"
    card = json.loads(card.read_text())
    features = cls()
    images, labels = source().split("val").tensors
    right = features.logits(features(images)).argmax(1) == labels
    near = 1 / len(labels)
    assert right.float().mean().item() == pytest.approx(card["held_out_accuracy"], abs=near)
    assert card["held_out_accuracy"] >= least and card["held_out_images"] == len(labels)
    assert card["features"] == features.num_features == features(images).shape[1]


@pytest.mark.slow
@CLASSIFIERS
def test_the_features_of_shipped_classifiers_are_standardised(cls, source, least):
    features = cls()(source().split("train").tensors[0])
    assert features.mean(0).abs().max() < 1e-3
    assert (features.var(0) - 1).abs().max() < 1e-2


@pytest.mark.slow
def test_mnist_is_scored_as_the_digits_are():
    data = MNIST()
    images, labels = data.split("val").tensors
    scorer = Scorer(MNISTFeatures(), data)
    scorer.update(images, labels)
    result = scorer.compute()
    assert result["name"] == "fd_mnist_v1"
    assert result["score"] == pytest.approx(result["floor"], rel=1e-9)
    assert (result["n"], result["floor_n"], result["reference_n"]) == (1000, 1000, 4000)
    assert result["accuracy"] >= 0.97 and abs(result["copies"] - 0.01) < 0.005
    ink = images.flatten(1).float().mean(1)
    scorer.reset()
    scorer.update(images[ink > ink.median()])  # real, but the bold half of them
    assert scorer.compute()["score"] > 5 * result["floor"]


def test_the_floor_is_the_score_of_held_out_images(scorer, held_out):
    result = score(scorer, *held_out)
    assert result["name"] == "fd_digits_v1"
    assert result["score"] == pytest.approx(result["floor"], rel=1e-9)
    assert (result["n"], result["floor_n"], result["reference_n"]) == (360, 360, 1437)
    assert result["accuracy"] >= 0.98 and abs(result["copies"] - 0.01) < 0.005
    assert abs(result["kid"]) < 0.05
    assert 0.7 < result["precision"] < 1 and 0.7 < result["recall"] < 1
    assert 9 < result["classifier_score"] < 10
    assert json.loads(json.dumps(result)) == result


def test_copies_beat_the_floor_and_are_called_copies(scorer, data):
    images, labels = data.split("train").tensors
    result = score(scorer, images, labels)
    assert result["copies"] == 1 and result["score"] < 1e-6 < result["floor"]
    assert result["precision"] == result["recall"] == 1


def test_a_score_grows_with_what_is_wrong(scorer, held_out):
    images, labels = held_out
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    results = [
        score(scorer, to_uint8(to_float(images) + level * noise), labels) for level in (0.1, 0.3, 1)
    ]
    scores = [results[0]["floor"], *(r["score"] for r in results)]
    assert all(b > 1.2 * a for a, b in itertools.pairwise(scores))
    assert results[-1]["accuracy"] < 0.8 and results[-1]["copies"] == 0
    few = torch.cat([(labels == c).nonzero()[:4, 0].repeat(9) for c in range(10)])
    assert score(scorer, images[few], labels[few])["score"] > 5 * results[0]["floor"]
    wrong = score(scorer, images, (labels + 1) % 10)
    assert wrong["accuracy"] < 0.02 and wrong["score"] == pytest.approx(wrong["floor"], rel=1e-9)


def test_a_score_does_not_depend_on_batches(scorer, held_out):
    images, labels = held_out
    whole = score(scorer, images, labels)
    scorer.reset()
    for part in zip(images.split(100), labels.split(100), strict=True):
        scorer.update(*part)
    parts = scorer.compute()
    assert parts.pop("name") == whole.pop("name")
    assert parts == pytest.approx(whole, rel=1e-6, abs=1e-7)


def test_what_was_not_measured_is_none_or_an_error(data, held_out):
    scorer = Scorer(DigitsFeatures(), data, limit=200, kid_subsets=0)
    with pytest.raises(UserError, match="none were given"):
        scorer.compute()
    with pytest.raises(UserError, match="at least 2 samples"):
        score(scorer, held_out[0][:1])
    result = score(scorer, held_out[0])
    assert result["accuracy"] is None and "kid" not in result
    few = score(scorer, held_out[0][:3])
    assert few["precision"] is None and few["recall"] is None
    assert result["reference_n"] == result["floor_n"] == 200
    for options in ({"limit": 1}, {"kid_subsets": -1}):
        with pytest.raises(UserError, match="not valid"):
            Scorer(DigitsFeatures(), data, **options)


def test_nearest_distances_are_those_of_cdist():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 256, (n, 3, 8, 8), generator=generator) for n in (40, 70))
    rows, references = (thumbnails(x.to(torch.uint8)) for x in (a, b))
    exact = torch.cdist(rows.double(), references.double()).amin(1)
    assert torch.allclose(nearest(rows, references).double(), exact, rtol=1e-5)
    assert nearest(rows, rows).max() == 0
    big = torch.full((2, 3, 64, 48), 7, dtype=torch.uint8)
    assert thumbnails(big).shape == (2, 3 * 32 * 32) and (thumbnails(big) == 7).all()


class Mean(Features):
    """The least a person writes for features of their own."""

    name = "fd_mean"
    num_features = 3

    def __init__(self):
        super().__init__()
        self.freeze()

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.float(), (1, 3)).flatten(1)


def test_any_features_score_any_data(data, held_out):
    result = score(Scorer(Mean(), data), *held_out)
    assert result["name"] == "fd_mean" and result["accuracy"] is None
    assert result["classifier_score"] is None
    assert result["score"] == pytest.approx(result["floor"])


def test_a_score_states_reference_extractor_and_resize(data, tmp_path):
    stated = Scorer(DigitsFeatures(), data).describe()
    assert stated["reference"] == "Digits, training split"
    assert stated["num_features"] == 48 and "sha256" in stated["extractor_weights"]
    stated = Scorer(TimmFeatures("test_resnet", size=32), data).describe()
    assert stated["extractor"] == "timm test_resnet, pooled"
    assert stated["extractor_weights"] == "random, seed 0"
    assert stated["extractor_resize"] == "bilinear to 32x32, no antialiasing"
    assert Scorer(Mean(), data).describe()["extractor"] == "Mean"


class Many(Digits):
    """Digits of noise, as many as asked for."""

    def __init__(self, n):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.splits = {
            name: TensorDataset(
                torch.randint(0, 256, (size, 1, 8, 8), generator=generator).to(torch.uint8),
                torch.zeros(size, dtype=torch.long),
            )
            for name, size in (("train", n), ("val", n // 2))
        }


def held(thing, seen=None):
    """Returns the bytes of all tensors that an object holds, but for its data and features."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (Features, Digits)):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return thing.untyped_storage().nbytes()
    parts = thing if isinstance(thing, (list, tuple, set)) else getattr(thing, "__dict__", thing)
    values = parts.values() if isinstance(parts, dict) else parts
    return sum(held(x, seen) for x in values) if isinstance(parts, (dict, list, tuple, set)) else 0


@pytest.mark.slow
def test_memory_of_a_score_does_not_grow_with_the_images(monkeypatch):
    """All metrics: sums, or as many rows as their limit; here 300, of copies 500."""
    monkeypatch.setattr(BoundedRows.__init__, "__defaults__", (300, 0))
    monkeypatch.setattr(scorer_module, "LIMIT", 300)
    monkeypatch.setattr(scorer_module, "TRAIN", 500)
    sizes = []
    for n in (2000, 6000):
        scorer = Scorer(DigitsFeatures(), data := Many(n), kid_subsets=2)
        for images in data.split("train").tensors[0].split(500):
            scorer.update(images)
        result = scorer.compute()
        assert result["n"] == result["reference_n"] == n and result["copies_n"] == 500
        sizes.append(held(scorer))
    assert sizes[0] == sizes[1]


class Foreign(Mean):
    """A classifier of other classes than the data's."""

    def logits(self, features):
        return features


def test_a_classifier_of_other_classes_has_no_accuracy(data, held_out):
    result = score(Scorer(Foreign(), data), *held_out)
    assert result["accuracy"] is None and result["classifier_score"] >= 1


def small(scorer):
    """Makes a scorer keep fewer rows than it is given."""
    for name, sides in (("near", ("real", "fake")), ("kid", ("real_features", "fake_features"))):
        for side in sides:
            getattr(scorer.metrics[name], side).limit = 250
    return scorer


def share(rank, port, images, labels, queue):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    scorer = small(Scorer(DigitsFeatures(), Digits()))
    first, last = (0, 100) if rank == 0 else (100, None)
    scorer.next_index = first
    scorer.update(images[first:last], labels[first:last])
    result = scorer.compute()
    queue.put((result, scorer.copies.threshold.item()))
    torch.distributed.destroy_process_group()


def test_ranks_together_score_as_one(data, held_out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds
    queue = context.Queue()
    ranks = [
        context.Process(target=share, args=(rank, port, *held_out, queue)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    results = [queue.get(timeout=20) for _ in ranks]
    for rank in ranks:
        rank.join()
    scorer = small(Scorer(DigitsFeatures(), data))
    scorer.update(*held_out)
    one = scorer.compute()
    for result, threshold in results:
        assert threshold == scorer.copies.threshold.item()
        assert result.pop("name") == one["name"]
        assert result == pytest.approx({key: one[key] for key in result}, rel=1e-6)
