"""Latents that other programs stored equal ours of the same images, within float16."""

import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dtr_lightning.data import VAE, Digits, Latents
from dtr_lightning.data.importers import LAYOUTS, Imported
from dtr_lightning.data.store_writer import write_store
from dtr_lightning.errors import UserError
from tests.data.tiny_vae import tiny_vae

N = 12
DRAWN = ("fast-dit", "lightning-dit")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return VAE(tiny_vae(tmp_path_factory.mktemp("vae")))


@pytest.fixture(scope="module")
def images():
    return [part[:N] for part in Digits().split("train").tensors]


def npy(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=array.dtype == object)


def drawn(moments):
    """Returns a draw from the posterior that is the same every time."""
    mean, log_variance = moments.chunk(2, 1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    return mean + log_variance.div(2).exp() * noise


def fast_dit(folder, vae, images, labels):
    z = drawn(vae.encode(images)) * 0.18215
    for i, (each, label) in enumerate(zip(z, labels, strict=True)):
        npy(folder / "imagenet256_features" / f"{i}.npy", each[None].numpy())
        npy(folder / "imagenet256_labels" / f"{i}.npy", label[None].numpy())


def mean_and_deviation(folder, posterior, labels):
    rows = torch.cat([posterior.mean, posterior.std], 1).numpy()
    names = [f"{i // 5:05d}/img-mean-std-{i:08d}.npy" for i in range(len(rows))]
    for name, row in zip(names, rows, strict=True):
        npy(folder / name, row)
    pairs = list(zip(names, labels.tolist(), strict=True))
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))


def edm2(folder, vae, images, labels):
    posterior = vae.network.encode(images.float() / 255).latent_dist
    mean_and_deviation(folder, posterior, labels)


def repa(folder, vae, images, labels):
    posterior = vae.network.encode(images.float() / 127.5 - 1).latent_dist
    mean_and_deviation(folder / "vae-sd", posterior, labels)
    (folder / "images").mkdir()


def lightning_dit(folder, vae, images, labels):
    z = [drawn(vae.encode(each)).contiguous() for each in (images, images.flip(-1))]
    for shard, part in enumerate((slice(0, 7), slice(7, N))):
        save_file(
            {
                "latents": z[0][part].numpy(),
                "latents_flip": z[1][part].numpy(),
                "labels": labels[part].numpy(),
            },
            folder / f"latents_rank00_shard{shard:03d}.safetensors",
        )
    torch.save({"mean": torch.zeros(4), "std": torch.ones(4)}, folder / "latents_stats.pt")


def u_vit(folder, vae, images, labels):
    for i, row in enumerate(vae.encode(images).numpy()):
        for split in ("train", "val"):
            npy(folder / split / f"{i}.npy", row)
            npy(folder / split / f"{i}_0.npy", np.zeros((77, 768), dtype=np.float32))
    npy(folder / "empty_context.npy", np.zeros((77, 768), dtype=np.float32))


def mar(folder, vae, images, labels):
    both = [vae.encode(each).numpy() for each in (images, images.flip(-1))]
    for i, (plain, flipped) in enumerate(zip(*both, strict=True)):
        path = folder / f"n{int(labels[i]):08d}" / f"{i:03d}.JPEG.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, moments=plain, moments_flip=flipped)


WRITERS = {
    "fast-dit": fast_dit,
    "edm2": edm2,
    "repa": repa,
    "lightning-dit": lightning_dit,
    "u-vit": u_vit,
    "mar": mar,
}


def imported(name, folder, vae, out):
    layout = LAYOUTS[name](folder)
    source = Imported(layout, vae, held_out=0.25)
    write_store(out, source)
    return layout, source, Latents(out)


def relative(found, expected):
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", LAYOUTS)
def test_imported_latents_are_those_of_direct_encoding(name, vae, images, tmp_path):
    (tmp_path / "theirs").mkdir()
    WRITERS[name](tmp_path / "theirs", vae, *images)
    layout, source, data = imported(name, tmp_path / "theirs", vae, tmp_path / "store")
    scale = 0.2325 if name == "mar" else vae.scale
    direct = VAE(vae.path, scale=scale, input_range=layout.input_range)
    assert data.codec.scale == scale and data.image_shape == (1, 8, 8)
    expected, mirrored = (direct.encode(each) for each in (images[0], images[0].flip(-1)))
    known = {each: i for i, each in enumerate(layout.train)}
    if name == "mar":
        known = {each: int(each[10:13]) for each in layout.train}
    for split in ("train", "val"):
        rows = [known[n.replace("val/", "train/")] for n in source.names[split]]
        indices = torch.arange(len(rows))
        cases = [(expected, None)]
        if layout.mirrored and split == "train":
            cases.append((mirrored, torch.ones(len(rows), dtype=torch.bool)))
        for moments, flips in cases:
            stored, labels = data.split(split).batch(indices, flips)
            if name in DRAWN:
                assert relative(stored[:, :4], drawn(moments)[rows]) < 2e-3
                noisy = data.codec.sample(stored, torch.randn)
                assert relative(noisy, drawn(moments)[rows] * scale) < 2e-3
            else:
                for found, wanted in zip(stored.chunk(2, 1), moments.chunk(2, 1), strict=True):
                    assert relative(found, wanted[rows]) < 2e-3
            if layout.labels:
                names = [data.class_names[label] for label in labels.tolist()]
                told = [str(label) for label in images[1][rows].tolist()]
                assert [n.lstrip("n0") or "0" for n in names] == told
            decoded = direct.restore(moments)[rows].float()
            if name not in DRAWN:
                assert (data.codec.restore(stored).float() - decoded).abs().max() <= 1
    assert len(data.split("train")) + len(data.split("val")) == (2 * N if name == "u-vit" else N)


def test_a_zip_of_edm2_is_as_its_folder(vae, images, tmp_path):
    edm2(tmp_path, vae, *images)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in tmp_path.rglob("*.npy"):
            archive.write(file, file.relative_to(tmp_path))
        archive.write(tmp_path / "dataset.json", "dataset.json")
    first, second = LAYOUTS["edm2"](tmp_path), LAYOUTS["edm2"](tmp_path / "all.zip")
    assert first.train == second.train and first.labels == second.labels
    for name in first.train:
        assert np.array_equal(first.read(name)[0], second.read(name)[0])


def broken(name, change):
    """Returns a folder's damage, after that program has written it."""

    def damage(folder, vae, images):
        WRITERS[name](folder, vae, *images)
        change(folder)

    return damage


def overwrite(pattern, array):
    def change(folder):
        npy(min(folder.rglob(pattern)), array)

    return change


def pickled(folder, vae, images):
    for i in range(3):
        row = np.empty(2, dtype=object)
        row[:] = np.zeros((8, 4, 4)), i
        npy(folder / f"{i}.npy", row)


NOT_FINITE = np.full((8, 4, 4), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("u-vit", pickled, r"0.npy is a pickle of objects.*make_latents.py IMAGES --vae"),
        ("edm2", broken("repa", lambda f: None), "vae-sd is REPA's; give --from repa"),
        ("repa", broken("edm2", lambda f: None), r"from \[0, 1\]: give --from edm2"),
        ("mar", broken("edm2", lambda f: None), "CLASS/FILE.npz are expected"),
        ("lightning-dit", broken("mar", lambda f: None), "latents_rankR_shardS.safetensors"),
        ("fast-dit", broken("mar", lambda f: None), "NAME_features beside one NAME_labels"),
        (
            "fast-dit",
            broken("fast-dit", lambda f: next(f.glob("*labels/3.npy")).unlink()),
            "hold other numbers",
        ),
        ("u-vit", broken("u-vit", overwrite("1.npy", NOT_FINITE)), "not finite in float16"),
        (
            "edm2",
            broken("edm2", overwrite("img-*5.npy", np.full((8, 4, 4), -3.0))),
            "negative deviations: these are log variances",
        ),
        (
            "repa",
            broken("repa", overwrite("img-*5.npy", np.ones((8, 2, 2)))),
            r"holds \(8, 2, 2\), 00000",
        ),
        (
            "repa",
            broken("repa", lambda f: (f / "vae-sd" / "dataset.json").write_text("{")),
            "dataset.json is damaged",
        ),
        ("mar", broken("mar", lambda f: min(f.rglob("*.npz")).write_bytes(b"PK")), "or is cut"),
    ],
)
def test_a_mistake_is_one_line(name, damage, message, vae, images, tmp_path):
    (tmp_path / "theirs").mkdir()
    damage(tmp_path / "theirs", vae, images)
    with pytest.raises(UserError, match=message) as error:
        imported(name, tmp_path / "theirs", vae, tmp_path / "store")
    assert "\n" not in str(error.value)


def test_a_vae_of_other_channels(vae, images, tmp_path):
    mar(tmp_path, vae, *images)
    other = VAE(tiny_vae(tmp_path / "other", latent_channels=3))
    with pytest.raises(UserError, match="latents of 3 channels, the stored ones 4"):
        Imported(LAYOUTS["mar"](tmp_path), other)


def test_nothing_of_a_pickle_runs(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    row = np.empty(1, dtype=object)
    row[0] = Hostile()
    npy(tmp_path / "0.npy", row)
    with pytest.raises(UserError, match="could run code"):
        LAYOUTS["u-vit"](tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_inner_folder_of_repa_is_not_read_as_edm2_s(vae, images, tmp_path):
    repa(tmp_path / "theirs", vae, *images)
    with pytest.raises(UserError, match=r"vae-sd is REPA's; give .*theirs --from repa"):
        LAYOUTS["edm2"](tmp_path / "theirs" / "vae-sd")
