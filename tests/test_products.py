"""The products and GELU of the blocks are PyTorch's own, whichever kernels compute them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dtr_lightning.models import products
from dtr_lightning.models.products import gelu, linear
from tests.conftest import max_relative


def layer_and_tokens(c_in, c_out, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(c_in, c_out)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(3, 5, c_in, generator=generator).requires_grad_(requires_grad)
    return layer, x


def gradients(function, layer, x):
    loss = function(x).sin().sum()
    return torch.autograd.grad(loss, [x, *layer.parameters()])


@pytest.mark.parametrize(("c_in", "c_out"), [(6, 17), (17, 6), (8, 8)])
def test_linear_is_the_layer_and_so_are_its_gradients(c_in, c_out):
    layer, x = layer_and_tokens(c_in, c_out)
    assert max_relative(linear(layer, x).detach(), layer(x).detach()) < 1e-6
    ours = gradients(lambda x: linear(layer, x), layer, x)
    theirs = gradients(layer, layer, x)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and max_relative(a, b) < 1e-5


def test_linear_takes_tokens_in_any_memory_layout():
    layer, x = layer_and_tokens(6, 4)
    turned = x.transpose(0, 1)
    assert not turned.is_contiguous()
    assert max_relative(linear(layer, turned).detach(), layer(turned).detach()) < 1e-6


def test_gradients_of_gradients_are_refused_not_wrong():
    if not products.ONEDNN:
        pytest.skip("PyTorch's own products here")
    layer, x = layer_and_tokens(6, 4)
    (slope,) = torch.autograd.grad(linear(layer, x).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_autocast_and_float64_take_the_plain_layer():
    layer, x = layer_and_tokens(6, 4, requires_grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(layer, x), layer(x)) and linear(layer, x).dtype == torch.bfloat16
    double = layer.double()
    assert torch.equal(linear(double, x.double()), double(x.double()))


def test_compiled_gradients_equal_eager_ones():
    layer, x = layer_and_tokens(6, 4)

    def block(x):
        return gelu(linear(layer, x))

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert max_relative(compiled(x).detach(), block(x).detach()) < 1e-6
    for a, b in zip(gradients(compiled, layer, x), gradients(block, layer, x), strict=True):
        assert max_relative(a, b) < 1e-5


def test_gelu_is_the_tanh_form():
    x = torch.linspace(-8, 8, 1001)
    compiled = torch.compile(gelu, fullgraph=True, backend="aot_eager")
    expected = F.gelu(x.double(), approximate="tanh")
    for values in (gelu(x), compiled(x)):
        assert (values - expected).abs().max() < 2e-6
