"""Codecs: pixels are as they were; latents are what the posterior's formula says."""

import logging
import warnings

import pytest
import torch

from dtr_lightning.data import VAE, Digits, Pixels, to_float, to_uint8
from dtr_lightning.data.pretrained import reading
from dtr_lightning.errors import UserError
from tests.data.tiny_vae import SCALE, tiny_vae


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return VAE(tiny_vae(tmp_path_factory.mktemp("vae")))


def images(n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)


def draws_nothing(shape):
    raise AssertionError("nothing is to be drawn")


def test_pixels_are_stored_as_they_are():
    codec, x = Pixels(), images()
    assert codec.image_shape((1, 8, 8)) == (1, 8, 8) and codec.describe() == {}
    assert torch.equal(codec.sample(codec.encode(x), draws_nothing), to_float(x))
    assert torch.equal(codec.decode(codec.mean(x)), x) and torch.equal(codec.restore(x), x)
    assert Digits().image_shape == Digits().shape == (1, 8, 8)


def test_latents_are_scaled_draws_from_the_posterior(vae):
    moments = vae.encode(images())
    assert moments.shape == (3, 8, 4, 4)
    posterior = vae.network.encode(to_float(images())).latent_dist
    assert torch.equal(moments, posterior.parameters)
    noise = torch.randn(3, 4, 4, 4)
    expected = (posterior.mean + posterior.std * noise) * SCALE
    torch.testing.assert_close(vae.sample(moments, lambda shape: noise), expected)
    torch.testing.assert_close(vae.mean(moments), posterior.mean * SCALE)
    mean = VAE(vae.path, posterior="mean")
    assert torch.equal(mean.sample(moments, draws_nothing), vae.mean(moments))


def test_latents_decode_to_the_network_s_images(vae):
    x = vae.mean(vae.encode(images()))
    expected = to_uint8(vae.network.decode(x / SCALE).sample)
    assert torch.equal(vae.decode(x), expected)
    assert torch.equal(vae.restore(vae.encode(images())), expected)
    bf16 = vae.decode(x, "bf16")
    assert bf16.dtype == torch.uint8 and not torch.equal(bf16, expected)
    assert (bf16.float() - expected.float()).abs().mean() < 8
    assert torch.equal(vae.decode(x), expected)  # what bf16 rounded is not kept


def test_the_posterior_s_log_variance_is_limited(vae):
    moments = torch.zeros(1, 8, 4, 4)
    moments[:, 4:] = 1e4
    assert vae.sample(moments, torch.ones).isfinite().all()


def test_a_vae_is_known_by_its_weights(vae, tmp_path):
    assert VAE(tiny_vae(tmp_path / "same")).digest == vae.digest
    assert VAE(tiny_vae(tmp_path / "other", seed=1)).digest != vae.digest
    assert vae.describe() == {"codec": "VAE", "vae": vae.digest}


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 8, 8), "1 channels, these have 3"), ((1, 9, 8), "factor 2"), ((1, 8, 7), "factor 2")],
)
def test_images_that_do_not_fit(vae, shape, message):
    with pytest.raises(UserError, match=message):
        vae.latent_shape(shape)
    assert vae.latent_shape((1, 8, 8)) == (4, 4, 4)
    with pytest.raises(UserError, match="latents of 4 channels, the stored ones 3"):
        vae.image_shape((3, 4, 4))


def test_a_folder_that_is_no_vae(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match="does not exist"):
        VAE(str(tmp_path / "nowhere")).network  # noqa: B018
    with pytest.raises(UserError, match="no autoencoder at"):
        VAE(str(tmp_path)).network  # noqa: B018


def test_a_name_that_the_hub_does_not_give_is_one_line(capfd, caplog):
    client = logging.getLogger("huggingface_hub.utils._http")
    with pytest.raises(UserError) as caught, reading("lab/vae", "autoencoder") as local:
        client.warning("Retrying in 8s [Retry 5/5].")
        warnings.warn_explicit("deprecated", UserWarning, "_validators.py", 1, "huggingface_hub.x")
        assert not local
        raise OSError("lab/vae has no file config.json.\nSee the documentation.")
    assert str(caught.value) == (
        "no autoencoder at lab/vae: no such folder, and not to be had from the Hugging Face hub "
        "(lab/vae has no file config.json); where there is no network, give a local folder"
    )
    assert not caplog.records and not any(capfd.readouterr())
    client.warning("of somebody else")
    assert "of somebody else" in caplog.text
