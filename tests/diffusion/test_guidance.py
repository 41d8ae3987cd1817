"""Guidance mixes two predictions in one pass; indexed noise belongs to the sample's index."""

import pytest
import torch
from torch import Tensor

from dtr_lightning.diffusion.samplers import IndexedNoise, guided
from dtr_lightning.errors import UserError


def labelled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A network with 2C output channels that differ, and depend on x, t and y."""
    shift = (y + t / 1000)[:, None, None, None] * torch.arange(1, 2 * x.shape[1] + 1)[:, None, None]
    return torch.cat([x, x.square()], 1) + shift


def null(y: Tensor) -> Tensor:
    return torch.full_like(y, 10)


@pytest.mark.parametrize("channels", ["all", "first3"])
def test_guidance(channels):
    x = torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    t, y = torch.arange(5), torch.tensor([0, 3, 1, 2, 3])
    conditional, unconditional = labelled(x, t, y), labelled(x, t, null(y))
    calls = []

    def model(*args: Tensor) -> Tensor:
        calls.append(args)
        return labelled(*args)

    output = guided(model, 1.5, null, channels)(x, t, y)
    assert len(calls) == 1 and len(calls[0][0]) == 10
    g = 4 if channels == "all" else 3
    torch.testing.assert_close(output[:, :g], (1.5 * conditional - 0.5 * unconditional)[:, :g])
    assert torch.equal(output[:, g:], conditional[:, g:])
    torch.testing.assert_close(
        guided(model, 0.0, null, channels)(x, t, y)[:, :g], unconditional[:, :g]
    )


def test_guidance_at_one_is_the_conditional_model():
    assert guided(labelled, 1.0, null=null) is labelled


@pytest.mark.parametrize("C", [1, 3])
def test_both_guidances_agree_up_to_three_channels(C):
    x, t = torch.ones(2, C, 2, 2), torch.tensor([0, 7])
    y = torch.tensor([1, 2])
    first3, every = (
        guided(labelled, 2.0, null, channels)(x, t, y) for channels in ("first3", "all")
    )
    assert torch.equal(first3, every)


def test_bad_guidance_is_refused():
    with pytest.raises(UserError, match="all, first3"):
        guided(labelled, 1.5, null, "last")
    with pytest.raises(UserError, match="finite"):
        guided(labelled, float("nan"), null)


def test_indexed_noise_depends_on_seed_and_index_only():
    state = torch.get_rng_state()
    noise = IndexedNoise(3, range(64), (1, 8, 8))
    first, second = noise(), noise()
    alone = IndexedNoise(3, [17], (1, 8, 8))
    assert torch.equal(alone()[0], first[17]) and torch.equal(alone()[0], second[17])
    other = IndexedNoise(4, range(64), (1, 8, 8))()
    everything = torch.cat([first, second, other]).flatten(1)
    assert len(everything.unique(dim=0)) == 3 * 64
    assert everything.mean().abs() < 0.05 and abs(everything.std() - 1) < 0.05
    assert torch.equal(torch.get_rng_state(), state)
