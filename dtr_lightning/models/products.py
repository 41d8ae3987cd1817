"""Linear layers and GELU on tokens, in float32 on a CPU up to twice as fast as PyTorch's own.

Elsewhere, on a GPU and under autocast, they are PyTorch's own. Derivatives are first-order.
"""

__all__ = ["gelu", "linear"]

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# tanh(u) = 2 sigmoid(2 u) - 1 turns GELU's tanh form into x sigmoid(x (A + B x^2))
A, B = 1.5957691216057308, 0.07135481627260025  # 2 sqrt(2 / pi), 0.044715 A
# PyTorch sends float32 products to MKL, whose code for an AMD core does half of what oneDNN's does.
ONEDNN = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Returns the layer's output (N, L, C_out) for tokens x (N, L, C_in)."""
    return _Linear.apply(x, layer.weight, layer.bias) if ONEDNN and _plain(x) else layer(x)


def gelu(x: Tensor) -> Tensor:
    """Returns GELU(x), elementwise, in its tanh form (Hendrycks & Gimpel 2016, Section 2)."""
    if torch.compiler.is_compiling() and x.is_cpu:
        return x * torch.sigmoid(x * (A + B * x * x))
    return F.gelu(x, approximate="tanh")


def _plain(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# Inductor takes oneDNN's products with constant weights only, so it is given a name of our own.
LIBRARY = torch.library.Library("dtr_lightning", "FRAGMENT")
LIBRARY.define("product(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor")
LIBRARY.impl("product", _onednn, "CPU")


@torch.library.register_fake("dtr_lightning::product")
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns x W^T + b."""
    compiling = torch.compiler.is_compiling()
    return (torch.ops.dtr_lightning.product if compiling else _onednn)(x, weight, bias)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, columns = grad.flatten(0, -2), x.flatten(0, -2)  # (N L, C_out), (N L, C_in)
        # the first factor is copied, so that is the narrower one
        if rows.shape[1] <= columns.shape[1]:
            grad_weight = _product(rows.t(), columns.t())
        else:
            grad_weight = _product(columns.t(), rows.t()).t()
        return _product(grad, weight.t()), grad_weight, rows.sum(0)
