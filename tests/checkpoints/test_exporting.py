"""What is exported loads back to the same outputs, and says what it is."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

import export as command
from dtr_lightning.checkpoints import writing
from dtr_lightning.checkpoints.writing import Exported, export
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.fit import run as train
from dtr_lightning.experiment.importing import import_checkpoint
from dtr_lightning.experiment.load import TrainedRun, other_protocol
from dtr_lightning.rundir.run import Run
from tests.checkpoints.official import arrays, network, weights
from tests.conftest import max_relative, slow_except


def trained(run):
    return TrainedRun(run, other_protocol(run, []))


def exported(run, to, out):
    of = trained(run)
    parts = (of.module.model, of.module.diffusion, run, of.experiment.config, of.step)
    return export(Exported(*parts), to, out)


def shake(run):
    """Gives the network of a run random weights: at its start it draws zeros."""
    content = torch.load(run.last, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, weight in content["state_dict"].items():
        if weight.is_floating_point() and "pos_embed" not in name:
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    torch.save(content, run.last)


def outputs(run):
    model, sizes = network(run), run.meta["data"]
    generator = torch.Generator().manual_seed(1)
    shape = (4, sizes["in_channels"], sizes["image_size"], sizes["image_size"])
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([0, 100, 500, 999]), torch.tensor([0, 3, 9, 5]))


ROUTED = {
    "NoRouting": {},
    "DTR": {"router__alpha": 2, "router__beta": 0.75},
    "RTR": {},
    "Switch": {"router__experts": 4},
    "MaxRoaming": {"router__interval": 2},
}


@pytest.mark.parametrize("router", slow_except(ROUTED, "DTR"))
@pytest.mark.parametrize("to", ["safetensors", "official"])
def test_a_run_comes_back(tiny, tmp_path, to, router):
    config = tiny(router=router, evaluation__every=0, **ROUTED[router])
    train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    shake(run)
    files = exported(run, to, tmp_path / "out")
    options = ["--model.num_heads=2"] if to == "official" else []
    made = import_checkpoint(tmp_path / "out", tmp_path / "back", options)
    assert import_checkpoint(files[0], tmp_path / "back", options).run.path == made.run.path
    assert max_relative(outputs(made.run), outputs(run)) < 1e-6
    if to == "safetensors":
        for axis in ("model", "diffusion", "sampler"):
            assert made.experiment.config[axis] == config[axis]
        assert made.assumed == []
        assert trained(made.run).step == 6
    if router in ("RTR", "MaxRoaming") and to == "official":
        assert made.experiment.config["router"]["class_path"] == "FixedMasks"
    card = (tmp_path / "out" / "README.md").read_text()
    score = Run(tmp_path / "run").results["score"]
    told = ("fd_digits_v1", f"{score:.6g}", "Protocol: ", "n 20", router, "Licence", "6 steps")
    assert [word for word in told if word not in card] == []


@pytest.mark.parametrize("name", ["adm/adm_ssn1_updown1_cond", "dit/dit_cond4"])
@pytest.mark.slow
def test_an_imported_network_is_exported_bit_by_bit(tmp_path, name):
    state = weights(name)
    torch.save(state, tmp_path / "a.pt")
    options = ["--model.num_heads=4"] if "dit" in name else ["--data.image_size=16"]
    options += [] if "dit" in name else ["--model.num_head_channels=16"]
    made = import_checkpoint(tmp_path / "a.pt", tmp_path / "run", options)
    (file, _) = exported(made.run, "official", tmp_path / "out")
    back = torch.load(file, weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.slow
def test_sit_comes_back_with_its_own_sign(tmp_path):
    state = weights("dit/dit_cond4")
    torch.save(state, tmp_path / "SiT.pt")
    made = import_checkpoint(tmp_path / "SiT.pt", tmp_path / "run", ["--model.num_heads=4"])
    (file, _) = exported(made.run, "official", tmp_path / "out")
    back = torch.load(file, weights_only=True)
    rows = state["final_layer.linear.weight"].unflatten(0, (4, 8))[:, :4]
    assert torch.equal(back["final_layer.linear.weight"].unflatten(0, (4, 8))[:, :4], rows)
    again = import_checkpoint(file, tmp_path / "b", ["--model.num_heads=4"], kind="sit")
    assert torch.equal(outputs(again.run), outputs(made.run))


@pytest.mark.slow
def test_a_file_of_fixed_masks_goes_with_the_weights(tmp_path):
    a, state = arrays("dit/dit_cond4"), weights("dit/dit_cond4")
    for i, table in enumerate(a["masks_rtr"]):
        state[f"blocks.{i}.routing._unit_mapping"] = table.float()
    torch.save(state, tmp_path / "a.pt")
    made = import_checkpoint(tmp_path / "a.pt", tmp_path / "run", ["--model.num_heads=4"])
    files = exported(made.run, "safetensors", tmp_path / "out")
    assert np.array_equal(np.load(files[1]), a["masks_rtr"].bool().numpy())
    back = import_checkpoint(files[0], tmp_path / "back")
    assert torch.equal(outputs(back.run), outputs(made.run))
    files[1].write_bytes(b"x")
    with pytest.raises(UserError, match=r"masks.npy cannot be read"):
        import_checkpoint(files[0], tmp_path / "other")


@pytest.mark.slow
def test_diffusers_folder_is_diffusers_network(tmp_path, tiny):
    """Its own outputs, once the two constants that differ are the official ones."""
    train(tiny(evaluation__every=0), tmp_path / "run")
    run = Run(tmp_path / "run")
    shake(run)
    exported(run, "diffusers", tmp_path / "out")
    made = import_checkpoint(tmp_path / "out", tmp_path / "back")
    assert torch.equal(outputs(made.run), outputs(run))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "downscale_freq_shift = 0" in card and "to_q" in card and "norm_eps" in card
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(
        tmp_path / "out", low_cpu_mem_usage=False
    ).eval()
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 1, 8, 8, generator=generator)
    t, y = torch.tensor([0, 100, 500, 999]), torch.tensor([0, 3, 9, 5])
    with torch.no_grad():
        out = theirs(x, t, y).sample
    assert max_relative(out, outputs(run)) < 2e-6


@pytest.mark.slow
def test_diffusers_without_a_null_class_comes_back_without(tmp_path, tiny):
    options = {"model__class_dropout_prob": 0, "evaluation__guidance": 1, "evaluation__every": 0}
    train(tiny(**options), tmp_path / "run")
    exported(Run(tmp_path / "run"), "diffusers", tmp_path / "out")
    made = import_checkpoint(tmp_path / "out", tmp_path / "back")
    assert not network(made.run).has_null


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "options", "says"),
    [
        ("diffusers", {"router": "DTR"}, "diffusers' DiT has no routing, and without DTR"),
        ("diffusers", {"diffusion": "FlowMatching", "sampler": "Euler"}, "predicts eps"),
        ("official", {"diffusion": "FlowMatching", "sampler": "Euler"}, "no official code has DiT"),
        (
            "official",
            {"router": "Switch", "router__mask": "sum"},
            "no official code has the",
        ),
        ("diffusers", {"model__mlp_ratio": 2}, "MLP of 4 times"),
        ("safetensors", {"experts": 2}, "of several experts"),
    ],
)
def test_what_a_layout_cannot_hold_is_one_line(tiny, tmp_path, to, options, says):
    config = tiny(evaluation__every=0, trainer__max_steps=1, checkpoint__every=1, **options)
    train(config, tmp_path / "run")
    with pytest.raises(UserError) as error:
        exported(Run(tmp_path / "run"), to, tmp_path / "out")
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_into_the_run_once(tiny, tmp_path, monkeypatch, capsys):
    train(tiny(evaluation__every=0), tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["export.py", str(tmp_path / "run"), "--to", "safetensors"])
    assert command.main() == 0
    file = tmp_path / "run" / "artifacts" / "safetensors" / "model.safetensors"
    assert str(file) in capsys.readouterr().out
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["dtr_lightning"])["trainer.max_steps"] == 6
    assert command.main() == 2
    assert "not empty; choose another --out" in capsys.readouterr().err


def test_an_export_is_there_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    """Of two at once the first wins and the other is one line; what a killed one left is gone."""
    train(tiny(evaluation__every=0, trainer__max_steps=1), tmp_path / "run")
    out, card = tmp_path / "out", writing.card

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "card", killed)
    with pytest.raises(KeyboardInterrupt):
        exported(Run(tmp_path / "run"), "safetensors", out)
    assert not out.exists()

    def overtaken(*arguments):
        monkeypatch.setattr(os, "getpid", lambda: 1)  # another process
        monkeypatch.setattr(writing, "card", card)
        first.extend(exported(Run(tmp_path / "run"), "safetensors", out))
        return card(*arguments)

    first = []
    (out / ".part-7").mkdir(parents=True)
    (out / ".part-7" / "model.safetensors").write_text("half of it")
    monkeypatch.setattr(writing, "card", overtaken)
    with pytest.raises(UserError, match="not empty; choose another --out"):
        exported(Run(tmp_path / "run"), "safetensors", out)
    assert sorted(out.iterdir()) == sorted(first)
    assert (out / "README.md").read_text().startswith("# run\n")
    import_checkpoint(out / "model.safetensors", tmp_path / "back")
