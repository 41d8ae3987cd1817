"""Training that starts from weights; runs that do not are what they were."""

import copy
import logging

import pytest
import torch

from dtr_lightning.config.parser import contents_of, resolve, run_name
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import run as train
from dtr_lightning.experiment.initial import start_from_init
from dtr_lightning.experiment.planning import check_parts
from dtr_lightning.rundir.naming import identity
from dtr_lightning.rundir.run import Run
from tests.checkpoints.official import network
from tests.conftest import ROOT

DIGITS = str(ROOT / "configs" / "digits.yaml")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Returns a run without routing."""
    from tests.conftest import TINY

    path = tmp_path_factory.mktemp("pretrained") / "run"
    train(resolve(DIGITS, TINY | {"evaluation.every": 0}), path)
    return path


def started(config):
    """Returns the weights that training would start from."""
    experiment = Experiment(config)
    start_from_init(experiment)
    return experiment.network.state_dict()


@pytest.mark.parametrize("router", ["NoRouting", "DTR"])
def test_it_starts_from_the_average_of_a_run(tiny, pretrained, router):
    average = network(Run(pretrained)).state_dict()
    found = started(tiny(router=router, init=str(pretrained)))
    assert all(torch.equal(found[name], average[name]) for name in average)
    other = started(tiny(router=router))
    assert not torch.equal(other["blocks.0.attn.qkv.weight"], average["blocks.0.attn.qkv.weight"])


def test_a_file_of_weights_is_the_same_start(tiny, pretrained, tmp_path):
    average = network(Run(pretrained)).state_dict()
    torch.save({"ema": average, "model": {}, "opt": {}}, tmp_path / "0000100.pt")
    found = started(tiny(init=str(tmp_path / "0000100.pt")))
    assert all(torch.equal(found[name], average[name]) for name in average)


def test_a_run_without_it_has_the_name_that_it_had(tiny):
    """Names of the version before there was such an option."""
    before = {
        (): "norouting-seed=0-48e8a1",
        (("router", "DTR"), ("seed", 3)): "dtr-alpha=4-beta=0.8-seed=3-e31c65",
        (("experts", 4), ("trainer.max_steps", 250)): "norouting-experts=4-seed=0-09dc95",
    }
    for options, name in before.items():
        config = resolve(DIGITS, dict(options))
        assert config.keys().isdisjoint({"init", "init_partial"})
        assert run_name(config, DIGITS) == name


def test_its_weights_are_its_identity_wherever_they_lie(tiny, pretrained, tmp_path):
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes((pretrained / "ckpt" / "last.ckpt").read_bytes())
    configs = [tiny(init=str(path)) for path in (pretrained, moved)]
    known = [identity(config, contents_of(config)) for config in configs]
    assert known[0] == known[1]
    assert known[0] != identity(tiny())
    content = torch.load(moved, weights_only=True)
    content["state_dict"]["model.pos_embed"] += 1
    torch.save(content, moved)
    assert identity(configs[1], contents_of(configs[1])) != known[0]
    assert run_name(configs[0], DIGITS).startswith("norouting-")
    assert "init=run" in run_name(configs[0], DIGITS)


@pytest.mark.slow
def test_a_resumed_run_does_not_read_it_again(tiny, pretrained, tmp_path):
    weights = tmp_path / "weights.ckpt"
    weights.write_bytes((pretrained / "ckpt" / "last.ckpt").read_bytes())
    options = {"init": str(weights), "router": "DTR", "evaluation__every": 0}
    train(tiny(trainer__max_steps=3, **options), tmp_path / "parts")
    whole = train(tiny(**options), tmp_path / "whole")
    weights.unlink()
    parts = train(tiny(**options), tmp_path / "parts")
    assert parts["score"] == whole["score"]
    with pytest.raises(UserError, match="does not exist"):
        train(tiny(**options), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_begins_once(tiny, pretrained, tmp_path):
    train(tiny(init=str(pretrained), evaluation__every=0), tmp_path / "run")
    with pytest.raises(UserError, match=r"init is .* there and None here"):
        train(tiny(evaluation__every=0), tmp_path / "run")
    with pytest.raises(UserError, match="init is None there"):
        train(tiny(init=str(tmp_path / "run"), evaluation__every=0), pretrained)


def test_other_sizes_are_one_line_and_leave_nothing(tiny, pretrained, tmp_path):
    wider = {"model__hidden_size": 32, "init": str(pretrained)}
    with pytest.raises(UserError) as error:
        train(tiny(**wider), tmp_path / "run")
    assert "pos_embed is (1, 16, 16) in " in str(error.value)
    assert "and (1, 16, 32) in the network" in str(error.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="point: pos_embed"):
        check_parts({"point": tiny(**wider)})
    check_parts({"point": tiny(init=str(pretrained), router="Switch", init_partial="true")})


def test_partial_loading_says_what_it_leaves_out(tiny, pretrained, caplog):
    average = network(Run(pretrained)).state_dict()
    options = {"model__depth": 3, "router": "Switch", "model__class_dropout_prob": 0}
    options |= {"evaluation__guidance": 1, "init": str(pretrained)}
    with pytest.raises(UserError, match="y_embedder"):
        started(tiny(**options))
    with caplog.at_level(logging.WARNING):
        found = started(tiny(init_partial="true", **options))
    assert "1 parameters of another shape keep their initial values: y_embedder" in caplog.text
    assert "parameters that the file has not keep theirs: blocks.2" in caplog.text
    assert torch.equal(found["blocks.1.attn.qkv.weight"], average["blocks.1.attn.qkv.weight"])


def test_experts_all_start_from_it(tiny, pretrained):
    config = tiny(experts=2, init=str(pretrained))
    experiment = Experiment(copy.deepcopy(config))
    start_from_init(experiment)
    average = network(Run(pretrained)).state_dict()
    for expert in experiment.module.model.networks:
        assert torch.equal(expert.state_dict()["pos_embed"], average["pos_embed"])


def test_partial_alone_is_a_mistake(tiny):
    with pytest.raises(UserError, match="init_partial belongs to --init"):
        tiny(init_partial="true")
