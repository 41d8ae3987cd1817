"""A tiny AutoencoderKL with random weights, in diffusers' layout: 8x8 pixels become 4x4 latents."""

import pytest
import torch

SCALE = 0.7


def tiny_vae(path, channels=1, latent_channels=4, seed=0, **options):
    """Writes the folder and returns it; the test is skipped where diffusers is not installed."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = diffusers.AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            latent_channels=latent_channels,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=SCALE,
            **options,
        )
    network.save_pretrained(path)
    return str(path)
