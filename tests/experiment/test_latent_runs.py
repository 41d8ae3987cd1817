"""The whole path in latents: images, store, training, samples, scores; and what may go wrong."""

import json
import sys
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

import make_latents
from dtr_lightning.config.parser import resolve
from dtr_lightning.data import Digits, Latents
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.api import StoredRun
from dtr_lightning.experiment.fit import Stopped, run
from dtr_lightning.metrics import DigitsFeatures, Scorer
from dtr_lightning.rundir.arrays import read_arrays
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY
from tests.data.stores import contents
from tests.data.tiny_vae import tiny_vae
from tests.experiment.test_fit import STATE, assert_equal, trained


@pytest.fixture
def command(monkeypatch, capsys):
    """Returns a function that runs make_latents.py and returns its exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_latents.py", *map(str, arguments)])
        return make_latents.main(), *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of small images, a tiny VAE and a store of their latents."""
    top = tmp_path_factory.mktemp("latents")
    for i, label in enumerate(Digits().split("train").tensors[1][:80].tolist()):
        folder = top / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = Digits().split("train").tensors[0][i, 0].numpy()
        Image.fromarray(pixels).resize((20, 16)).save(folder / f"{i}.png")
    tiny_vae(top / "vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_latents.py", *map(str, options(top)), "--out", "x"])
        sys.argv[-1] = str(top / "store")
        assert make_latents.main() == 0
    return top


def options(top, size=8):
    images = [top / "images", "--size", size, "--held_out", 0.2, "--workers", 0]
    return [*images, "--vae", top / "vae"]


@pytest.fixture(scope="module")
def finished(made):
    config = resolve(
        ROOT / "configs" / "digits.yaml",
        TINY | {"data": "Latents", "data.root": str(made / "store"), "data.batch_size": 8},
    )
    return config, made / "run", run(config, made / "run")


@pytest.mark.slow
def test_a_run_in_latents_scores_decoded_images(finished):
    _, path, results = finished
    assert results["score"] > 0 and results["floor"] > 0 and results["reference_n"] == 64
    digest = json.loads((path.parent / "store" / "manifest.json").read_text())["vae"]
    protocol = results["protocol"]
    assert protocol["codec"] == "VAE" and protocol["vae"] == digest
    assert protocol["sampler.clip"] is False


def test_a_store_with_features_holds_what_a_first_score_leaves(
    finished, made, command, tmp_path, caplog
):
    (left,) = (made / "store").glob("reference-*")
    given = ["--features", "DigitsFeatures", "--evaluation.reference", 0]
    code, out, errors = command(*options(made), "--out", tmp_path / "store", *given)
    assert code == 0 and "100 %  reference" in errors
    assert out.rstrip().endswith("--features DigitsFeatures --evaluation.reference 0")
    (kept,) = (tmp_path / "store").glob("reference-*")
    assert kept.name == left.name
    for name, array in read_arrays(left).items():
        assert np.array_equal(read_arrays(kept)[name], array)
    store = Latents(tmp_path / "store")
    for limit, computed in ((None, False), (1000, False), (20, True), (20, False)):
        caplog.clear()
        Scorer(DigitsFeatures(), store, limit=limit).prepare()
        said = f"that {tmp_path / 'store'} keeps are of other features" in caplog.text
        assert said == computed, limit


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--features", "MNISTFeatures"], "MNISTFeatures needs 1x32x32 images"),
        (["--evaluation.reference", 9], "--evaluation.reference needs --features NAME"),
        (["--features", "DigitsFeatures", "--evaluation.reference", 1], "at least 2; got 1"),
    ],
)
def test_features_that_do_not_fit_are_told_before_anything_is_stored(
    made, command, tmp_path, given, message
):
    code, _, errors = command(*options(made), "--out", tmp_path / "store", *given)
    assert code == 2 and message in errors
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(finished, tmp_path):
    config, path, results = finished
    stop = Event()
    with pytest.raises(Stopped):
        run(config, tmp_path / "run", lambda p: p.step >= 4 and stop.set(), stop)
    resumed = run(config, tmp_path / "run")
    assert [resumed[k] for k in ("score", "loss")] == [results[k] for k in ("score", "loss")]
    (a, metrics), (b, others) = trained(path), trained(tmp_path / "run")
    for key in STATE:
        assert_equal(a[key], b[key], key)
    assert metrics == others


def test_a_run_is_sampled_from_without_its_store(finished, made, tmp_path):
    _, path, _ = finished
    (made / "store").rename(made / "away")
    try:
        images = StoredRun(path).sample(n=3)
        assert images.dtype == torch.uint8 and images.shape == (3, 1, 8, 8)
        (made / "vae").rename(tmp_path / "moved")
        try:
            with pytest.raises(UserError, match=r"autoencoder does not exist; --data\.vae"):
                StoredRun(path)
            moved = [f"--data.vae={tmp_path / 'moved'}"]
            again = StoredRun(path, options=moved).sample(n=3)
            assert torch.equal(again, images)
            other = tiny_vae(tmp_path / "wide", latent_channels=6)
            with pytest.raises(UserError, match=r"has the digest \w+; these latents are of \w+"):
                StoredRun(path, options=[f"--data.vae={other}"])
        finally:
            (tmp_path / "moved").rename(made / "vae")
    finally:
        (made / "away").rename(made / "store")


def test_a_store_of_another_size_is_refused(finished, made, command):
    config, path, _ = finished
    code, *_ = command(*options(made, 16), "--out", made / "larger")
    assert code == 0
    elsewhere = StoredRun(path, options=[f"--data.root={made / 'larger'}"])
    with pytest.raises(UserError, match=r"are 1 x 16 x 16 in latents of 4 x 8 x 8; .*run"):
        elsewhere.trained.experiment.data.split("val")
    data = config["data"]["init_args"] | {"root": str(made / "larger")}
    moved = config | {"data": config["data"] | {"init_args": data}}
    moved["trainer"] = config["trainer"] | {"max_steps": 9}
    with pytest.raises(UserError, match=r"images of --data.root are others"):
        run(moved, path)


def test_the_same_command_does_nothing_and_another_is_refused(made, command):
    before = contents(made / "store")
    code, printed, _ = command(*options(made), "--out", made / "store")
    assert code == 0 and "64 images and 16 held out" in printed
    code, _, errors = command(*options(made, 16), "--out", made / "store")
    assert code == 2 and "store of another shape: (4, 4, 4), not (4, 8, 8)" in errors
    assert contents(made / "store") == before


def test_two_processes_write_the_same_store(made, command, tmp_path):
    for rank in (1, 0):
        shared = ["--rank", rank, "--world", 2]
        code, printed, _ = command(*options(made), *shared, "--out", tmp_path / "store")
        assert code == 0 and ("not yet" in printed) == (rank == 1)
    assert contents(tmp_path / "store") == contents(made / "store")


@pytest.mark.slow
def test_torchrun_is_understood(made, command, tmp_path, monkeypatch):
    for rank in (0, 1):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        assert command(*options(made), "--out", tmp_path / "store")[0] == 0
    assert contents(tmp_path / "store") == contents(made / "store")


def test_pixels_of_a_data_set_by_its_name_train_alike(command, tmp_path):
    code, printed, _ = command("Digits", "--codec", "pixels", "--out", tmp_path / "store")
    assert code == 0 and "--data PixelStore" in printed
    results = []
    for name, more in (
        ("digits", {}),
        ("stored", {"data": "PixelStore", "data.root": str(tmp_path / "store")}),
    ):
        short = {"trainer.max_steps": 2, "evaluation.n": 10, "evaluation.every": 0}
        config = resolve(ROOT / "configs" / "digits.yaml", TINY | more | short)
        results.append(run(config, tmp_path / name))
    keys = ("score", "loss", "floor", "copies")
    assert [results[0][key] for key in keys] == [results[1][key] for key in keys]
    assert "codec" not in Run(tmp_path / "stored").meta["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["IMAGES"], "give --vae DIR, an autoencoder; or --codec pixels"),
        (["IMAGES", "--vae", "VAE"], "a folder of images needs --size"),
        (["IMAGES", "--vae", "VAE", "--size", "9"], "factor 2"),
        (["IMAGES", "--vae", "VAE", "--size", "0"], "--size 0 is not valid"),
        (["IMAGES", "--vae", "nowhere/at/all", "--size", "8"], "nowhere/at/all of the autoencoder"),
        (["IMAGES", "--vae", "IMAGES", "--size", "8"], "no autoencoder at"),
        (["IMAGES", "--vae", "VAE", "--codec", "pixels"], "--codec pixels needs neither"),
        (["IMAGES", "--vae", "VAE", "--size", "8", "--rank", "1"], "--rank and --world together"),
        (["IMAGES", "--vae", "VAE", "--rank", "2", "--world", "2"], "--rank 2 is not one of 2"),
        (["IMAGES", "--vae", "VAE", "--siz", "8"], "--size"),
        (["Digit", "--vae", "VAE"], "unknown folder or data set 'Digit'; valid: "),
        (["Digits", "--vae", "VAE", "--size", "16"], "Digits has 8 pixels a side"),
        (["Digits", "--vae", "VAE3"], "takes images of 3 channels, these have 1"),
        (["DigitsCaptions", "--vae", "VAE"], "has captions of its own, which a store"),
        (["IMAGES", "--vae", "VAE", "--size", "8", "--data.held", "1"], "did you mean held_out?"),
        (["IMAGES", "--vae", "VAE", "--from", "fast"], "bad value 'fast' for --from; valid: f"),
        (["IMAGES", "--vae", "VAE", "--from", "mar"], "not as mar writes it"),
        (["none", "--vae", "VAE", "--from", "mar"], "none does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, message, made, command, tmp_path):
    if "VAE3" in arguments:
        tiny_vae(tmp_path / "vae3", channels=3)
    places = {"IMAGES": made / "images", "VAE": made / "vae", "VAE3": tmp_path / "vae3"}
    given = [places.get(word, word) for word in arguments]
    code, _, errors = command(*given, "--out", tmp_path / "store")
    assert code == 2 and not (tmp_path / "store").exists()
    (line,) = [line for line in errors.splitlines() if line.startswith("error")]
    assert message in line
