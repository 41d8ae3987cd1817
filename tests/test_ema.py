"""What the average of the weights takes over from the module besides the weights."""

import torch

from dtr_lightning.diffusion import Diffusion
from dtr_lightning.ema import EMA
from dtr_lightning.loss_weights import Constant
from dtr_lightning.models import DiT
from dtr_lightning.module import DiffusionModule
from dtr_lightning.routers import DTR


def test_the_average_follows_masks_that_a_router_changes_in_place_or_anew():
    sizes = {"input_size": 4, "hidden_size": 8, "depth": 1, "num_heads": 2, "num_classes": 1}
    module = DiffusionModule(DiT(**sizes, router=DTR()), Diffusion(), Constant())
    ema = EMA(0.5, warmup=False)
    ema.setup(None, module, "fit")
    ema.on_fit_start(None, module)
    router = module.model.router
    start = router.table(0).clone()
    router.table(0).logical_not_()
    ema.update(module)
    assert torch.equal(ema.module.model.router.table(0), ~start)
    router.table_0 = start.roll(1, dims=1)
    ema.update(module)
    assert torch.equal(ema.module.model.router.table(0), start.roll(1, dims=1))
