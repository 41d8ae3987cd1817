"""What the average of the weights takes over from the module besides the weights."""

import torch

from dtr_lightning.diffusion import Diffusion
from dtr_lightning.models import DiT
from dtr_lightning.objectives import UW, Constant
from dtr_lightning.routing import MaxRoaming
from dtr_lightning.training.ema import EMA
from dtr_lightning.training.module import DiffusionModule


def averaged(router=None, loss_weight=None):
    sizes = {"input_size": 4, "hidden_size": 8, "depth": 1, "num_heads": 2, "num_classes": 1}
    module = DiffusionModule(DiT(**sizes, router=router), Diffusion(), loss_weight or Constant())
    ema = EMA(0.5, warmup=False)
    ema.setup(None, module, "fit")
    ema.on_fit_start(None, module)
    return module, ema


def test_the_average_has_the_present_masks():
    router = MaxRoaming(beta=0.5, interval=1)
    module, ema = averaged(router)
    start = router.table(0).clone()
    router.advance(3, module.model.embed)
    ema.update(module)
    assert not torch.equal(router.table(0), start)
    assert torch.equal(ema.module.model.router.table(0), router.table(0))


def test_learned_loss_weights_are_taken_over_and_not_averaged():
    module, ema = averaged(loss_weight=UW())
    with torch.no_grad():
        module.loss_weight.s.fill_(3)
        module.model.final_layer.linear.bias.fill_(3)
    ema.update(module)
    assert (ema.module.loss_weight.s == 3).all()
    assert (ema.module.model.final_layer.linear.bias == 1.5).all()


def test_an_update_moves_the_average_by_the_share_that_the_decay_leaves():
    module, ema = averaged()
    before = [p.detach().clone() for p in ema.module.model.parameters()]
    with torch.no_grad():
        for p in module.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    ema.update(module)
    for old, average, new in zip(before, ema.average, ema.current, strict=True):
        assert torch.equal(average, torch.lerp(old, new, 0.5))
