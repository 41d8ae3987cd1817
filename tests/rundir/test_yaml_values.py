"""Laws of what YAML says: `1e-4` is a number everywhere, and the type of an option has the word."""

import json
import math
import os
from pathlib import Path

import pytest
import yaml

from dtr_lightning.config.parser import make_parser, parse, resolve
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run
from dtr_lightning.rundir.yaml_values import DUMPER, LOADER
from sweeps.engine import plan, recipe, values
from tests.conftest import slow_except

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "configs" / "images_small.yaml"
NUMBERS = {
    "1e-4": 1e-4, "1E3": 1000.0, "+1e5": 1e5, "-2.5e-3": -2.5e-3, ".5": 0.5, "1.": 1.0,
    "1_000": 1000, "-7": -7, "0x1F": 31, "1_0.5e1": 105.0, ".inf": math.inf,
}  # fmt: skip
TEXTS = ["010", "1:30", "12:30:45", "1e", "e1", "1.2.3", "inf", "nan", "0o17", "DTR", "_1", "1-2"]
# What a folder may be called, and what somebody's YAML might take it for.
NAMES = [
    *NUMBERS,
    *TEXTS,
    "on",
    "No",
    "true",
    "2024-01-01",
    "2024",
    "1.10",
    "é",
    "a: b",
    "#x",
    "'q'",
]


@pytest.mark.parametrize("text", [*NUMBERS, *TEXTS])
def test_what_is_a_number(text):
    value = yaml.load(f"[{text}]", Loader=LOADER)[0]
    assert value == NUMBERS.get(text, text) and type(value) is type(NUMBERS.get(text, text))


@pytest.mark.parametrize("value", [*NAMES, *NUMBERS.values(), "~", "", " x", "x\ny", True, None])
def test_what_is_written_is_read_by_us_and_by_others(value):
    written = yaml.dump({"key": [value]}, Dumper=DUMPER)
    assert yaml.load(written, Loader=LOADER) == yaml.safe_load(written) == {"key": [value]}


@pytest.mark.parametrize("name", slow_except(NAMES, *NAMES[::6]))
def test_an_option_that_is_text_stays_the_text_that_was_written(tmp_path, name):
    quoted = yaml.dump(name) if name[0] in "'#" or ": " in name else name
    (tmp_path / "a.yaml").write_text(
        f"base: {IMAGES}\ndata:\n  init_args:\n    root: {quoted}\n", encoding="utf-8"
    )
    config = resolve(tmp_path / "a.yaml")
    assert config["data"]["init_args"]["root"] == os.path.abspath(name)
    assert parse(make_parser(), ["--config", str(tmp_path / "a.yaml")]).config == config
    Run(tmp_path / "run").prepare(config)
    assert Run(tmp_path / "run").config == config
    assert resolve(tmp_path / "run" / "config.yaml") == config
    if name not in ("a: b", "#x"):  # on a command line a mapping and a comment: say ./a: b there
        given = parse(make_parser(), ["--config", str(IMAGES), f"--data.root={name}"]).config
        assert given == config
        key, value = values.option(f"data.root={name}")
        assert resolve(IMAGES, {key: value}) == config


@pytest.mark.parametrize("text", ["1e-4", "0.0001", "1.0e-4", ".0001", "'1e-4'", "+1E-4"])
def test_an_option_that_is_a_number_is_that_number_in_every_spelling(tmp_path, text):
    (tmp_path / "a.yaml").write_text(
        f"base: {IMAGES}\nmodule: {{lr: {text}, betas: [9e-1, {text}]}}\n"
        f"loss_weight: {{class_path: MinSNR, init_args: {{gamma: {text}}}}}\n"
    )
    config = resolve(tmp_path / "a.yaml")
    assert config["module"]["lr"] == config["loss_weight"]["init_args"]["gamma"] == 1e-4
    assert config["module"]["betas"] == [0.9, 1e-4]
    assert parse(make_parser(), ["--config", str(tmp_path / "a.yaml")]).config == config


def test_a_switch_may_be_yes_and_null_is_no_number(tmp_path):
    (tmp_path / "a.yaml").write_text(f"base: {IMAGES}\nmodule: {{ema_warmup: no}}\n")
    assert resolve(tmp_path / "a.yaml")["module"]["ema_warmup"] is False
    (tmp_path / "a.yaml").write_text(f"base: {IMAGES}\ntrainer: {{gradient_clip_val: null}}\n")
    assert resolve(tmp_path / "a.yaml")["trainer"]["gradient_clip_val"] is None
    for option in ("module: {lr: null}", "module: {lr: ~}", "trainer: {max_steps: 1e1}"):
        (tmp_path / "a.yaml").write_text(f"base: {IMAGES}\n{option}\n")
        with pytest.raises(UserError, match="bad value"):
            resolve(tmp_path / "a.yaml")


@pytest.mark.parametrize("option", ["module.lr=.nan", "module.betas=[.inf,0.9]", "module.lr=1e999"])
def test_an_option_is_finite(option):
    with pytest.raises(UserError, match=r"module\.\w+ must be a finite number"):
        parse(make_parser(), ["--config", str(IMAGES), f"--{option}"])


@pytest.mark.parametrize("devices", ["devices: 2", "devices: '2'"])
def test_devices_are_counted(tmp_path, devices):
    (tmp_path / "a.yaml").write_text(f"base: {IMAGES}\ntrainer: {{{devices}}}\n")
    assert resolve(tmp_path / "a.yaml")["trainer"]["devices"] == 2
    assert resolve(IMAGES, {"trainer.devices": "2"})["trainer"]["devices"] == 2


def test_a_sweep_knows_numbers_and_one_number_is_one_point(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(f"config: {IMAGES}\ngrid: [{{module.lr: [1e-4, 0.0001, 3E-4]}}]\n")
    points = plan.resolve_all(recipe.read(path)).points
    assert [point.label for point in points] == ["lr=0.0001 seed=0", "lr=0.0003 seed=0"]
    assert [point.config["module"]["lr"] for point in points] == [1e-4, 3e-4]
    path.write_text(
        f"config: {IMAGES}\nkind: tpe\ntrials: 2\nstart: [{{module.lr: 3e-4}}]\n"
        "space: {module.lr: {low: 1e-4, high: 1e-2, log: yes}}\nsmoke: {module.lr: 1e-3}\n"
    )
    read = recipe.read(path, smoke=True)
    assert read.space["module.lr"].low == 1e-4 and read.overrides == {"module.lr": 1e-3}
    assert json.dumps(read.assignments) == '[{"module.lr": 0.0003}]'
