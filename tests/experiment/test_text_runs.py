"""The whole path with captions: store, training, samples from a prompt, scores; and mistakes."""

import sys
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import make_latents
import sample
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.api import StoredRun
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import Stopped, run
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY
from tests.data.captioned_images import TRAIN, VAL, captioned_images
from tests.data.stores import contents
from tests.data.tiny_clip import LENGTH, WIDTH, tiny_clip
from tests.data.tiny_vae import tiny_vae
from tests.experiment.test_fit import STATE, assert_equal, trained


@pytest.fixture
def command(monkeypatch, capsys):
    """Returns a function that runs a command and returns its exit code, output and errors."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        return main(), *capsys.readouterr()

    return call


def options(top):
    places = [top / "images", "--size", 8, "--workers", 0, "--vae", top / "vae"]
    return [*places, "--captions", top / "captions.json", "--clip", top / "clip"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images with captions, a tiny VAE, a tiny CLIP, and a store by the command."""
    top = tmp_path_factory.mktemp("text")
    captioned_images(top)
    tiny_vae(top / "vae")  # of grey images, which the digits' features take
    tiny_clip(top / "clip")
    with pytest.MonkeyPatch.context() as patch:
        store = ["--out", top / "store"]
        patch.setattr(sys, "argv", ["make_latents.py", *map(str, [*options(top), *store])])
        assert make_latents.main() == 0
    return top


def config_of(made, **more):
    data = {"data": "CaptionedLatents", "data.root": str(made / "store"), "data.batch_size": 8}
    config = ROOT / "configs" / "backbones" / "text_dit.yaml"
    return resolve(config, TINY | data | {"router": "DTR"} | more)


@pytest.fixture(scope="module")
def finished(made):
    config = config_of(made, **{"evaluation.guidance": 1.5})
    return config, made / "run", run(config, made / "run")


def test_a_run_is_scored_by_fixed_prompts(finished):
    _, path, results = finished
    assert results["score"] > 0 and results["reference_n"] == TRAIN and results["floor_n"] == VAL
    protocol = results["protocol"]
    assert protocol["prompts"] == "held-out image i mod N, caption i // N"
    assert protocol["clip"] and "reference_split" not in protocol
    with np.load(Run(path).sample_arrays) as arrays:
        assert arrays["labels"].tolist() == [TRAIN + i % VAL for i in range(20)]


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


@pytest.mark.slow
def test_parts_of_a_batch_give_the_same_run(finished, made, tmp_path):
    _, _, results = finished
    more = {"trainer.accumulate_grad_batches": 2, "evaluation.guidance": 1.5}
    split = run(config_of(made, **more), tmp_path / "run")
    assert split["loss"] == pytest.approx(results["loss"], rel=1e-5)


def test_an_evaluation_draws_what_the_training_drew(finished):
    _, path, _ = finished
    stored = StoredRun(path, options=["--evaluation.n=14"])
    assert stored.trained.evaluate()["n"] == 14
    with np.load(Run(path).sample_arrays) as arrays:
        drawn = stored.sample(n=20)
        close = (drawn.int() - torch.from_numpy(arrays["images"]).int()).abs()
    assert close.max() <= 1


def test_held_out_images_can_be_the_reference(finished):
    _, path, results = finished
    other = StoredRun(path, options=["--evaluation.reference_split=val"]).trained
    assert other.sampling() == StoredRun(path).trained.sampling()
    scoring = other.experiment.scoring()
    assert (scoring["reference_n"], scoring["floor_n"]) == (VAL, TRAIN)
    scored = other.evaluate()
    assert scored["protocol"]["reference_split"] == "val"
    assert scored["protocol"]["prompts"] == results["protocol"]["prompts"]
    assert (scored["reference_n"], scored["floor_n"]) == (VAL, TRAIN)
    assert scored["score"] != results["score"]
    assert any(f"{TRAIN} training images" in note for note in scored["notes"])
    assert scored["floor"] == pytest.approx(results["floor"], rel=1e-6)  # a distance is symmetric


def test_prompts_are_drawn_in_turn(finished, made, command, tmp_path):
    _, path, _ = finished
    prompts = ["--prompt", "a red bus", "--prompt", "two dogs"]
    code, printed, _ = command(
        sample.main, path, *prompts, "--n", 6, "--npz", tmp_path / "samples.npz"
    )
    assert code == 0 and "prompt=a_red_bus_two_dogs-n=6" in printed.splitlines()[0]
    with np.load(tmp_path / "samples.npz") as arrays:
        images = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
        assert arrays["labels"].tolist() == [0, 1] * 3
        assert arrays["prompts"].tolist() == ["a red bus", "two dogs"]
    with pytest.raises(UserError, match="give a list of prompts, or classes, not both"):
        StoredRun(path).sample(prompts="a red bus")
    alone = StoredRun(path).sample(n=6, prompts=["a red bus"])
    assert torch.equal(alone[::2], images[::2]) and not torch.equal(alone[1::2], images[1::2])


def test_every_sheet_has_a_name_of_its_own_that_a_disk_can_have(finished):
    """Whatever is drawn and however; prompts of other scripts take several bytes a letter."""
    stored = StoredRun(finished[1])
    ddpm = StoredRun(finished[1], options=["--sampler=DDPM", "--sampler.steps=2"])
    clipped = StoredRun(
        finished[1], options=["--sampler=DDPM", "--sampler.steps=2", "--sampler.clip=true"]
    )

    def name(run=stored, prompt=None, classes=None, labels=(0,)):
        given = SimpleNamespace(prompt=prompt, classes=classes, n=6)
        return sample.file_name(run, given, list(labels))

    long = "a red bus and then some more words that say what else is in it "
    prompts = [["a b"], ["a_b"], ["a", "b"], ["b", "a"], [""], ["?"], ["!"], ["Ж" * 300]]
    prompts += [["Ж" * 300 + "я"], [long + "x"], [long + "y"], ["🚌" * 99], ["../../x"], ["a/b"]]
    names = [name(prompt=prompt) for prompt in prompts]
    names += [name(classes=["all"], labels=range(n)) for n in (100, 101)]
    names += [name(), name(ddpm), name(clipped)]
    assert len({*names}) == len(names) == len(prompts) + 5
    for each in names:
        assert len(each.encode()) < 200 and "/" not in each and each.endswith(".png")


def test_a_prompt_of_half_a_letter_is_one_line(finished):
    with pytest.raises(UserError, match=r"the prompt 'a \\ud83d' is no text"):
        StoredRun(finished[1]).sample(n=1, prompts=["a red bus", "a \ud83d"])


def test_where_a_sheet_is_written_is_checked_before_it_is_drawn(finished, command, monkeypatch):
    _, path, _ = finished
    drawn = []
    monkeypatch.setattr(StoredRun, "sample", lambda *given, **more: drawn.append(1))
    for words in (["--out", "x" * 300 + ".png"], ["--npz", "none/x.npz"], ["--out", "x.jpg"]):
        code, _, errors = command(sample.main, path, "--prompt", "red", *words)
        assert code == 2 and errors.splitlines()[-1].startswith(f"error: {words[0]} ")
    monkeypatch.setattr(sample, "file_name", lambda *given: "x" * 300 + ".png")
    code, _, errors = command(sample.main, path, "--prompt", "red")
    assert code == 2 and "file name too long" in errors and not drawn


@pytest.mark.slow
def test_a_prompt_needs_no_store(finished, made, command, tmp_path):
    _, path, _ = finished
    expected = StoredRun(path).sample(n=3, prompts=["a red bus"])
    (made / "store").rename(made / "away")
    (made / "clip").rename(tmp_path / "clip")
    try:
        given = [path, "--prompt", "red", "--n", 2, "--out", tmp_path / "sheet.png"]
        assert command(sample.main, *given, "--clip", tmp_path / "clip")[0] == 0
        moved = StoredRun(path, options=[f"--data.clip={tmp_path / 'clip'}"])
        assert torch.equal(moved.sample(n=3, prompts=["a red bus"]), expected)
        code, _, errors = command(sample.main, *given)
        assert code == 2 and "of the text encoder does not exist; --data.clip says" in errors
        other = tiny_clip(tmp_path / "other", seed=3)
        code, _, errors = command(sample.main, *given, "--clip", other)
        assert code == 2 and "these captions are of" in errors
        code, _, errors = command(sample.main, path, "--n", 2)
        assert code == 2 and "is no store" in errors
    finally:
        (made / "away").rename(made / "store")
        (tmp_path / "clip").rename(made / "clip")


def test_two_processes_write_the_same_store(made, command, tmp_path):
    for rank in (1, 0):
        shared = ["--rank", rank, "--world", 2, "--out", tmp_path / "store"]
        code, printed, _ = command(make_latents.main, *options(made), *shared)
        assert code == 0 and ("not yet" in printed) == (rank == 1)
    assert "--config configs/paper/coco256_b2.yaml" in printed and " captions, " in printed
    assert contents(tmp_path / "store") == contents(made / "store")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "1"], "the run takes prompts: it has no classes to choose from"),
        (["--classes", "1", "--prompt", "red"], "--prompt or --classes, not both"),
    ],
)
def test_classes_are_no_prompts(finished, command, arguments, message):
    code, _, errors = command(sample.main, finished[1], *arguments)
    assert code == 2 and message in errors


@pytest.mark.slow
def test_captioned_digits_take_prompts_of_their_words(command, tmp_path):
    config = resolve(ROOT / "configs" / "backbones" / "text_dit.yaml", TINY)
    run(config, tmp_path / "run")
    code, printed, _ = command(sample.main, tmp_path / "run", "--prompt", "the digit three")
    assert code == 0 and "prompt=the_digit_three" in printed
    code, _, errors = command(sample.main, tmp_path / "run", "--prompt", "a red bus")
    assert code == 2 and "unknown word in a caption 'red'; valid: " in errors
    code, _, errors = command(sample.main, tmp_path / "run", "--prompt", "a", "--clip", "x")
    assert code == 2 and "--data.clip=x is no option here" in errors


def test_a_run_of_classes_takes_no_prompt(command, tmp_path):
    run(resolve(ROOT / "configs" / "digits.yaml", TINY), tmp_path / "run")
    code, _, errors = command(sample.main, tmp_path / "run", "--prompt", "three")
    assert code == 2 and "was trained on class labels and takes no prompt" in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "DiT"}, "DiT needs data with class labels, which CaptionedLatents has not"),
        ({"data": "Latents"}, "TextDiT needs data with captions: DigitsCaptions or Capt"),
    ],
)
def test_network_and_store_that_do_not_fit(made, changes, message):
    data = {"data": "CaptionedLatents", "data.root": str(made / "store"), "data.batch_size": 8}
    with pytest.raises(UserError, match=message):
        Experiment(
            resolve(ROOT / "configs" / "digits.yaml", TINY | {"model": "TextDiT"} | data | changes)
        )


def test_captions_of_another_width_are_refused(finished, made, command, tmp_path):
    _, path, _ = finished
    tiny_clip(tmp_path / "wide", width=2 * WIDTH)
    arguments = [*options(made)[:-1], tmp_path / "wide", "--out", tmp_path / "store"]
    assert command(make_latents.main, *arguments)[0] == 0
    moved = StoredRun(path, options=[f"--data.root={tmp_path / 'store'}"])
    with pytest.raises(
        UserError, match=rf"are of {LENGTH} x 32 features; .* on {LENGTH} x {WIDTH}"
    ):
        moved.trained.evaluate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "FILE"], "give --captions FILE and --clip DIR, CLIP's text encoder, tog"),
        (["--clip", "CLIP"], "give --captions FILE and --clip DIR"),
        (["--captions", "FILE", "--clip", "VAE"], "no text encoder at"),
        (["--captions", "FILE", "--clip", "nowhere"], "nowhere of the text encoder does not exist"),
        (["--captions", "none.json", "--clip", "CLIP"], "cannot read captions none.json"),
        (["--captions", "FILE", "FILE", "--clip", "VAE"], "no text encoder at"),
        (["--captions", "FILE", "--clip", "CLIP", "--from", "mar"], "--from takes no --captions"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(made, command, tmp_path, arguments, message):
    places = {"FILE": made / "captions.json", "CLIP": made / "clip", "VAE": made / "vae"}
    given = [*options(made)[:-4], *(places.get(word, word) for word in arguments)]
    code, _, errors = command(make_latents.main, *given, "--out", tmp_path / "store")
    assert code == 2 and not (tmp_path / "store").exists()
    (line,) = [line for line in errors.splitlines() if line.startswith("error")]
    assert message in line


def test_pixels_take_no_captions(made, command, tmp_path):
    given = [
        made / "images",
        "--size",
        8,
        "--codec",
        "pixels",
        "--captions",
        made / "captions.json",
    ]
    code, _, errors = command(
        make_latents.main, *given, "--clip", made / "clip", "--out", tmp_path / "store"
    )
    assert code == 2 and "--codec pixels takes no --captions" in errors
