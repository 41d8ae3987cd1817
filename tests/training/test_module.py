"""Manual optimisation: what a step by clusters has in common with an ordinary one, and ranks."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from tests.conftest import ROOT, TINY
from tests.two_ranks import measure


def fitted(config, precision="32-true"):
    config["trainer"] |= {"max_steps": 2, "precision": precision, "accelerator": "cpu"}
    experiment = Experiment(config)
    trainer = experiment.trainer([], [])
    trainer.fit(experiment.module, datamodule=experiment.data)
    return experiment.module


@pytest.mark.parametrize("rule", ["PCGrad", "NashMTL"])
def test_bfloat16_steps_are_near_those_of_float32(tiny, rule):
    config = tiny(gradients=rule, gradients__clusters=4)
    whole, half = fitted(config), fitted(config, "bf16-mixed")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.parameters())
    grads = [
        torch.cat([p.grad.flatten() for p in m.model.parameters() if p.requires_grad])
        for m in (whole, half)
    ]
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.9


def test_one_cluster_after_the_other_has_the_losses_of_the_whole_batch(tiny):
    module = Experiment(tiny(gradients="PCGrad", gradients__clusters=4, data__batch_size=10)).module
    module.optimizers = lambda: torch.optim.SGD(module.model.parameters(), lr=0.0)
    strategy = SimpleNamespace(reduce=lambda gradient, reduce_op: gradient)
    module._trainer = SimpleNamespace(strategy=strategy, global_step=0)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 10, 1, 8, 8, generator=generator)
    t = torch.tensor([3, 100, 200, 260, 300, 470, 600, 740, 800, 999])
    y = torch.arange(10)
    loss, parts = module._step_by_cluster(x0, t, y, noise)
    whole = module.losses(x0, t, y, noise)
    torch.testing.assert_close(parts.mse, whole.mse.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.vb, whole.vb.detach(), rtol=1e-4, atol=1e-6)
    clusters = (whole.mse + whole.vb).split([3, 3, 2, 2])
    torch.testing.assert_close(loss, torch.stack([c.mean() for c in clusters]).mean().detach())


@pytest.mark.parametrize("gradients", ["Joint", "PCGrad"])
def test_clipping_spares_learned_loss_weights(tiny, gradients):
    config = tiny(loss_weight="UW", trainer__gradient_clip_val=1e-3, gradients=gradients)
    module = fitted(config)
    network = [p.grad for p in module.model.parameters() if p.grad is not None]
    assert torch.nn.utils.get_total_norm(network) <= 1.001e-3
    assert module.loss_weight.s.grad.norm() > 1e-2


@pytest.mark.parametrize("options", [{"loss_weight": "UW"}, {"gradients": "PCGrad"}])
def test_a_batch_with_less_than_one_sample_per_cluster_is_refused(tiny, options):
    config = tiny(data__batch_size=14, **options)
    config["trainer"] |= {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}
    experiment = Experiment(config)
    with pytest.raises(UserError, match=r"7 samples .* 8 clusters"):
        experiment.check()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two processes found: they are started once, which takes longest."""
    folder = tmp_path_factory.mktemp("two_ranks")
    systems = {"router": "MaxRoaming", "router.interval": 1, "gradients": "PCGrad"}
    config = resolve(ROOT / "configs" / "digits.yaml", TINY | systems)
    config["trainer"] |= {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}
    config["trainer"]["log_every_n_steps"] = 2
    config["checkpoint"]["every"] = 6
    config["data"]["init_args"]["batch_size"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tests.two_ranks", folder / "config.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


@pytest.mark.slow
def test_two_ranks_hold_one_network_and_one_set_of_masks(two_ranks):
    same = {"equal": True, "ranks": 2, "steps": 3, "moved": True}
    assert two_ranks["networks"] == same | {"broadcasts in steps": 0}


@pytest.mark.slow
def test_two_ranks_stop_together_when_one_is_asked_to(two_ranks):
    """Asked after step 2, the first rank says yes; all know it one step later."""
    assert two_ranks["stop"] == {
        "left": [True, True],
        "stopped at": 3,
        "status": "stopped",
        "same": [True, True, True],
        "same records": True,
    }


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(two_ranks, tiny):
    alone = measure(tiny())
    assert len(alone["images"]) == len(alone["labels"]) == 12
    for key, value in alone.items():
        assert two_ranks["measured"][key] == pytest.approx(value, rel=1e-5), key
