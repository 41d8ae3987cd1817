"""What can be told before training is told then: exit code 2, one line, nothing written."""

import numpy as np
import pytest
import torch
from PIL import Image

from dtr_lightning.cli.summary import summary
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import planning
from dtr_lightning.experiment.fit import run
from sweeps.engine import driver, plan, recipe
from tests.conftest import ROOT

TASKS, WIDTH = 1000, 16


@pytest.fixture
def files(tmp_path):
    """Returns a directory of files that are not what an option needs."""
    np.save(tmp_path / "three.npy", np.ones((3, TASKS, WIDTH), bool))
    np.save(tmp_path / "narrow.npy", np.ones((2, TASKS, WIDTH - 1), bool))
    np.save(tmp_path / "empty.npy", np.zeros((2, TASKS, WIDTH), bool))
    np.save(tmp_path / "halves.npy", np.full((2, TASKS, WIDTH), 0.5))
    np.save(tmp_path / "small.npy", np.ones((3, 3)))
    np.save(tmp_path / "nan.npy", np.full((TASKS, TASKS), np.nan))
    np.save(tmp_path / "sound.npy", np.ones((TASKS, TASKS)))
    (tmp_path / "text.npy").write_text("no array")
    torch.save({"a": 1}, tmp_path / "other.pth")
    (tmp_path / "two").mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / "two" / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("evaluation.seed=18446744073709551616", "evaluation.seed must be 0 or more and at most"),
        ("evaluation.seed=4294967296", "evaluation.seed must be 0 or more and at most"),
        ("seed=18446744073709551616", "seed must be at most"),
        ("data=ImageFolder data.root={}/two data.size=8 data.batch_size=1 evaluation.guidance=1 "
         "features=TimmFeatures features.model=test_resnet features.size=32",
         "at least 2 training images"),
        ("data=ImageFolder data.root={}/none data.size=8", "does not exist"),
        ("evaluation.guidance=2 model.class_dropout_prob=0", "guidance 2 needs .*: train with"),
        ("data=ImageFolder data.root={}/two data.size=8 data.batch_size=1 "
         "features=TimmFeatures features.model=test_resnet features.size=32",
         "guidance .* needs .* have no classes"),
        ("features=TimmFeatures features.weights={}/none.pth", "weights .*none.pth do not exist"),
        ("features=DINOv2Features features.weights={}/none.pth", "weights .* do not exist"),
        ("features=InceptionFeatures features.weights={}/none.pth", "weights .* do not exist"),
        ("features=TimmFeatures features.model=test_resnet features.weights={}/other.pth",
         "does not hold the weights"),
        ("features=TimmFeatures features.model=nope", "unknown timm model"),
        ("sampler.steps=1001", "cannot keep 1001 of 1000"),
        ("sampler=DPMSolver sampler.spacing=log_snr sampler.steps=100000000000", "lie in 2..T"),
        ("model.hidden_size=18", "divisible by num_heads"),
        ("model.patch_size=3", "does not divide the image size"),
        ("model.mlp_ratio=0.01", "mlp_ratio must be at least"),
        ("model.mlp_ratio=.inf", "mlp_ratio must be a finite number"),
        ("module.lr=.inf", "lr must be a finite number"),
        ("loss_weight=P2 loss_weight.gamma=.inf", "P2 needs a finite gamma"),
        ("trainer.devices=x", "trainer: "),
        ("gradients=PCGrad gradients.clusters=2 gradients.clustering=affinity "
         "gradients.affinity={}/none.npy", "affinities cannot be read"),
        ("gradients=PCGrad gradients.clusters=2 gradients.clustering=affinity "
         "gradients.affinity={}/small.npy", "needed: .1000, 1000."),
        ("loss_weight=UW loss_weight.clusters=2 loss_weight.clustering=affinity "
         "loss_weight.affinity={}/nan.npy", "NaN or infinity"),
        ("loss_weight=UW loss_weight.clusters=2 loss_weight.affinity={}/sound.npy",
         "is for clustering affinity, not equal"),
        ("router=FixedMasks router.path={}/none.npy", "masks cannot be read"),
        ("router=FixedMasks router.path={}/text.npy", "masks cannot be read"),
        ("router=FixedMasks router.path={}/three.npy", "masks for 3 blocks .* model has 2 blocks"),
        ("router=FixedMasks router.path={}/narrow.npy", "reads 16 channels"),
        ("router=FixedMasks router.path={}/empty.npy", "leaves task 0 no channel"),
        ("router=FixedMasks router.path={}/halves.npy", "values other than 0 and 1"),
        ("experts=[[0,500],[400,1000]]", "experts overlap"),
        ("experts=[[0,500],[600,1000]]", "experts leave a gap"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_training(tiny, files, options, message):
    given = dict(word.split("=", 1) for word in options.format(files).split())
    with pytest.raises(UserError, match=message) as error:
        run(tiny(**{key.replace(".", "__"): value for key, value in given.items()}), files / "run")
    assert "\n" not in str(error.value)
    assert not (files / "run").exists()


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"model.hidden_size": [64, 66]}, "hidden_size=66 seed=0: hidden_size 66 must be"),
        ({"module.lr": [1e-3, -1]}, "lr=-1 seed=0: lr must be positive"),
        ({"router": "RTR", "router.beta": [0.5, 0.01]}, "RTR beta=0.01 seed=0: beta = 0.01 leaves"),
        ({"router": "ERCDT", "router.clusters": [8, 33]}, "ERCDT clusters=33 seed=0: 33 clusters"),
        ({"evaluation.guidance": [1, 2], "model.class_dropout_prob": 0}, "guidance 2 needs"),
        ({"data": ["Digits", "DigitsCaptions"]}, "data=DigitsCaptions seed=0: DiT needs data with"),
        ({"data.batch_size": [64, 6400]}, "batch_size=6400 seed=0: batch size 6400 is larger"),
        ({"features": "TimmFeatures", "features.weights": ["none"]}, "none do not exist"),
        ({"trainer.devices": ["x"]}, "trainer: "),
    ],
)
def test_a_plan_tells_of_a_point_that_could_not_start(tmp_path, axis, message):
    sweep = {"config": str(ROOT / "configs" / "digits.yaml"), "grid": [axis]}
    with pytest.raises(UserError) as error:
        driver.run_sweep(sweep, out=tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", recipe.names())
@pytest.mark.slow
def test_every_shipped_plan_could_start(name):
    points = plan.resolve_all(recipe.read(name)).known_points()
    planning.check_parts({point.label: point.config for point in points})


@pytest.mark.parametrize(
    "model",
    [
        {"class_path": "DiT_B", "init_args": {}},
        {
            "class_path": "ADM",
            "init_args": {
                "model_channels": 128,
                "num_res_blocks": 2,
                "attention_resolutions": [2],
                "channel_mult": [1, 2],
            },
        },
    ],
    ids=["DiT_B", "ADM"],
)
def test_a_network_is_planned_without_its_memory(model, monkeypatch, tiny):
    planned = []
    monkeypatch.setattr(planning, "check_guidance", lambda network, scale: planned.append(network))
    planning.check_parts({"one": tiny(router="DTR") | {"model": model}})
    assert all(parameter.is_meta for parameter in planned[0].parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers must be"),
        ({"per_gpu": 0}, "--per-gpu must be"),
        ({"storage": "nonsense"}, "cannot be used"),
        ({"storage": "sqlite://"}, "cannot be used: no file"),
        ({"storage": "sqlite:////none/study.db"}, "cannot be used: no file in a directory"),
    ],
)
def test_a_sweep_that_cannot_begin_writes_nothing(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        driver.run_sweep("seeds", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_summary_has_every_measured_number_and_the_notes():
    results = {
        "score_name": "fd", "score": 1.25, "n": 1000, "floor": 0.5, "accuracy": 0.75,
        "kid": None, "loss": 0.125, "steps": 7, "seconds": 3.0, "notes": ["few images"],
    }  # fmt: skip
    lines = summary(results)
    assert lines[0].split() == "score 1.25 (fd of 1,000 samples, floor 0.5)".split()
    assert [line.split() for line in lines[1:3]] == [
        ["accuracy", "0.75"],
        "held-out loss 0.125".split(),
    ]
    assert lines[3:] == ["note: few images"]
    assert "-" in summary(results | {"score": None})[0]
