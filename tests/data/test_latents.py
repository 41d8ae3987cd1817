"""Stores as data: batches, order and identity as elsewhere; what is amiss is one line."""

from types import SimpleNamespace

import pytest
import torch

from dtr_lightning.config.contents import contents as contents_of
from dtr_lightning.config.contents import with_absolute_paths
from dtr_lightning.data import VAE, Data, Digits, Latents, Pixels, PixelStore
from dtr_lightning.data.encoding import EncodedImages
from dtr_lightning.data.store_writer import write_store
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.naming import identity
from tests.data.stores import RandomRows, bits, contents
from tests.data.tiny_vae import SCALE, tiny_vae


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return tiny_vae(tmp_path_factory.mktemp("vae") / "vae")


@pytest.fixture(scope="module")
def latents(tmp_path_factory, vae):
    """The digits as latents of the tiny VAE, mirrored ones too."""
    folder = tmp_path_factory.mktemp("latents") / "store"
    write_store(folder, EncodedImages(Digits(), VAE(vae), block=128))
    return folder


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels") / "store"
    write_store(folder, EncodedImages(Digits(), Pixels(), mirrored=False))
    return folder


def test_stored_pixels_train_as_the_images_do(pixels):
    digits, stored = Digits(batch_size=50), PixelStore(pixels, batch_size=50)
    assert stored.sizes() == digits.sizes() and stored.class_counts() == digits.class_counts()
    assert stored.record() == stored.sizes() and stored.flip is False
    batches = [next(iter(data.train_dataloader())) for data in (digits, stored)]
    assert all(map(torch.equal, *batches))
    batches = [next(data.image_batches("val")) for data in (digits, stored)]
    assert all(map(torch.equal, *batches))


def test_stored_latents_are_the_encoded_images_and_mirrored_ones(latents, vae):
    data = Latents(latents, batch_size=64)
    assert data.shape == (4, 4, 4) and data.image_shape == (1, 8, 8)
    assert data.describe().startswith("1,797 images, 10 classes, 360 held out; latents of 4 x 4")
    assert data.class_counts() == Digits().class_counts()
    images, codec = Digits().split("train").tensors[0][:128], VAE(vae)
    split = data.split("train")
    for flips, expected in ((None, images), (torch.ones(128, dtype=bool), images.flip(-1))):
        stored, _ = split.batch(torch.arange(128), flips)
        assert stored.dtype == torch.float16 and stored.shape == (128, 8, 4, 4)
        torch.testing.assert_close(stored.float(), codec.encode(expected), rtol=2e-3, atol=1e-4)
    decoded = next(data.image_batches("val"))[0]
    moments = data.split("val").batch(torch.arange(512 if len(decoded) == 512 else 360))[0]
    assert torch.equal(decoded, codec.restore(moments)) and decoded.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_seed_and_step(latents, workers):
    def batches(start, count, rank=0, world=1):
        data = Latents(latents, batch_size=64, workers=workers)
        data.seed = 3
        data.trainer = SimpleNamespace(
            global_step=start, accumulate_grad_batches=1, global_rank=rank, world_size=world
        )
        loader = iter(data.train_dataloader())
        return [next(loader) for _ in range(count)]

    whole = batches(0, 30)
    for (a, b), (c, d) in zip(whole[20:], batches(20, 10), strict=True):
        assert torch.equal(bits(a), bits(c)) and torch.equal(b, d)
    halves = [batches(7, 1, rank, 2)[0] for rank in range(2)]
    assert torch.equal(
        bits(whole[7][0]), bits(torch.stack([h[0] for h in halves], 1).flatten(0, 1))
    )
    images = {bits(image).numpy().tobytes() for batch, _ in whole for image in batch}
    plain = Latents(latents).split("train").batch(torch.arange(1437))[0]
    unflipped = {bits(image).numpy().tobytes() for image in plain}
    assert 0.4 < len(images & unflipped) / len(images) < 0.6


def test_the_posterior_is_drawn_or_its_mean_taken(latents):
    drawn, mean = Latents(latents), Latents(latents, posterior="mean")
    stored = drawn.split("train").batch(torch.arange(4))[0]
    noise = torch.ones(4, 4, 4, 4)
    means, log_variance = stored.float().chunk(2, 1)
    expected = (means + log_variance.div(2).exp()) * SCALE
    torch.testing.assert_close(drawn.codec.sample(stored, lambda shape: noise), expected)
    assert torch.equal(mean.codec.sample(stored, None), means * SCALE)


@pytest.mark.slow
def test_an_identity_does_not_depend_on_where_things_lie(latents, vae, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name, data in contents(latents).items():
        (moved / name).write_bytes(data)
    copied = tiny_vae(tmp_path / "copied")

    def known(**arguments):
        config = {"data": {"class_path": "Latents", "init_args": arguments}}
        return identity(config, contents_of(config, {"data": Data}))

    here = known(root=str(latents), vae=None, posterior="sample")
    assert here == known(root=str(moved), vae=copied, posterior="sample")
    assert here != known(root=str(latents), vae=None, posterior="mean")
    other = tmp_path / "other"
    write_store(other, EncodedImages(Digits(), VAE(vae), mirrored=False))
    assert here["data.root"] != known(root=str(other), vae=None, posterior="sample")["data.root"]


def test_a_vae_is_found_from_any_directory(vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for given, expected in (("mine", str(tmp_path / "mine")), ("owner/name", "owner/name")):
        config = {"data": {"class_path": "Latents", "init_args": {"root": "s", "vae": given}}}
        made = with_absolute_paths(config, {"data": Data})["data"]["init_args"]
        assert made == {"root": str(tmp_path / "s"), "vae": expected}


def test_what_a_run_keeps_makes_the_codec_again(latents, vae):
    data = Latents(latents, posterior="mean")
    codec = VAE(**data.record()["codec"])
    stored = data.split("val").batch(torch.arange(5))[0]
    assert torch.equal(codec.mean(stored), data.codec.mean(stored))
    assert codec.path == vae and codec.posterior == "mean"


def test_the_scale_of_the_store_counts(latents, vae):
    codec = VAE(vae, scale=0.5, shift=0.25)
    stored = Latents(latents).split("val").batch(torch.arange(2))[0]
    assert torch.equal(codec.mean(stored), (stored.float()[:, :4] - 0.25) * 0.5)
    torch.testing.assert_close(
        codec.decode(codec.mean(stored)).float(), VAE(vae).restore(stored).float(), rtol=0, atol=1
    )


def test_images_may_have_been_given_from_0_to_1(vae):
    images = Digits().split("val").tensors[0][:4]
    codec = VAE(vae, input_range=(0, 1))
    posterior = codec.network.encode(images.float() / 255).latent_dist
    torch.testing.assert_close(codec.encode(images), posterior.parameters)
    x = codec.mean(codec.encode(images))
    expected = codec.network.decode(x / SCALE).sample.mul(255).round().clamp(0, 255)
    assert (codec.decode(x).float() - expected).abs().max() <= 1


def test_where_statistics_are_kept(latents, pixels):
    assert Latents(latents).reference_file("abc").parent == latents
    assert PixelStore(pixels).reference_file("a") != PixelStore(pixels).reference_file("b")
    assert Digits().reference_file("abc") is None


@pytest.mark.parametrize(
    ("cls", "store", "options", "message"),
    [
        (PixelStore, "latents", {}, "a store of latents; give --data Latents"),
        (Latents, "pixels", {}, "a store of pixels; give --data PixelStore"),
        (Latents, "nowhere", {}, "nowhere is no store"),
        (Latents, "latents", {"batch_size": 2000}, "larger than the training set"),
        (Latents, "latents", {"vae": "other"}, r"has the digest \w{12}; these latents are of \w"),
        (Latents, "latents", {"vae": "wide"}, r"has the digest \w{12}; these latents are of \w"),
        (Latents, "latents", {"vae": "gone"}, "gone of the autoencoder does not exist; --data.vae"),
    ],
)
def test_a_mistake_is_one_line(request, tmp_path, cls, store, options, message):
    folder = tmp_path / store if store == "nowhere" else request.getfixturevalue(store)
    if "vae" in options:
        place = str(tmp_path / options["vae"])
        if options["vae"] != "gone":
            wide = {"latent_channels": 6} if options["vae"] == "wide" else {}
            tiny_vae(place, seed=5, **wide)
        options = {"vae": place}
    with pytest.raises(UserError, match=message) as error:
        cls(folder, **options).check()
    assert "\n" not in str(error.value)


def test_flips_that_were_not_stored(tmp_path):
    write_store(tmp_path / "store", RandomRows(mirrored=False))
    assert Latents(tmp_path / "store").flip is False
    with pytest.raises(UserError, match=r"mirrored images; leave --data\.flip out"):
        Latents(tmp_path / "store", flip=True)


def test_labels_beyond_the_classes(tmp_path):
    write_store(tmp_path / "store", RandomRows(class_names=("a", "b")))
    with pytest.raises(UserError, match="labels from 0 to 2, but 2 classes"):
        Latents(tmp_path / "store").class_counts()


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit(latents, vae, tmp_path):
    source = EncodedImages(Digits(), VAE(vae), block=128, threads=3)
    write_store(tmp_path / "store", source)
    assert contents(tmp_path / "store") == contents(latents)


def test_latents_are_not_encoded_again(latents):
    with pytest.raises(UserError, match="holds latents already"):
        EncodedImages(Latents(latents), Pixels())
