"""Everything combines with everything: one training step of each product of the axes."""

import itertools

import numpy as np
import pytest
import torch

from dtr_lightning.config.parser import resolve
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.objectives import Gradients, LossWeight
from dtr_lightning.routing import Router
from tests.conftest import ROOT, shipped, slow_except

DIT = {"patch_size": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
ADM = {"model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [2]}
BACKBONES = {
    "DiT": ("Digits", DIT, "Diffusion"),
    "ADM": ("Digits", ADM | {"channel_mult": [1, 2], "class_dropout_prob": 0.1}, "Diffusion"),
    "TextDiT": ("DigitsCaptions", DIT, "Diffusion"),
    "flow": ("Digits", DIT, "FlowMatching"),
}
WEIGHTS = [("loss_weight", name) for name in shipped(LossWeight)]
WEIGHTS += [("gradients", name) for name in shipped(Gradients) if name != "Joint"]
ROUTERS = {backbone: [*shipped(Router)] for backbone in BACKBONES}
ROUTERS["ADM"].remove("FixedMasks")  # one file of masks has one width


def choice(name, **arguments):
    return {"class_path": name, "init_args": arguments}


@pytest.fixture(scope="module")
def base(device):
    options = {"trainer.max_steps": 1, "trainer.accelerator": device.type}
    return resolve(ROOT / "configs" / "digits.yaml", options)


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "masks.npy"
    np.save(path, np.random.default_rng(0).random((2, 1000, 16)) < 0.5)
    return str(path)


def step(config):
    experiment = Experiment(config)
    module = experiment.module
    torch.nn.init.normal_(next(module.model.parameters()))
    before = [p.detach().clone() for p in module.parameters() if p.requires_grad]
    trainer = experiment.trainer([], [])
    trainer.fit(module, datamodule=experiment.data)
    assert trainer.global_step == 1
    after = [p for p in module.parameters() if p.requires_grad]
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return module


def steps(base, masks, router, backbone, weights):
    """Takes a step with each of the loss weights and gradient rules."""
    data, sizes, process = BACKBONES[backbone]
    arguments = {"path": masks} if router == "FixedMasks" else {}
    for axis, name in weights:
        config = base | {
            "data": choice(data, batch_size=9),
            "model": choice("DiT" if backbone == "flow" else backbone, **sizes),
            "router": choice(router, **arguments),
            "diffusion": choice(process),
            "sampler": choice("Heun" if process == "FlowMatching" else "DDIM"),
            axis: choice(name),
        }
        module = step(config)
        learned = [p for p in module.loss_weight.parameters() if p.grad is not None]
        assert len(learned) == len(list(module.loss_weight.parameters()))


@pytest.mark.parametrize("backbone", slow_except(BACKBONES, "DiT"))
def test_one_step_of_every_router_and_every_loss_weight_or_rule(base, masks, backbone):
    """Router i takes loss weight or gradient rule i, shifted from backbone to backbone."""
    routers, shift = ROUTERS[backbone], [*BACKBONES].index(backbone)
    for i in range(max(len(routers), len(WEIGHTS))):
        weight = WEIGHTS[(i + shift) % len(WEIGHTS)]
        steps(base, masks, routers[i % len(routers)], backbone, [weight])


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "router"), [(b, r) for b, rs in ROUTERS.items() for r in rs])
def test_one_step_of_the_whole_product(base, masks, router, backbone):
    steps(base, masks, router, backbone, WEIGHTS)


def test_learned_weights_combine_with_gradient_rules(base):
    for weight, rule in itertools.product(("UW", "CUW", "MinSNR"), ("PCGrad", "NashMTL")):
        config = base | {"data": choice("Digits", batch_size=9)}
        config |= {"model": choice("DiT", **DIT), "loss_weight": choice(weight)}
        module = step(config | {"gradients": choice(rule)})
        assert all(p.grad.abs().sum() > 0 for p in module.loss_weight.parameters())
