"""Laws of ADM's protocol: Inception's three outputs, its files, what overrides what, mistakes."""

import json
import sys
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import evaluate
import make_reference
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.fit import run as train
from dtr_lightning.metrics import (
    InceptionFeatures,
    frechet_distance,
    inception_score,
    precision_recall,
)
from dtr_lightning.metrics.adm_protocol import Activations, check_size, scores
from dtr_lightning.metrics.npz import STATISTICS, Archive, write_archive

POOL, SPATIAL = 40, 7 * 3 * 3  # of the stand-in; distances in 2,048 features take seconds


def draw(n, seed=0, channels=3, size=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, channels, size, size), generator=generator)
    return images.to(torch.uint8)


def save(path, images=None, **arrays):
    if images is not None:
        arrays["arr_0"] = images.permute(0, 2, 3, 1).numpy()
    np.savez(path, **arrays)
    return str(path)


class StandIn(nn.Module):
    """Stands for torch-fidelity's network: the same outputs but fewer, from random products."""

    def __init__(self, name, features_list, path=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 192, 1)
        self.fc = nn.Linear(POOL, 1008)
        self.mix = nn.Parameter(torch.randn(48, POOL, generator=generator))
        for p in (*self.Mixed_6d.parameters(), *self.fc.parameters()):
            p.data = torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        x = images.float() / 128 - 1
        self.Mixed_6d.branch1x1(F.interpolate(x, (3, 3)))
        return ((F.adaptive_avg_pool2d(x, 4).flatten(1) @ self.mix).relu(),)


@pytest.fixture
def inception(monkeypatch):
    """Returns the stand-in as the official network."""
    module = SimpleNamespace(FeatureExtractorInceptionV3=StandIn)
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    monkeypatch.setattr(InceptionFeatures, "num_features", POOL)
    monkeypatch.setattr(InceptionFeatures, "num_spatial", SPATIAL)
    sizes = (POOL,), (POOL, POOL), (SPATIAL,), (SPATIAL, SPATIAL)
    for key, shape in zip(STATISTICS, sizes, strict=True):
        monkeypatch.setitem(STATISTICS, key, shape)
    return InceptionFeatures()


@pytest.fixture
def cli(call, capsys, inception):
    """Returns a function that runs a command and returns its exit code, output and errors."""
    return lambda *arguments: (call(*arguments), *capsys.readouterr())


def seen(network, images):
    return Activations(network).extend(images.split(7), lambda n: None)


def test_outputs_of_torch_fidelitys_network(tmp_path, monkeypatch):
    """With random weights: pool_3, logits without the bias, 7 maps behind the activation."""
    official = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with torch.device("meta"), monkeypatch.context() as patch:
        patch.setattr(official, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *a, **k: None)
        shapes = official.FeatureExtractorInceptionV3("shapes", ["2048"]).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in shapes.items():
        fan = max(1, value.numel() // value.shape[0]) if value.dim() > 1 else 100
        noise = torch.randn(value.shape, generator=generator) / fan**0.5
        state[key] = (1 + noise if "running_var" in key or "bn.weight" in key else noise).half()
    path = tmp_path / "random.pth"
    torch.save(state, path)
    features = InceptionFeatures(str(path))
    assert features.name == "fd_inception_random"
    assert features.which_weights == f"sha256 {sha256(path.read_bytes()).hexdigest()[:8]}"
    caught, branch = [], features.net.Mixed_6d.branch1x1
    branch.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    images = draw(2, size=16)
    with torch.no_grad():
        pool, spatial = features.activations(images)
        features.net.features_list = ["2048", "logits_unbiased"]
        expected, logits = features.net(images)
        maps = branch.bn(branch.conv(caught[0])).relu()
    assert torch.allclose(pool, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(features.logits(pool), logits, rtol=1e-4, atol=1e-5)
    assert spatial.shape == (2, 2023) and spatial.std() > 0
    assert torch.allclose(spatial.view(2, 17, 17, 7)[1, 3, 5], maps[1, :7, 3, 5], atol=1e-5)


def test_scores_are_the_formulas_on_the_outputs(inception, tmp_path):
    real, fake = draw(40), draw(30, 1) // 2
    result = scores(seen(inception, fake), Archive(save(tmp_path / "ref.npz", real)))
    (pool, spatial), (theirs, theirs_s) = map(inception.activations, (fake, real))

    def distance(a, b):
        moments = [m for x in (a.double(), b.double()) for m in (x.mean(0), torch.cov(x.T))]
        return frechet_distance(*moments).item()

    assert result["fid"] == pytest.approx(distance(pool, theirs), rel=1e-6)
    assert result["sfid"] == pytest.approx(distance(spatial, theirs_s), rel=1e-6)
    expected = inception_score(pool @ inception.net.fc.weight.T)[0]
    assert result["inception_score"] == pytest.approx(expected, rel=1e-6)
    assert (result["precision"], result["recall"]) == precision_recall(theirs, pool)
    assert result["n"] == 30


def test_stored_statistics_override_the_images(inception, tmp_path):
    """The 10,000 images of ADM's references are for precision and recall alone."""
    whole, few, fake = draw(60), draw(20, 2) // 3, draw(30, 1)
    statistics = seen(inception, whole).statistics()
    arrays = {key: value.numpy() for key, value in statistics.items()}
    assert {key: a.shape for key, a in arrays.items()} == STATISTICS
    samples = seen(inception, fake)
    result = scores(samples, Archive(save(tmp_path / "both.npz", few, **arrays)))
    of_whole = scores(samples, Archive(save(tmp_path / "whole.npz", whole)))
    of_few = scores(samples, Archive(save(tmp_path / "few.npz", few)))
    assert of_few["fid"] > 1.1 * of_whole["fid"]
    for key in ("fid", "sfid"):
        assert result[key] == pytest.approx(of_whole[key], rel=1e-6)
    for key in ("precision", "recall"):
        assert result[key] == of_few[key] != of_whole[key]
    del arrays["mu_s"], arrays["sigma_s"]
    result = scores(samples, Archive(save(tmp_path / "only.npz", **arrays)))
    assert result["fid"] == pytest.approx(of_whole["fid"], rel=1e-6)
    assert result["sfid"] is result["precision"] is result["recall"] is None


def test_activations_are_sums_and_a_stated_number_of_rows(inception, tmp_path):
    """The evaluator's precision and recall are of rows, here at most 20; all else is of all."""
    real, fake = draw(50), draw(60, 1)
    few = Activations(inception, rows=20).extend(fake.split(7), lambda n: None)
    assert sum(map(len, few.rows)) == 20 and few.n == 60
    again = Activations(inception, rows=20).extend(fake.split(60), lambda n: None)
    assert torch.allclose(few.rows.compute(), again.rows.compute())
    archive = Archive(save(tmp_path / "ref.npz", real))
    bounded, whole = scores(few, archive), scores(seen(inception, fake), archive)
    for key in ("fid", "sfid", "inception_score"):
        assert bounded[key] == pytest.approx(whole[key], rel=1e-9)
    theirs = inception.activations(real)[0]
    near = precision_recall(theirs, few.rows.compute())
    assert (bounded["precision"], bounded["recall"]) == near and near[1] != whole["recall"]


def test_only_inceptions_own_weights_give_a_fid(inception, tmp_path):
    inception.name = "fd_inception_mine"
    result = scores(seen(inception, draw(9)), Archive(save(tmp_path / "ref.npz", draw(9, 1))))
    names = ["fd_inception_mine", "sfd_inception_mine", "classifier_score"]
    assert list(result)[:3] == names and "fid" not in result


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_read_in_batches(tmp_path, save):
    images = draw(10, channels=1)
    save(tmp_path / "a.npz", arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=np.arange(10))
    archive = Archive(str(tmp_path / "a.npz"))
    assert (archive.n, archive.shape) == (10, (1, 8, 8))
    parts = list(archive.batches(4))
    assert [len(part) for part in parts] == [4, 4, 2] and torch.equal(torch.cat(parts), images)
    assert torch.equal(torch.cat(list(archive.batches(4, limit=5))), images[:5])


def test_what_is_written_is_numpys_format(tmp_path):
    images, path = draw(10), tmp_path / "a.npz"
    with write_archive(str(path)) as archive:
        archive.images(images.split(4), 10)
        archive.arrays({"labels": torch.arange(3.0)})
    with np.load(path) as arrays:
        assert np.array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert np.array_equal(arrays["labels"], np.arange(3.0))
    with pytest.raises(RuntimeError), write_archive(str(path)) as archive:
        archive.images(images[:4].split(4), 4)
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    assert Archive(str(path)).n == 10


NHWC = np.zeros((5, 8, 8, 3), np.uint8)
BAD = {
    "keys": ({"pictures": NHWC}, "holds pictures; valid: arr_0, uint8"),
    "dtype": ({"arr_0": NHWC.astype(np.float32)}, "arr_0 is float32"),
    "objects": ({"arr_0": np.array([None, {}], dtype=object)}, "arr_0 is object"),
    "nchw": ({"arr_0": NHWC.transpose(0, 3, 1, 2).copy()}, r"\(5, 3, 8, 8\); valid"),
    "fortran": ({"arr_0": np.asfortranarray(NHWC)}, "Fortran order"),
    "one": ({"arr_0": NHWC[:1]}, "holds 1 images"),
    "half": ({"arr_0": NHWC, "mu": np.zeros(2048)}, "one of mu and sigma"),
    "shape": ({"mu": np.zeros(64), "sigma": np.zeros((64, 64))}, r"valid: .*\(2048,\)"),
    "nan": ({"mu": np.full(2048, np.nan), "sigma": np.zeros((2048, 2048))}, "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_archives_are_user_errors(name, tmp_path):
    arrays, told = BAD[name]
    with pytest.raises(UserError, match=told):
        Archive(save(tmp_path / "bad.npz", **arrays)).statistics()


def test_damaged_archives_are_user_errors(tmp_path):
    path = tmp_path / "bad.npz"
    with pytest.raises(UserError, match="does not exist"):
        Archive(str(path))
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"no \.npz"):
        Archive(str(path))
    content = bytearray(open(save(path, draw(10)), "rb").read())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        list(Archive(str(path)).batches(10))
    other = Archive(save(tmp_path / "b.npz", draw(2, size=16)))
    with pytest.raises(UserError, match=r"8x8 pixels and the images of .* 16x16"):
        check_size((3, 8, 8), other)


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(draw(12, size=10)):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "images"


def test_a_reference_of_a_folder(cli, folder, inception, tmp_path):
    out = tmp_path / "ref.npz"
    options = ("--out", out, "--size", 8, "--workers", 0)
    code, printed, errors = cli(make_reference, folder, *options)
    assert code == 0 and "12 images, 12 of them kept" in printed
    assert "12 reference images are fewer than the 40 features need" in errors
    archive = Archive(str(out))
    images = torch.cat(list(archive.batches(5)))
    expected = seen(inception, images).statistics()
    for key, value in archive.statistics().items():
        assert torch.allclose(value, expected[key], rtol=1e-5, atol=1e-6)
    assert cli(make_reference, folder, *options, "--images", 4)[0] == 0
    kept = torch.cat(list(Archive(str(out)).batches(5)))
    assert torch.equal(kept, images[::3])


def test_samples_of_a_file(cli, tmp_path):
    samples, ref = (save(tmp_path / f"{s}.npz", draw(9, s)) for s in range(2))
    code, printed, errors = cli(
        evaluate, "--samples", samples, "--protocol", "adm", "--reference", ref
    )
    result = json.loads(printed)
    assert code == 0 and result["n"] == 9 and result["fid"] > 0
    assert result["protocol"]["reference"] == "1.npz"
    assert result["protocol"]["reference_images"] == 9
    assert result["protocol"]["extractor_resize"].startswith("TF1 bilinear to 299x299")
    for images in ("9 samples", "9 reference images"):
        assert f"{images} are fewer than the 40 features need" in errors


def test_a_run_scores_like_the_file_of_its_samples(cli, tiny, tmp_path):
    train(tiny(), tmp_path / "run")
    ref, out = tmp_path / "ref.npz", tmp_path / "samples.npz"
    assert cli(make_reference, tmp_path / "run", "--out", ref, "--images", 50)[0] == 0
    assert (Archive(str(ref)).n, Archive(str(ref)).shape) == (50, (3, 8, 8))
    adm = ("--protocol", "adm", "--reference", ref)
    run = (tmp_path / "run", *adm, "--evaluation.n", 12)
    code, printed, _ = cli(evaluate, *run, "--save-samples", out)
    result = json.loads(printed)
    assert code == 0 and result["protocol"]["sampler"] == "DDIM"
    assert result["protocol"]["reference_statistics"] == "stored" and result["steps"] == 6
    again = json.loads(cli(evaluate, *run)[1])
    assert again == result
    assert len(list((tmp_path / "run/artifacts/evaluations").glob("adm-*.json"))) == 1
    of_file = json.loads(cli(evaluate, "--samples", out, *adm)[1])
    for key in ("fid", "sfid", "inception_score", "precision", "recall", "n"):
        assert of_file[key] == pytest.approx(result[key], rel=1e-6)
    assert np.array_equal(np.load(out)["arr_1"], np.arange(12) % 10)


@pytest.mark.parametrize(
    ("command", "options", "told"),
    [
        (evaluate, ["run", "--protocol", "fid"], "adm"),
        (evaluate, ["run", "--protocol", "adm"], "--reference"),
        (evaluate, ["run", "--reference", "x.npz"], "--protocol adm"),
        (evaluate, ["--samples", "a.npz", "--protocol", "adm", "--reference", "b.npz"], "exist"),
        (
            evaluate,
            ["--samples", "a.npz", "--protocol", "adm", "--reference", "b", "--sampler", "DDPM"],
            "--sampler is no option",
        ),
        (
            evaluate,
            ["run", "--protocol", "adm", "--reference", "b", "--save-samples", "x.png"],
            "must end in .npz",
        ),
        (make_reference, ["nowhere", "--out", "x.npz", "--size", "8"], "does not exist"),
        (make_reference, [".", "--out", "x.npz"], "--size"),
        (make_reference, [".", "--out", "x.png"], "must end in .npz"),
        (make_reference, [".", "--out", "x.npz", "--images", "1"], "at least 2"),
    ],
)
def test_a_mistake_is_one_line(cli, command, options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, errors = cli(command, *options)
    assert code == 2 and not printed and errors.count("\n") == 1 and told in errors
