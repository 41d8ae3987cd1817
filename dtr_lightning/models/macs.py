"""Multiply-adds of a network: what papers on DiT call GFLOPs."""

__all__ = ["count_macs", "on_meta"]

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def on_meta(model: nn.Module) -> nn.Module:
    """Returns a copy whose tensors are shapes on the meta device: it takes no memory."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(x): x.detach().to("meta") for x in tensors}).eval()


def count_macs(model: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> int:
    """Returns the multiply-adds of the matrix products and convolutions of model(x, t, y).

    All are on the meta device, where nothing is computed. FLOPs are twice as many.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, t, y)
    return counter.get_total_flops() // 2
