"""A checkpoint of the official code becomes a run whose network has the official outputs."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sample
from dtr_lightning.checkpoints.diffusers import to_diffusers
from dtr_lightning.checkpoints.layouts import recognise
from dtr_lightning.checkpoints.official import official_options
from dtr_lightning.checkpoints.reading import read
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.fit import run as train
from dtr_lightning.experiment.importing import import_checkpoint
from dtr_lightning.models import DiT, DiT_S
from dtr_lightning.routing import DTR, FixedMasks, NoRouting, Switch
from dtr_lightning.rundir.run import Run
from tests.checkpoints.official import arrays, imported, network, weights
from tests.conftest import ROOT, max_relative, slow_except

HEADS = "--model.num_heads=4"


@pytest.fixture
def dit():
    return weights("dit/dit_cond4")


@pytest.fixture
def expected():
    return arrays("dit/dit_cond4")


def outputs(model, a):
    with torch.no_grad():
        return model(a["x"], a["t"], a["y"])


class TestOfficialOutputs:
    def check(self, made, a, key="out_none", tolerance=1e-5):
        model, _ = made
        assert max_relative(outputs(model, a), a[key]) < tolerance

    @pytest.mark.slow
    @pytest.mark.parametrize("zipped", [True, False])
    def test_of_a_bare_state_dict(self, tmp_path, dit, expected, zipped):
        file = tmp_path / "DiT.pt"
        torch.save(dit, file, _use_new_zipfile_serialization=zipped)
        made = imported(file, tmp_path / "run", HEADS)
        self.check(made, expected)
        config = made[1].experiment.config
        assert config["diffusion"]["init_args"]["schedule"] == "linear"
        assert config["sampler"] == {
            "class_path": "DDPM",
            "init_args": {"steps": 250, "clip": False},
        }
        assert config["evaluation"]["guidance_channels"] == "first3"
        assert [text.split()[0] for text in made[1].assumed] == [
            "data.num_classes",
            "diffusion.schedule",
            "trainer.max_steps",
        ]

    def test_of_safetensors_without_classes(self, tmp_path):
        save_file(weights("dit/dit_uncond1"), tmp_path / "a.safetensors")
        made = imported(tmp_path / "a.safetensors", tmp_path / "run", "--model.num_heads=2")
        a = arrays("dit/dit_uncond1")
        self.check(made, a | {"y": torch.zeros_like(a["t"])})
        assert made[1].experiment.config["diffusion"]["init_args"]["variance"] == "fixed_large"
        assert made[1].experiment.config["sampler"]["init_args"]["clip"] is True

    @pytest.mark.slow
    def test_of_a_training_checkpoint(self, tmp_path, dit, expected):
        """Its average, under the names of DDP and torch.compile; steps are the optimiser's."""
        raw = {f"_orig_mod.module.{name}": torch.zeros_like(w) for name, w in dit.items()}
        content = {
            "model": raw,
            "ema": {f"module.{name}": w for name, w in dit.items()},
            "opt": {"state": {0: {"step": torch.tensor(1234.0)}}, "param_groups": []},
            "args": argparse.Namespace(num_classes=10, model="DiT-S/2"),
        }
        torch.save(content, tmp_path / "0050000.pt")
        made = imported(tmp_path / "0050000.pt", tmp_path / "run", HEADS)
        self.check(made, expected)
        assert made[1].experiment.config["trainer"]["max_steps"] == 1234
        assert made[1].assumed == ["diffusion.schedule linear"]
        model, _ = imported(tmp_path / "0050000.pt", tmp_path / "raw", HEADS, weights="model")
        assert outputs(model, expected).abs().max() == 0

    @pytest.mark.parametrize("routing", ["dtr", "rtr"])
    def test_of_dtr_with_the_masks_in_its_buffers(self, tmp_path, dit, expected, routing):
        for i, table in enumerate(expected[f"masks_{routing}"]):
            dit[f"blocks.{i}.routing._unit_mapping"] = table.float()
        torch.save({"model": dit, "ema": dit, "opt": {}}, tmp_path / "0400000.pt")
        made = imported(tmp_path / "0400000.pt", tmp_path / "run", HEADS)
        self.check(made, expected, f"out_{routing}")
        router = made[0].router
        assert isinstance(router, DTR if routing == "dtr" else FixedMasks)
        if routing == "dtr":
            assert (router.alpha, router.beta) == (4.0, 0.8)
        config = made[1].experiment.config
        assert config["diffusion"]["init_args"]["schedule"] == "cosine"
        assert config["trainer"]["max_steps"] == 400_000  # of the file's name

    def test_of_dtr_without_masks_it_is_no_routing(self, tmp_path, dit, expected):
        for i in range(3):
            dit[f"blocks.{i}.routing._unit_mapping"] = torch.ones(1000, 96)
        torch.save(dit, tmp_path / "a.pt")
        made = imported(tmp_path / "a.pt", tmp_path / "run", HEADS)
        self.check(made, expected)
        assert isinstance(made[0].router, NoRouting)

    def test_of_switch_dit(self, tmp_path):
        a, state = arrays("switch/switch_cond4"), weights("switch/switch_cond4")
        state["prior._unit_mapping"] = a["prior_mask"].float()
        state["full_time"] = torch.arange(1000)
        torch.save(state, tmp_path / "a.pt")
        options = (HEADS, "--data.num_classes=10")
        made = imported(tmp_path / "a.pt", tmp_path / "run", *options)
        self.check(made, a, "out_eval")
        assert isinstance(made[0].router, Switch)
        assert (made[0].router.experts, made[0].router.k) == (3, 2)

    @pytest.mark.slow
    @pytest.mark.parametrize("named", ["SiT-XL-2.pt", "a.pt", "0400000.pt"])
    def test_of_sit(self, tmp_path, dit, named):
        """Its velocity points from noise to data and its time is 1 at the data: we have neither."""
        content = dit
        if named[0] == "0":
            args = argparse.Namespace(path_type="Linear", prediction="velocity", num_classes=10)
            content = {"model": dit, "ema": dit, "opt": {}, "args": args}
        torch.save(content, tmp_path / named)
        kind = "sit" if named == "a.pt" else None
        model, made = imported(tmp_path / named, tmp_path / "run", HEADS, kind=kind)
        a = arrays("sit/sit_cond4")
        with torch.no_grad():
            out = model(a["x"], (1 - a["time"]) * 999, a["y"])
        assert max_relative(out, -a["velocity"]) < 1e-5
        assert made.experiment.config["diffusion"]["class_path"] == "FlowMatching"

    @pytest.mark.parametrize("order", slow_except(["new", "legacy"], "new"))
    @pytest.mark.parametrize("name", ["adm_ssn1_updown1_cond", "adm_ssn0_updown0_uncond"])
    def test_of_guided_diffusion(self, tmp_path, name, order):
        a = arrays(f"adm/{name}")
        torch.save(weights(f"adm/{name}"), tmp_path / "ema_0.9999_250000.pt")
        made = imported(
            tmp_path / "ema_0.9999_250000.pt",
            tmp_path / "run",
            "--model.num_head_channels=16",
            "--data.image_size=16",
            f"--model.use_new_attention_order={str(order == 'new').lower()}",
        )
        self.check(made, {"y": torch.zeros_like(a["t"])} | a, f"out_{order}")
        assert made[1].experiment.config["trainer"]["max_steps"] == 250_000

    def test_of_a_folder_of_diffusers(self, tmp_path, dit, expected):
        for folder in (tmp_path / "own", tmp_path / "pipeline" / "transformer"):
            folder.mkdir(parents=True)
            config = {"num_attention_heads": 4, "num_embeds_ada_norm": 10, "sample_size": 8}
            (folder / "config.json").write_text(json.dumps(config))
            state = {name: w.clone() for name, w in to_diffusers(dit).items()}
            save_file(state, folder / "diffusion_pytorch_model.safetensors")
        for place in ("own", "pipeline"):
            made = imported(tmp_path / place, tmp_path / f"run_{place}")
            self.check(made, expected, tolerance=2e-6)


@pytest.mark.slow
def test_published_sizes_are_chosen_by_their_names(tmp_path):
    """Of DiT-S/2 the number of heads is known; weights are zero, shapes are what counts."""
    shapes = json.loads((ROOT / "tests/golden/adm/imagenet64.json").read_text())["shapes"]
    with torch.device("meta"):
        state = DiT_S(num_classes=1000).state_dict()
    zeros = {name: torch.zeros(1).expand(w.shape) for name, w in state.items()}
    torch.save(zeros, tmp_path / "a.pt")
    options, assumed, _ = official_options(recognise(read(tmp_path / "a.pt")), {})
    assert options["model"] == "DiT_S"
    assert not any("heads" in text for text in assumed)
    zeros = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    torch.save(zeros, tmp_path / "64x64_diffusion.pt")
    options, *_ = official_options(recognise(read(tmp_path / "64x64_diffusion.pt")), {})
    told = {key: options[f"model.{key}"] for key in ("model_channels", "num_res_blocks")}
    assert told == {"model_channels": 192, "num_res_blocks": 3}
    assert options["model.attention_resolutions"] == [2, 4, 8]
    assert options["model.channel_mult"] == [1, 2, 3, 4]
    assert options["data.image_size"] == 64
    assert options["model.resblock_updown"] and options["model.use_scale_shift_norm"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "give --model.num_heads N; valid for 96 channels: 1, 2, 3, 4"),
        ((HEADS, "--data.num_classes=7"), "y_embedder.embedding_table.weight is (11, 96)"),
        ((HEADS, "--model.depth=2"), "blocks.2.adaLN_modulation.1.bias is (576,) in"),
        ((HEADS, "--model.depth=4"), "is absent"),
        ((HEADS, "--model.patch_size=4"), "x_embedder.proj.weight is (96, 4, 2, 2)"),
        (("--model", "DiT_S"), "x_embedder.proj.weight is (96, 4, 2, 2)"),
        (("--model.num_heads=x",), "--model.num_heads takes a whole number; got 'x'"),
        ((HEADS, "--modle=DiT"), "unknown option 'modle'"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(tmp_path, dit, options, says):
    torch.save(dit, tmp_path / "a.pt")
    with pytest.raises(UserError) as error:
        import_checkpoint(tmp_path / "a.pt", tmp_path / "run", options)
    assert says in str(error.value)
    if " is (" in says or "absent" in says:
        assert "in the network" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "named", "says"),
    [
        ({"layer.weight": torch.ones(2)}, {}, "network that is not known (layer.weight"),
        ({}, {}, "no tensor with a name"),
        ("nan", {}, "is not finite"),
        ("dit", {"kind": "dtr"}, "is not of the kind dtr"),
        ("dit", {"weights": "ema"}, "no weights called 'ema'; valid: none: it holds one set"),
        ("half", {}, "it is no whole DiT"),
        ("vp", {}, "SiT with path_type VP is not read"),
    ],
)
def test_weights_of_something_else_are_one_line(tmp_path, dit, content, named, says):
    if content == "nan":
        dit["blocks.0.attn.qkv.bias"][3] = float("nan")
    elif content == "half":
        dit = {name: w for name, w in dit.items() if not name.startswith("final")}
    elif content == "vp":
        dit = {"model": dit, "ema": dit, "args": argparse.Namespace(path_type="VP")}
    torch.save(dit if isinstance(content, str) else content, tmp_path / "a.pt")
    with pytest.raises(UserError) as error:
        import_checkpoint(tmp_path / "a.pt", tmp_path / "run", [HEADS], **named)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"model": "os.system"}, "would import os.system"),
        ({"model": "DiT", "model.class_path": "os.system"}, "unknown option"),
        ({"router": "tests.own_router.Mine"}, "would import tests.own_router.Mine"),
        ({"config": "/etc/passwd"}, "unknown option"),
        ({"model": {"class_path": "x.y"}}, "unknown option"),
        ([1], "header is damaged"),
    ],
)
def test_a_header_names_no_class_but_ours(tmp_path, dit, header, says):
    save_file(dit, tmp_path / "a.safetensors", {"dtr_lightning": json.dumps(header)})
    with pytest.raises(UserError) as error:
        import_checkpoint(tmp_path / "a.safetensors", tmp_path / "run")
    assert says in str(error.value)


@pytest.fixture
def pixels(tmp_path):
    """Returns a checkpoint of a DiT for the digits, as the official code would save it."""
    torch.manual_seed(0)
    sizes = {"input_size": 8, "in_channels": 1, "num_classes": 10, "learn_sigma": True}
    model = DiT(hidden_size=16, depth=2, num_heads=2, **sizes)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    return tmp_path / "a.pt"


RUN = ["--model.num_heads=2", "--data=Digits", "--features=DigitsFeatures", "--evaluation.n=20"]
RUN += ["--sampler.steps=3", "--diffusion.schedule=cosine"]


def command(*words):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.slow
def test_the_run_is_evaluated_sampled_from_and_drawn(tmp_path, pixels):
    out = tmp_path / "run"
    done = command("import_checkpoint.py", pixels, "--out", out, *RUN)
    assert done.returncode == 0, done.stderr
    assert "read: DiT (facebookresearch/DiT)" in done.stdout
    assert "trainer.max_steps 400000" in done.stdout
    again = command("import_checkpoint.py", pixels, "--out", out, *RUN)
    assert again.returncode == 0
    evaluated = command("evaluate.py", out)
    assert evaluated.returncode == 0, evaluated.stderr
    results = json.loads(evaluated.stdout)
    assert results["n"] == 20 and results["steps"] == 400_000
    assert Run(out).results == results
    assert command("sample.py", out, "--n", 4, "--out", tmp_path / "a.png").returncode == 0
    drawn = command("-m", "analysis", out, "--only", "samples", "cka", "--out", tmp_path / "drawn")
    assert "skipped" not in drawn.stdout, drawn.stdout
    assert list((tmp_path / "drawn").glob("*")), drawn.stdout


def test_an_imported_run_is_not_trained_on(tmp_path, pixels):
    made = import_checkpoint(pixels, tmp_path / "run", RUN)
    with pytest.raises(UserError, match=r"was imported.*--init"):
        train(made.experiment.config, tmp_path / "run")
    longer = made.experiment.config
    longer["trainer"]["max_steps"] += 1
    with pytest.raises(UserError, match=r"was imported.*--init"):
        train(longer, tmp_path / "run")


@pytest.mark.slow
def test_without_images_it_is_sampled_from_and_not_scored(tmp_path, pixels, monkeypatch):
    options = ["--model.num_heads=2", "--sampler.steps=3", "--evaluation.n=20"]
    _, made = imported(pixels, tmp_path / "run", *options)
    monkeypatch.setattr(
        sys, "argv", ["sample.py", str(made.run.path), "--n=2", f"--out={tmp_path / 'a.png'}"]
    )
    assert sample.main() == 0
    done = command("evaluate.py", made.run.path)
    assert done.returncode == 2
    assert "this run has no images" in done.stderr.strip().splitlines()[-1]


def test_another_checkpoint_is_another_run(tmp_path, pixels):
    import_checkpoint(pixels, tmp_path / "run", RUN)
    before = (tmp_path / "run" / "meta.json").read_text()
    state = torch.load(pixels, weights_only=True)
    state["pos_embed"] = state["pos_embed"] + 1
    torch.save(state, pixels)
    with pytest.raises(UserError, match="holds another run; choose another --out"):
        import_checkpoint(pixels, tmp_path / "run", RUN)
    assert (tmp_path / "run" / "meta.json").read_text() == before


def test_masks_lie_in_the_run(tmp_path, dit, expected):
    for i, table in enumerate(expected["masks_rtr"]):
        dit[f"blocks.{i}.routing._unit_mapping"] = table.float()
    torch.save(dit, tmp_path / "a.pt")
    made = import_checkpoint(tmp_path / "a.pt", tmp_path / "run", [HEADS])
    stored = np.load(tmp_path / "run" / "masks.npy")
    assert np.array_equal(stored, expected["masks_rtr"].bool().numpy())
    assert max_relative(outputs(network(made.run), expected), expected["out_rtr"]) < 1e-5


@pytest.mark.parametrize("lost", [["meta.json", "ckpt/last.ckpt"], ["ckpt/last.ckpt"], []])
def test_an_import_goes_on_where_it_was_killed_and_one_that_runs_is_told(tmp_path, pixels, lost):
    made = import_checkpoint(pixels, tmp_path / "run", RUN)
    expected = torch.load(made.run.last, weights_only=True)["state_dict"]
    for name in lost:
        (made.run.path / name).unlink()
    with made.run.lock(), pytest.raises(UserError, match="is in use by another process"):
        import_checkpoint(pixels, tmp_path / "run", RUN)
    import_checkpoint(pixels, tmp_path / "run", RUN)
    again = torch.load(made.run.last, weights_only=True)["state_dict"]
    assert all(torch.equal(expected[name], again[name]) for name in expected)
