"""make_latents.py ends with a command that trains from the store."""

import shlex

import pytest

import make_latents
from dtr_lightning.config.parser import make_parser, parse
from dtr_lightning.data.store import Manifest
from tests.conftest import ROOT

SHAPES = [
    *(("Pixels", (c, side, side), (c, side, side)) for c in (1, 3) for side in (6, 8, 32, 64, 256)),
    *(("VAE", (4, side, side), (3, 8 * side, 8 * side)) for side in (4, 7, 8, 32, 64)),
    ("VAE", (4, 8, 8), (1, 32, 32)),
]


@pytest.mark.parametrize("classes", [1, 10, 1000])
@pytest.mark.parametrize(("codec", "shape", "image_shape"), SHAPES)
def test_the_config_that_is_named_fits_the_store(monkeypatch, codec, shape, image_shape, classes):
    names = tuple(map(str, range(classes)))
    store = Manifest(codec, shape, image_shape, 90, 9, False, names, 64)
    monkeypatch.chdir(ROOT)
    words = shlex.split(f"--config {make_latents.fitting(store)} --data.root DIR")
    config = parse(make_parser(), words).config
    assert config["data"]["class_path"] == ("PixelStore" if codec == "Pixels" else "Latents")
    published = words[1].startswith("configs/paper/")
    schedule = "linear" if codec == "VAE" and not published else "cosine"
    assert config["diffusion"]["init_args"]["schedule"] == schedule
    model, features = config["model"]["init_args"], config["features"]["class_path"]
    assert shape[-1] % model["patch_size"] == 0
    side = {"DigitsFeatures": 8, "MNISTFeatures": 32}.get(features)
    assert side is None or (image_shape == (1, side, side) and classes == 10)


@pytest.mark.parametrize("config", ["images_small", "images", "mnist_latents"])
@pytest.mark.parametrize(
    "words",
    [
        ["--features", "TimmFeatures"],
        ["--features=TimmFeatures", "--features.size=96", "--evaluation.reference", "500"],
        ["--features", "InceptionFeatures", "--evaluation.reference_split", "val"],
    ],
)
def test_the_command_scores_as_the_reference_was_kept(monkeypatch, config, words):
    monkeypatch.chdir(ROOT)
    config = f"configs/{config}.yaml"
    kept = make_parser(groups=("features", "evaluation")).parse_args(words).as_dict()
    printed = make_latents.scoring(config, words)
    scored = parse(make_parser(), ["--config", config, *printed]).config
    assert printed[: len(words)] == words
    assert scored["features"]["init_args"] == kept["features"].get("init_args", {})
    for key in ("reference", "reference_split"):
        assert scored["evaluation"][key] == kept["evaluation"][key]


def test_captions_go_with_a_network_that_reads_them(monkeypatch):
    store = Manifest("VAE", (4, 32, 32), (3, 256, 256), 9, 9, False, ("",), 64, captions=5)
    monkeypatch.chdir(ROOT)
    config = parse(make_parser(), ["--config", make_latents.fitting(store)]).config
    chosen = (config["data"]["class_path"], config["model"]["class_path"])
    assert chosen == ("CaptionedLatents", "TextDiT")
