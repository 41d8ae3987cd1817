"""Configs: the signatures are the schema, and a mistake is one line with the valid choices."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import train
from dtr_lightning.config.parser import (
    AXES,
    instantiate,
    make_parser,
    parse,
    resolve,
    run_name,
    valid_choices,
)
from dtr_lightning.errors import UserError
from dtr_lightning.objectives import LossWeight
from dtr_lightning.routing import Router
from dtr_lightning.rundir.naming import flatten, identity
from tests.conftest import ROOT
from tests.rundir.test_identity import draw_images

DIGITS = str(ROOT / "configs" / "digits.yaml")


def given(*options):
    return parse(make_parser(), ["--config", DIGITS, *options]).config


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda f: f.stem)
def test_every_recipe_resolves_and_says_what_it_is(file):
    config = resolve(file)
    assert set(AXES) < set(config)
    assert file.read_text().startswith("# ")


def test_a_resolved_config_resolves_to_itself(tmp_path):
    config = given("--router", "DTR", "--router.alpha", "2")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert resolve(tmp_path / "config.yaml") == config


def test_options_override_the_file():
    config = given("--router", "DTR", "--router.alpha=2", "--module.lr", "1e-3")
    alpha_beta = {"alpha": 2.0, "beta": 0.8, "formula": "linspace"}
    assert config["router"] == {"class_path": "DTR", "init_args": alpha_beta}
    assert config["module"]["lr"] == 1e-3


def test_a_class_of_a_persons_own_by_its_import_path():
    config = given("--router", "tests.own_router.EveryOther", "--router.start=1")
    router = instantiate(Router, config["router"])
    router.bind(10, [4], 4)
    assert router.table(0)[0].tolist() == [False, True, False, True]


def test_identity_is_neither_length_nor_protocol_nor_machine():
    base = identity(given())
    for option in ("--trainer.devices=4", "--trainer.max_steps=7", "--sampler.steps=9"):
        assert identity(given(option)) == base
    for option in ("--seed=1", "--router=DTR", "--module.lr=0.1", "--diffusion.schedule=linear"):
        assert identity(given(option)) != base


def test_a_run_is_named_by_what_differs():
    name = run_name(given("--router=DTR", "--router.alpha=2", "--module.lr=0.5"), DIGITS)
    assert name.startswith("dtr-alpha=2-beta=0.8-lr=0.5-seed=0-")
    name = run_name(given("--loss_weight=UW", "--loss_weight.clusters=5"), DIGITS)
    assert name.startswith("norouting-loss_weight=UW-clusters=5-seed=0-")
    assert run_name(given("--router=RTR"), DIGITS).startswith("rtr-beta=0.8-seed=0-")
    shared = run_name(given("--router=RTR", "--router.shared=true"), DIGITS)
    assert shared.startswith("rtr-beta=0.8-shared=True-seed=0-")


@pytest.mark.parametrize("base", [Router, LossWeight])
def test_choices_are_sorted_and_concrete(base):
    assert list(valid_choices(base)) == sorted(valid_choices(base))
    assert "MaskRouter" not in valid_choices(base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--router", "Foo"], "unknown router 'Foo'; valid: "),
        (["--router", "nope.Foo"], "No module named 'nope'"),
        (["--router", "math.sqrt"], "not a class of this kind"),
        (["--loss_weight", "Foo"], "unknown loss weight 'Foo'; valid: "),
        (["--data", "Foo"], "Digits, DigitsCaptions, ImageFolder, "),
        (["--routr", "DTR"], "did you mean router?"),
        (["--router=DTR", "--router.alfa=3"], "did you mean alpha?"),
        (["--router=DTR", "--router.alpha=abc"], "bad value 'abc' for alpha; valid: float"),
        (["--router=DTR", "--router.alpha=0"], "alpha must be a positive finite number; got 0"),
        (["--router=DTR", "--router.alpha=-1"], "alpha must be a positive finite number; got -1"),
        (["--router=DTR", "--router.alpha=.nan"], "alpha must be a positive finite number"),
        (["--router=DTR", "--router.beta=0"], "beta must lie in (0, 1]"),
        (["--router=RTR", "--router.beta=1.2"], "beta must lie in (0, 1]"),
        (["--router=DTR", "--router.formula=x"], "valid: linspace, eq4"),
        (["--diffusion.schedule=x"], "valid: cosine, linear"),
        (["--sampler.steps=1"], "keeps 1 of T = 1000 tasks"),
        (["--trainer.max_steps=0"], "trainer.max_steps must be at least 1"),
        (["--trainer.max_step=5"], "did you mean trainer.max_steps?"),
        (["--trainer.precision=16-true"], "valid: 32-true, bf16-mixed"),
        (["--evaluation.n=1"], "evaluation.n must be at least 2"),
        (["--checkpoint.every=0"], "checkpoint.every must be at least 1"),
        (["--seed=-1"], "seed must be at least 0"),
        (["--evaluation.seed=-1"], "evaluation.seed must be 0 or more"),
        (["--evaluation.guidance=-3"], "evaluation.guidance must be 0 or more"),
        (["--seed=x"], "bad value 'x' for seed; valid: int"),
        (["extra"], "'extra' belongs to no option; give --OPTION VALUE"),
        (["--config=nowhere.yaml"], "config file nowhere.yaml cannot be read"),
    ],
)
def test_mistakes_in_options(options, message):
    with pytest.raises(UserError) as error:
        given(*options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\n\trouter: DTR\n", "is not valid YAML"),
        ("- 1\n", "must hold options"),
        ("sed: 1\n", "unknown option 'sed' (did you mean seed?)"),
        ("seed: many\n", "bad value 'many' for seed"),
        ("router: {class_path: DTR, init_args: {alpha: x}}\n", "bad value 'x' for alpha"),
        ("router: {class_path: DTR, init_args: {gamma: 1}}\n", "unknown option 'gamma'"),
        ("router: {class_path: os.system}\n", "unknown router 'os.system'"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        given("--config", str(tmp_path / "bad.yaml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_overrides_its_base(tmp_path):
    (tmp_path / "a.yaml").write_text(f"base: {DIGITS}\nrouter: DTR\nmodule: {{lr: 0.5}}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nrouter: {class_path: CDTR}\n")
    config, base = resolve(tmp_path / "b.yaml"), resolve(DIGITS)
    assert config["router"]["class_path"] == "CDTR"
    assert config["module"] == base["module"] | {"lr": 0.5}
    assert config["model"] == base["model"]
    assert run_name(config, tmp_path / "b.yaml").startswith("cdtr-alpha=4-beta=0.8-seed=0-")


ADM = {"model": "ADM", "model.model_channels": 32, "model.num_res_blocks": 1}


ROOTED = {"data.root": "."}
SIZED = "data: {class_path: ImageFolder, init_args: {size: 8}}"


@pytest.mark.parametrize(
    ("recipe", "options", "named"),
    [
        ("", {"data": "ImageFolder", "data.size": 8} | ROOTED, "data=ImageFolder-size=8-seed=0-"),
        (SIZED, ROOTED, "seed=0-"),
        ("data: ImageFolder", {"data.size": 8} | ROOTED, "size=8-seed=0-"),
        (SIZED, {"data": "Digits"}, "data=Digits-seed=0-"),
        ("", {"router": "FixedMasks", "router.path": "a.npy"}, "path=a-seed=0-"),
        ("router: FixedMasks", {"router.path": "a.npy"}, "path=a-seed=0-"),
        ("", ADM | {"model.attention_resolutions": [2]}, "model=ADM-model_channels=32-"),
    ],
)
def test_a_recipe_need_not_be_a_run_by_itself(tmp_path, monkeypatch, recipe, options, named):
    monkeypatch.chdir(draw_images(tmp_path))
    np.save("a.npy", np.ones((3, 1000, 64), bool))
    Path("a.yaml").write_text(f"base: {DIGITS}\n{recipe}\n")
    config = resolve("a.yaml", options)
    name = run_name(config, "a.yaml")
    assert name.removeprefix(f"{config['router']['class_path'].lower()}-").startswith(named)
    assert "use_checkpoint" not in name


def test_a_run_of_two_recipes_is_named_by_what_differs_from_both(tmp_path):
    (tmp_path / "more.yaml").write_text("module: {lr: 0.5}\n")
    files = (DIGITS, tmp_path / "more.yaml")
    config = given(f"--config={files[1]}", "--seed=3")
    assert config["module"]["lr"] == 0.5
    assert run_name(config, files).startswith("norouting-seed=3-")
    assert run_name(config, DIGITS).startswith("norouting-lr=0.5-seed=3-")


def test_a_base_that_is_wrong_is_one_line(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(UserError, match=r"b\.yaml cannot be read"):
        resolve(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="is its own base"):
        resolve(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(f"base: {DIGITS}\nrouter: Foo\n")
    with pytest.raises(UserError, match=r"^\S*a\.yaml: unknown router 'Foo'"):
        resolve(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: [1]\n")
    with pytest.raises(UserError, match="base is to be the path"):
        resolve(tmp_path / "a.yaml")


def test_an_axis_that_is_missing():
    with pytest.raises(
        UserError, match=r"give --data; valid: .*Digits, DigitsCaptions, ImageFolder"
    ):
        parse(make_parser(), [])


def test_a_mistake_is_one_line_and_exit_2(call, capsys):
    assert call(train, "--config", DIGITS, "--router", "Foo") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown router 'Foo'") and said.count("\n") == 1


def test_readme_commands_name_files_that_exist():
    for word in Path(ROOT / "README.md").read_text().split():
        if word.startswith(("configs/", "sweeps/")) and word.endswith(".yaml"):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("file", ["digits.yaml", "experts.yaml", "gradients/nash_mtl.yaml"])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"router": "DTR", "router.alpha": 2},
        {"sampler": "DDIM", "sampler.steps": 7},
        {"experts": 2, "seed": 3},
    ],
)
def test_a_config_parsed_in_parts_is_the_config_parsed_as_a_whole(file, overrides):
    path = ROOT / "configs" / file
    arguments = [f"--{key}={value}" for key, value in overrides.items()]
    whole = parse(make_parser(), [f"--config={path}", *arguments]).config
    parts = resolve(path, overrides)
    assert parts == whole
    assert list(flatten(parts)) == list(flatten(whole))
