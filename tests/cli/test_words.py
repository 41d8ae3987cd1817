"""What is typed: a word that is empty or in no UTF-8 is one line, whatever the command."""

import contextlib
import errno
import importlib
import os
import shutil
import subprocess
import sys

import pytest

from dtr_lightning.cli.commands import check_file
from dtr_lightning.cli.duration import duration
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import replacing
from tests.conftest import ROOT

OUT = {
    "train": ["--config", "configs/digits.yaml"],
    "sweep": [],
    "evaluate": ["RUN"],
    "sample": ["RUN"],
    "make_latents": ["Digits", "--codec", "pixels"],
    "make_reference": ["DIR"],
    "import_checkpoint": ["FILE"],
    "export": ["RUN", "--to", "official"],
    "analysis.__main__": ["DIR"],
    "dtr_lightning.metrics.train_classifier": ["digits"],
    "dtr_lightning.data.train_vae": [],
}
WRITES = {"evaluate": "--save-samples"}


def said(module, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, *words])
    assert importlib.import_module(module).main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("module", OUT)
@pytest.mark.parametrize("form", [["{}", ""], ["{}="]])
def test_an_empty_place_is_one_line(module, form, monkeypatch, capsys):
    option = WRITES.get(module, "--out")
    words = [*OUT[module], *(word.format(option) for word in form)]
    assert f"{option} is empty" in said(module, words, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("module", "given", "right"),
    [
        ("train", "--fast_dev_run", "--fast-dev-run"),
        ("train", "--init-partial=true", "--init_partial"),
        ("sweep", "--dry_run", "--dry-run"),
        ("evaluate", "--save_samples=x.npz", "--save-samples"),
        ("make_latents", "--held-out=0.1", "--held_out"),
    ],
)
def test_a_hyphen_in_place_of_an_underscore_is_told(module, given, right, monkeypatch, capsys):
    assert said(module, [*OUT[module], given], monkeypatch, capsys).endswith(f"; write {right}")


@pytest.mark.parametrize(
    ("module", "words", "says"),
    [
        ("train", ["--fast-dev-run=true"], "--fast-dev-run takes no value; got 'true', give"),
        ("train", ["--fast-dev-run="], "--fast-dev-run takes no value; got '', give"),
        ("train", ["--fast-dev-run", "true"], "'true' belongs to no option; give --OPTION VALUE"),
        ("sweep", ["--dry-run=yes"], "--dry-run takes no value; got 'yes', give --dry-run alone"),
        ("sweep", ["-hx"], "--help takes no value; got 'x'"),
        ("sweep", ["--workers"], "--workers needs a value"),
        ("sweep", ["--hours", "x"], "--hours must be a number; got 'x'"),
        ("sweep", ["--stop=at once"], "bad value 'at once' for --stop; valid: finish, save"),
        ("make_latents", ["--captions"], "--captions needs one value or more"),
    ],
)
def test_an_option_that_is_typed_wrong_is_told_in_our_words(
    module, words, says, monkeypatch, capsys
):
    assert says in (line := said(module, [*OUT[module], *words], monkeypatch, capsys))
    assert "argument" not in line


def test_what_a_command_needs_is_named(monkeypatch, capsys):
    assert "give RUN" in said("sample", [], monkeypatch, capsys)
    line = said("dtr_lightning.metrics.train_classifier", ["x"], monkeypatch, capsys)
    assert line.endswith("bad value 'x' for classifier; valid: digits, mnist")


@pytest.mark.parametrize("module", OUT)
def test_bytes_that_are_no_utf8_are_one_line(module, monkeypatch, capsys):
    word = os.fsdecode(b"caf\xe9")
    line = said(module, [*OUT[module], "--out", word], monkeypatch, capsys)
    assert r"'caf\udce9' is not in UTF-8" in line


def test_so_it_is_where_the_bytes_really_come_from_a_terminal(tmp_path):
    call = [sys.executable, ROOT / "sample.py", tmp_path, "--prompt", b"caf\xe9"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_user_that_is_not_there_is_one_line(monkeypatch, capsys):
    words = ["~nobody-is-called-so/x", "--size", "8", "--codec", "pixels", "--out", "x"]
    assert "there is no such user" in said("make_latents", words, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x.txt", "must end in .png"),
        ("none/x.png", "must end in .png and lie in a directory"),
        ("folder.png", "must end in .png"),
        ("x" * 252 + ".png", "cannot be written: file name too long"),
        ("и" * 126 + ".png", "cannot be written: file name too long"),
        ("full/x.png", "cannot be written: no space left"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch, name, says):
    for folder in ("folder.png", "full"):
        (tmp_path / folder).mkdir()
    if "space" in says:

        def full(*arguments, **options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(UserError, match=says) as error:
        check_file("--out", str(tmp_path / name), ".png")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.png", "full"]


@pytest.mark.parametrize("name", ["x" * 251, "и" * 125 + "x", "a" * 230])
def test_a_file_that_can_be_written_is_written_whatever_its_length(tmp_path, name):
    file = tmp_path / f"{name}.png"
    check_file("--out", str(file), ".png")
    with replacing(file) as part:
        assert part.suffix == ".png" and part != file
        part.write_text("whole")
    with contextlib.suppress(KeyboardInterrupt), replacing(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "whole" and [*tmp_path.iterdir()] == [file]


def test_a_duration_is_told_in_units_that_fit():
    times = {0.1: "1 s", 89: "89 s", 90: "2 min", 11400: "3 h 10 min", 7170: "2 h 0 min"}
    assert {seconds: duration(seconds) for seconds in times} == times
    assert duration(50 * 3600) == "2 d 2 h"


@pytest.mark.parametrize("words", [[], ["--protocol", "adm", "--reference", "x.npz"]])
def test_an_unknown_option_of_an_evaluation_lists_all(words, tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "configs" / "digits.yaml", tmp_path / "config.yaml")
    run = [str(tmp_path), *words]
    monkeypatch.setattr("evaluate.adm_parts", lambda given: (None, None))
    line = said("evaluate", [*run, "--keep-sample"], monkeypatch, capsys)
    own = "--checkpoint, --protocol, --reference, --samples, --save-samples, --keep-samples"
    more = "--weights, --sampler, --features and --evaluation"
    assert "(did you mean --keep-samples?)" in line and f"valid: {own}, {more}" in line


def test_an_unknown_option_of_samples_lists_all(monkeypatch, capsys):
    line = said("sample", ["RUN", "--clases", "3"], monkeypatch, capsys)
    assert "(did you mean --classes?); valid: --classes, --prompt" in line and "--sampler" in line


def test_a_near_name_of_a_data_set_is_named(monkeypatch, capsys):
    words = ["CIFAR11", "--codec", "pixels", "--out", "x"]
    line = said("make_latents", words, monkeypatch, capsys)
    assert "CIFAR10, " in line and "Digits" in line and " Latents" not in line


def test_an_unknown_option_of_a_store_lists_those_of_images_and_scores(monkeypatch, capsys):
    words = ["Digits", "--codec", "pixels", "--out", "x", "--feature", "DigitsFeatures"]
    line = said("make_latents", words, monkeypatch, capsys)
    assert "valid options: --features, " in line and "--data.OPTION" in line
    assert "--evaluation.reference_split" in line


def test_an_unknown_option_of_an_import_lists_its_own_too(tmp_path, monkeypatch, capsys):
    words = ["FILE", "--out", str(tmp_path / "x"), "--wieghts", "ema"]
    line = said("import_checkpoint", words, monkeypatch, capsys)
    assert "unknown option --wieghts (did you mean --weights?); valid: --out, --kind" in line
    assert "--config" in line and "--model" in line
