"""The shipped autoencoder of MNIST: it loads as any other, and its card tells the truth."""

import json
import sys
from importlib import resources

import pytest
import torch

from dtr_lightning.data import MNIST, to_float
from dtr_lightning.data.train_vae import LAYOUT, RECIPE, psnr, shift, train
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.resumable import Resumable

FOLDER = resources.files("dtr_lightning.data") / "mnist_vae"
CARD = json.loads((FOLDER / "card.json").read_text())


@pytest.fixture(scope="module")
def vae():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKL.from_pretrained(
        str(FOLDER), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    ).eval()


@pytest.mark.slow
def test_the_card_tells_the_truth(vae):
    images = MNIST().split("val").tensors[0]
    assert CARD["held_out_images"] == len(images) and CARD["recipe"] == RECIPE
    assert CARD["parameters"] == sum(p.numel() for p in vae.parameters())
    assert psnr(vae, images) == pytest.approx(CARD["held_out_psnr"], abs=0.01)
    assert CARD["held_out_psnr"] >= 26
    assert {key: vae.config[key] for key in LAYOUT} == LAYOUT


def test_scaled_latents_have_unit_variance(vae):
    images = to_float(MNIST().split("train").tensors[0][::8])
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    assert posterior.mean.shape == (500, 4, 8, 8)
    latents = posterior.sample(torch.Generator().manual_seed(0)) * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.02)


def test_a_shift_keeps_every_pixel():
    images = MNIST().split("val").tensors[0][:64]
    moved = shift(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved.flatten(1).sort().values, images.flatten(1).sort().values)
    assert not torch.equal(moved, images)


def test_training_without_diffusers_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install -r requirements-scale"):
        train(lambda done, total, text: None, Resumable(None, {}))
