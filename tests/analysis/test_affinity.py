"""Task affinity: gradients against autograd, the projection's error, and clusters that read it."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.__main__ import main
from analysis.measure.probe import Probe
from analysis.measure.similarity import PARTS, Projection, cosines, interpolated
from analysis.probes.affinity import FILE, AffinityConfig, draw, measure
from analysis.read.runs import read
from dtr_lightning.config.parser import resolve
from dtr_lightning.data import Digits
from dtr_lightning.diffusion import Diffusion, FlowMatching, clusters
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.fit import run
from dtr_lightning.models import DiT
from dtr_lightning.objectives import UW, Constant, PCGrad
from dtr_lightning.routing import DTR, Switch
from dtr_lightning.rundir.run import find_runs
from dtr_lightning.training.module import DiffusionModule
from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.usefixtures("empty_pdfs")


def probe(router=None, process=None, images=24):
    """A network whose zeroed layers are random, so that every weight has a gradient."""
    process = process or Diffusion()
    sizes = {"hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    sigma = {"learn_sigma": process.learns_variance}
    model = DiT(input_size=8, in_channels=1, **sizes, **sigma, router=router)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return Probe.on(DiffusionModule(model, process, Constant()).eval(), Digits(), images, seed=0)


def silent(share):
    pass


@pytest.mark.parametrize("router", [DTR, Switch])
def test_it_is_the_cosine_of_gradients_of_the_mean_loss(router, monkeypatch):
    monkeypatch.setattr("analysis.probes.affinity.BATCH", 10)  # in two parts
    asked = probe(router())
    arrays = measure(asked, AffinityConfig(images=24, timesteps=4), silent)
    assert arrays["t"].tolist() == [0, 333, 666, 999] and arrays["exact"]
    module, gradients = asked.module, []
    for t in (333, 999):
        module.zero_grad()
        losses = module.losses(asked.x0, asked.tasks(t), asked.y, asked.noise)
        (losses.mse + losses.vb).mean().backward()
        used = [p.grad.flatten() for p in module.model.parameters() if p.grad is not None]
        gradients.append(torch.cat(used).double())
    expected = torch.cosine_similarity(*gradients, dim=0).item()
    assert arrays["affinity"][1, 3] == pytest.approx(expected, abs=1e-4)
    assert expected < 0.99


@pytest.mark.parametrize("process", [Diffusion, FlowMatching])
def test_it_is_symmetric_with_a_diagonal_of_one_and_nearer_tasks_are_more_alike(process):
    shares = []
    arrays = measure(probe(process=process()), AffinityConfig(timesteps=9), shares.append)
    affinity = arrays["affinity"]
    assert np.allclose(affinity, affinity.T) and np.allclose(affinity.diagonal(), 1)
    assert np.linalg.eigvalsh(affinity).min() > -1e-9 and len(arrays["log_snr"]) == 1000
    assert affinity.diagonal(1).mean() > affinity.diagonal(6).mean()
    assert shares[-1] == 1 and shares == sorted(shares)


@pytest.mark.parametrize("size", [256, 4096])
def test_projection_keeps_cosines_within_its_stated_error(size):
    asked, options = probe(images=8), {"timesteps": 8, "size": size, "images": 8}
    exact = measure(asked, AffinityConfig(method="exact", **options), silent)
    pairs = ~np.eye(8, dtype=bool)
    squares, stated = [], []
    for seed in range(6):
        projected = measure(asked, AffinityConfig(method="projected", seed=seed, **options), silent)
        error = (projected["affinity"] - exact["affinity"])[pairs]
        squares.append(np.square(error).mean())
        stated.append(projected["error"][0] ** 2)  # by its parts, without the exact ones
        if seed == 0:
            assert exact["error"] == pytest.approx([squares[0] ** 0.5, np.abs(error).max()])
    assert np.sqrt(np.mean(squares)) < 1 / math.sqrt(size)
    assert 0.25 < np.mean(stated) / np.mean(squares) < 4


def test_gradients_too_large_to_hold_are_projected(monkeypatch):
    monkeypatch.setattr("analysis.probes.affinity.EXACT", 1000)
    assert not measure(probe(), AffinityConfig(timesteps=2, size=64), silent)["exact"]


def test_projection_is_unbiased_linear_and_a_function_of_the_seed():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3000, generator=generator, dtype=torch.float64)
    y = y + x
    products = []
    for seed in range(200):
        project = Projection(64, seed)
        a, b = project([x]), project([y])
        products.append((a * b).sum() / PARTS)
    products = torch.stack(products)
    deviation = math.sqrt(((x @ x) * (y @ y) + (x @ y) ** 2).item() / 64)
    assert abs(products.mean() - x @ y) < 4 * deviation / math.sqrt(200)
    assert 0.7 < products.std().item() / deviation < 1.3
    torch.testing.assert_close(project([2 * x + y]), 2 * a + b)
    assert torch.equal(project([x]), a)


def test_spread_keeps_measured_ones_and_fills_by_unit_gradients():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    at = torch.tensor([2, 5, 6, 11, 17])
    full = interpolated(cosines(gradients @ gradients.T), at, 20)
    torch.testing.assert_close(full[at][:, at], unit @ unit.T)
    torch.testing.assert_close(full.diagonal(), torch.ones(20, dtype=torch.float64))
    between = torch.cosine_similarity(2 * unit[0] + unit[1], unit[4], dim=0)
    torch.testing.assert_close(full[3, 17], between)
    assert torch.equal(full[0], full[2]) and torch.equal(full[19], full[17])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"timesteps": 1}, "timesteps must be at least 2"),
        ({"method": "guess"}, "valid: auto, exact, projected"),
        ({"size": 6}, "size must be a multiple of 4; got 6"),
        ({"images": 0}, "images must be at least 1"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        AffinityConfig(**options)


def test_more_timesteps_than_tasks_are_refused():
    with pytest.raises(UserError, match="at most T = 8"):
        measure(probe(process=Diffusion(T=8)), AffinityConfig(timesteps=9), silent)


@pytest.mark.slow
def test_clusters_read_what_a_run_was_measured_to_have(tmp_path, capsys):
    config = resolve(ROOT / "configs" / "digits.yaml", TINY | {"evaluation.every": 0})
    run(config, tmp_path / "run")
    options = ["--affinity.images", "8", "--affinity.timesteps", "10"]
    assert main([str(tmp_path / "run"), "--only", "affinity", *options]) == 0
    assert f"clusters read each run's artifacts/{FILE}" in capsys.readouterr().out
    numbers = pd.read_csv(tmp_path / "run" / "figures" / "affinity.csv")
    assert len(numbers) == 55 and (numbers.method == "exact").all()
    assert (numbers.projection_max >= numbers.projection_rms).all()
    drawn = draw(
        read(find_runs([tmp_path])).finished, AffinityConfig(images=8, timesteps=10)
    ).figure
    assert drawn.axes[-1].get_ylabel() == "cosine of gradients, 8 images"
    for ax in drawn.axes[:2]:
        assert len(ax.get_xticks()) > 2 and sorted(ax.get_xticks()) == sorted(ax.get_yticks())
    path = str(tmp_path / "run" / "artifacts" / FILE)
    affinity = clusters.read_affinity(path, 1000)
    row = numbers[(numbers.t == 111) & (numbers.t2 == 888)].iloc[0]
    assert affinity[111, 888].item() == pytest.approx(row.affinity, abs=1e-5)

    log_snr = Diffusion().log_snr()
    weight = UW(clusters=5, clustering="affinity", affinity=path)
    weight.bind(Diffusion())
    assert len(weight.intervals) == 5
    rule = PCGrad(clusters=3, clustering="affinity", affinity=path)
    rule.bind(log_snr)
    assert len(rule.intervals) == 3 and rule.intervals[-1][1] == 1000
    clustered = TINY | {"evaluation.every": 0, "gradients": "PCGrad", "gradients.clusters": 3}
    clustered |= {"gradients.clustering": "affinity", "gradients.affinity": path}
    results = run(resolve(ROOT / "configs" / "digits.yaml", clustered), tmp_path / "clustered")
    assert math.isfinite(results["score"])
