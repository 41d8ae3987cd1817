"""Laws of the notes on numbers: each has its condition, which stored results are judged by."""

import math

import numpy as np
import pytest
from PIL import Image

from dtr_lightning.config.parser import resolve
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.notes import MEANINGLESS, notes_of
from dtr_lightning.metrics import TimmFeatures
from tests.conftest import ROOT, TINY

SOUND = {
    **{"score_name": "fd", "score": 1.2, "n": 1800, "reference_n": 1437, "num_features": 48},
    **{"floor": 0.4, "floor_n": 360, "accuracy": 0.97, "copies": 0.01, "chance": 0.1},
    **{"num_classes": 10, "class_images": [140, 146], "imbalance": 0.01, "initial_share": 1e-4},
    **{"copies_n": 1437},
    **{"smoke": False, "extractor_random": False, "protocol": {"labels": "balanced"}},
}
CASES = [
    ("smoke", {"smoke": True}, {"smoke": False}),
    ("random", {"extractor_random": True}, {"extractor_random": False}),
    ("random", {"extractor_random": None, "score_name": "fd_x_untrained"}, {"score_name": "fd_x"}),
    ("few_samples", {"n": 48, "copies": 0}, {"n": 361}),
    ("few_references", {"reference_n": 48, "copies_n": 48}, {"reference_n": 49, "copies_n": 49}),
    ("few_floor", {"floor_n": 360, "num_features": 360}, {"num_features": 359}),
    ("few_held_out", {"floor_n": 99}, {"floor_n": 100}),
    ("few_thumbnails", {"copies_n": 1436}, {"copies_n": 1437}),
    ("unbalanced", {"imbalance": 0.06}, {"imbalance": 0.05}),
    ("few_per_class", {"num_classes": 1801}, {"num_classes": 1800}),
    ("initial", {"initial_share": 0.11}, {"initial_share": 0.1}),
    ("rare", {"imbalance": 0.06, "protocol": {"labels": "proportional"}}, {"imbalance": 0.05}),
    ("below", {"score": 0.399}, {"score": 0.4}),
    ("far", {"score": 8.0}, {"score": 7.99}),
    ("copies", {"copies": 0.051}, {"copies": 0.05}),
    # 1,800 samples: the share that is right by chance has the standard deviation 0.0071
    ("chance", {"accuracy": 0.114}, {"accuracy": 0.1142}),
    ("chance", {"accuracy": 0.0}, {"accuracy": None}),
]


@pytest.mark.parametrize("name, wrong, right", CASES, ids=lambda value: str(value)[:24])
def test_every_note_has_its_condition(name, wrong, right):
    assert notes_of(SOUND) == {}
    ((noted, sentence),) = notes_of(SOUND | wrong).items()
    assert noted == name and "{" not in sentence
    assert notes_of(SOUND | right) == {}


def test_what_is_not_stored_is_not_judged():
    assert notes_of({}) == {} and MEANINGLESS < {name for name, *_ in CASES}
    assert notes_of(dict.fromkeys(SOUND)) == {}
    for key in SOUND:
        assert not notes_of({k: v for k, v in SOUND.items() if k != key})
    assert notes_of(SOUND | {"score": math.nan, "accuracy": math.nan, "floor": 0.0}) == {}


def test_sentences_are_one_line_each_and_can_be_joined():
    everything = {key: value for _, wrong, _ in CASES[:10] for key, value in wrong.items()}
    sentences = notes_of(SOUND | everything).values()
    assert len(sentences) > 6
    assert all(";" not in line and "\n" not in line and line[-1] != "." for line in sentences)


def test_what_few_held_out_images_measure():
    limited = notes_of(SOUND | {"floor_n": 64, "held_out_n": 360})
    assert "loss" not in limited["few_held_out"]
    assert "loss" in notes_of(SOUND | {"floor_n": 64, "held_out_n": 64})["few_held_out"]


@pytest.mark.parametrize("labels, noted", [
    ("balanced", True), ("proportional", False),
    ("sample i is of class i mod num_classes", True),  # of older results
])  # fmt: skip
def test_balanced_labels_on_unbalanced_data(labels, noted):
    results = SOUND | {"imbalance": 0.45, "class_images": [50, 950], "protocol": {"labels": labels}}
    assert ("unbalanced" in notes_of(results)) == noted
    assert not noted or "50 to 950 a class" in notes_of(results)["unbalanced"]


def test_facts_of_unbalanced_images(tmp_path):
    for name, count in (("common", 38), ("rare", 2)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "train" / name / f"{i}.png")
    (tmp_path / "val" / "rare").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "rare" / "0.png")
    data = {"data.root": str(tmp_path), "data.size": 8, "data.workers": 0}
    features = {"features": "TimmFeatures", "features.size": 32, "features.model": "test_resnet"}
    tiny = {"model": "DiT", **TINY, **data, **features, "evaluation.reference": 20}
    experiment = Experiment(resolve(ROOT / "configs" / "images.yaml", tiny))
    facts = experiment.facts() | experiment.scoring()
    assert facts["class_images"] == [2, 38] and facts["imbalance"] == pytest.approx(0.45)
    assert (facts["num_classes"], facts["reference_n"], facts["floor_n"]) == (2, 20, 1)
    even = experiment.describe()["labels"] != "proportional"
    assert facts["chance"] == pytest.approx(0.5 if even else 0.95**2 + 0.05**2)
    few = {"few_references", "few_samples", "few_held_out", "few_floor", "random"}
    assert few <= notes_of(facts).keys()


def test_features_say_whether_their_weights_are_random(tmp_path):
    from safetensors.torch import save_file

    untrained = TimmFeatures("test_resnet", size=32)
    save_file(untrained.net.state_dict(), tmp_path / "w.safetensors")
    stored = TimmFeatures("test_resnet", weights=str(tmp_path / "w.safetensors"), size=32)
    for features, random in ((untrained, True), (stored, False)):
        assert features.describe()["extractor_random"] is random
        assert ("random" in notes_of({"n": 9_000, **features.describe()})) == random


def test_chance_holds_its_level():
    """Of samples that ignore their class, no more than one in twenty escapes."""
    rng = np.random.default_rng(0)
    right = rng.binomial(500, 0.1, 2000) / 500
    told = ["chance" in notes_of(SOUND | {"n": 500, "accuracy": float(share)}) for share in right]
    assert np.mean(told) > 0.95
