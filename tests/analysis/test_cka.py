"""CKA against reference numbers, its laws, and figure 6 of runs that were trained here."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import analysis
from analysis.__main__ import main
from analysis.measure.probe import Probe
from analysis.measure.similarity import Minibatches, cka, gram, hsic
from analysis.probes import cka as figure
from analysis.probes.cka import CKAConfig, measure
from analysis.read.runs import read
from dtr_lightning.data import Digits
from dtr_lightning.diffusion import Diffusion, FlowMatching
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.fit import run
from dtr_lightning.models import ADM, DiT
from dtr_lightning.objectives import Constant
from dtr_lightning.routing import DTR, Switch
from dtr_lightning.rundir.run import find_runs
from dtr_lightning.training.module import DiffusionModule
from tests.analysis.synthetic_runs import make_run
from tests.conftest import golden

pytestmark = pytest.mark.usefixtures("empty_pdfs")
ESTIMATORS = ("unbiased", "biased")
SMALL = CKAConfig(images=12, timesteps=4, batch=6)


@pytest.fixture(scope="module")
def reference():
    return golden("cka/inputs.npz"), golden("cka/values.json")


def features(reference, name):
    return (torch.from_numpy(reference[0][f"{name}_{part}"]).double() for part in "XY")


@pytest.mark.parametrize("name", ["cka", "cka_indep"])
def test_hsic_and_cka_equal_the_reference(name, reference):
    x, y = features(reference, name)
    stored = reference[1][name]
    for kind in ESTIMATORS:
        for pair, (a, b) in {"xy": (x, y), "xx": (x, x), "yy": (y, y)}.items():
            assert hsic(gram(a), gram(b), kind) == pytest.approx(
                stored[f"hsic_{kind}_{pair}"], rel=1e-9
            )
        assert cka(x, y, kind) == pytest.approx(stored[f"cka_{kind}"], rel=1e-9, abs=1e-9)
    size = stored["minibatch_size"]
    minibatches = Minibatches()
    for a, b in zip(x.split(size), y.split(size), strict=True):
        minibatches.add(torch.stack([gram(a), gram(b)]))
    assert minibatches.cka()[0, 1] == pytest.approx(stored["cka_unbiased_minibatch"], abs=1e-9)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_rotation_scale_and_shift_do_not_change_it_and_it_is_one_on_itself(kind, reference):
    x, y = features(reference, "cka")
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q
    moved = 3 * y @ rotation + torch.randn(40, generator=generator, dtype=torch.float64)
    assert cka(x, moved, kind) == pytest.approx(cka(x, y, kind).item(), abs=1e-10)
    assert cka(y, moved, kind) == pytest.approx(1, abs=1e-10)
    assert cka(x, y, kind) == pytest.approx(cka(y, x, kind).item(), abs=1e-12)
    stretched = x * torch.linspace(0.1, 5, x.shape[1], dtype=torch.float64)
    assert cka(x, stretched, kind) < 0.99  # any linear map is not a rotation


def test_independent_features_have_none_unless_the_estimator_is_biased():
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 64, 500, generator=generator) for _ in range(20)]
    values = {kind: torch.tensor([cka(*pair, kind) for pair in pairs]) for kind in ESTIMATORS}
    assert values["unbiased"].mean().abs() < 0.01 and values["unbiased"].abs().max() < 0.1
    assert values["biased"].mean() > 0.8


def test_mean_over_minibatches_is_unbiased_too():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 8, generator=generator, dtype=torch.float64)
    y = x[:, :4] + torch.randn(1000, 4, generator=generator, dtype=torch.float64)
    estimators = {kind: Minibatches(kind) for kind in ESTIMATORS}
    for a, b in zip(x.split(10), y.split(10), strict=True):
        for minibatches in estimators.values():
            minibatches.add(torch.stack([gram(a), gram(b)]))
    whole = cka(x, y)
    assert estimators["unbiased"].cka()[0, 1] == pytest.approx(whole.item(), abs=0.03)
    assert estimators["biased"].cka()[0, 1] > whole + 0.1


def test_a_large_common_part_costs_no_digits_in_float32(reference):
    x, y = features(reference, "cka")
    assert cka((x + 100).float(), y.float()) == pytest.approx(cka(x, y).item(), abs=1e-5)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_three_images_are_too_few(kind):
    with pytest.raises(UserError, match="at least 4 images; got 3"):
        hsic(torch.eye(3), torch.eye(3), kind)


def probe(model, process, images=12):
    """A network whose zeroed layers are random, so that blocks do something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    module = DiffusionModule(model, process, Constant()).eval()
    return Probe.on(module, Digits(), images, seed=0)


def dit(router=None):
    sizes = {"hidden_size": 16, "depth": 3, "num_heads": 2, "num_classes": 10}
    return DiT(input_size=8, in_channels=1, **sizes, router=router)


def adm():
    sizes = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
    return ADM(8, 1, out_channels=2, attention_resolutions=[2], num_classes=10, **sizes)


@pytest.mark.parametrize("feature", ["output", "update"])
@pytest.mark.parametrize("tokens", ["flat", "mean"])
def test_it_is_that_of_the_blocks_outputs_at_equal_images_and_noise(feature, tokens):
    asked = probe(dit(DTR()), Diffusion())
    protocol = CKAConfig(images=12, timesteps=4, batch=12, feature=feature, tokens=tokens)
    arrays = measure(asked, protocol, lambda share: None)
    model, seen = asked.module.model, []
    model.blocks[1].register_forward_hook(lambda block, z, out: seen.append((z[0], out)))
    for t in (250, 750):
        x_t = asked.module.diffusion.q_sample(asked.x0, asked.tasks(t), asked.noise)
        model(x_t, asked.tasks(t), asked.y)
    outputs = [out - z if feature == "update" else out for z, out in seen]
    if tokens == "mean":
        outputs = [out.mean(1) for out in outputs]
    for kind in ESTIMATORS:
        expected = cka(*(out.flatten(1) for out in outputs), kind)
        assert arrays[kind][1, 1, 3] == pytest.approx(expected.item(), abs=1e-5)
    assert arrays["t"].tolist() == [0, 250, 500, 750]


@pytest.mark.parametrize(
    "make", [lambda: (dit(Switch()), Diffusion()), lambda: (dit(), FlowMatching()),
             lambda: (adm(), Diffusion())], ids=["Switch", "flow", "ADM"],
)  # fmt: skip
def test_matrices_are_symmetric_with_a_diagonal_of_one(make):
    asked = probe(*make())
    shares = []
    arrays = measure(asked, SMALL, shares.append)
    assert shares == sorted(shares) and shares[-1] == 1
    assert arrays["unbiased"].shape == (len(arrays["blocks"]), 4, 4)
    for kind in ESTIMATORS:
        assert np.allclose(arrays[kind], arrays[kind].transpose(0, 2, 1))
        assert np.allclose(arrays[kind][:, range(4), range(4)], 1)
        assert np.abs(arrays[kind]).max() <= 1 + 1e-9
    assert not any(module._forward_hooks for module in asked.module.modules())


def test_adm_has_its_routed_stages_and_no_update():
    names = list(figure.blocks(adm()))
    assert names == ["in 2", "in 4", "middle", *(f"out {i}" for i in (1, 2, 3, 4))]
    with pytest.raises(UserError, match="valid: output"):
        measure(probe(adm(), Diffusion()), CKAConfig(12, 4, 6, feature="update"), lambda s: None)
    with pytest.raises(UserError, match="Linear has no list `blocks`"):
        figure.blocks(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": 3}, "images must be at least 4; got 3"),
        ({"batch": 2}, "batch must be at least 4"),
        ({"estimator": "exact"}, "valid: unbiased, biased"),
        ({"feature": "input"}, "valid: output, update"),
        ({"tokens": "cls"}, "valid: flat, mean"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        CKAConfig(**options)


OPTIONS = ["--cka.images", "12", "--cka.timesteps", "4", "--cka.batch", "6"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of a few steps, of two routers."""
    from dtr_lightning.config.parser import resolve
    from tests.conftest import ROOT, TINY

    root = tmp_path_factory.mktemp("runs")
    for router in ("NoRouting", "DTR"):
        options = TINY | {"evaluation.every": 0, "router": router}
        run(resolve(ROOT / "configs" / "digits.yaml", options), root / router)
    return root


@pytest.mark.slow
def test_a_figure_of_runs_is_stored_and_drawn_again_without_networks(trained, monkeypatch, capfd):
    assert main([str(trained), "--only", "cka", *OPTIONS]) == 0
    out, err = capfd.readouterr()
    assert [line.rsplit("/", 1)[-1] for line in out.split()] == ["cka.pdf", "cka.png", "cka.csv"]
    assert "cka NoRouting" in err and "GPU available" not in err
    first = (trained / "figures" / "cka.csv").read_bytes()
    assert imread(trained / "figures" / "cka.png").std() > 0.01
    stored = sorted(trained.glob("*/artifacts/*"))
    assert len(stored) == 2

    with monkeypatch.context() as patch:
        patch.setattr(Probe, "of", None)
        assert main([str(trained), "--only", "cka", *OPTIONS]) == 0
        assert (trained / "figures" / "cka.csv").read_bytes() == first
        biased = [*OPTIONS, "--cka.estimator", "biased"]
        assert main([str(trained), "--only", "cka", *biased]) == 0
        assert (trained / "figures" / "cka.csv").read_bytes() != first

    stored[0].write_bytes(b"torn")  # measured again, as it is for a new checkpoint
    (trained / "NoRouting" / "ckpt" / "last.ckpt").touch()
    assert main([str(trained), "--only", "cka", *OPTIONS]) == 0
    assert (trained / "figures" / "cka.csv").read_bytes() == first
    assert set(trained.glob("*/artifacts/*")) == set(stored)


def test_the_figure_tells_how_many_images_it_is_of(trained):
    drawn = figure.draw(read(find_runs([trained])).finished, CKAConfig(12, 4, 6)).figure
    assert drawn.axes[-1].get_ylabel() == "CKA (unbiased)\n12 images"


def test_ctrl_c_keeps_the_runs_that_are_done(trained, monkeypatch, capfd):
    options = [str(trained), "--only", "cka", *OPTIONS, "--cka.seed", "1"]
    real = Probe.of

    def of(run, images, seed):
        if run.path.name == "DTR":
            raise KeyboardInterrupt
        return real(run, images, seed)

    before = set(trained.glob("*/artifacts/*"))
    with monkeypatch.context() as patch:
        patch.setattr(Probe, "of", of)
        assert main(options) == 130
    new = set(trained.glob("*/artifacts/.*")) | set(trained.glob("*/artifacts/*"))
    assert [path.parts[-3] for path in new - before] == ["NoRouting"]


def test_experts_and_runs_without_checkpoint_are_left_out_in_one_line(tmp_path):
    make_run(tmp_path / "a", experts=2)
    make_run(tmp_path / "b")
    runs = read(find_runs([tmp_path])).finished
    assert "experts share no weights: 1" in figure.needs(runs)
    assert "without a checkpoint: 1" in figure.needs(runs) and "\n" not in figure.needs(runs)
    assert figure.needs([]) == "no run is finished"


def test_it_is_drawn_by_name_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("analysis.draw.FIGURES", ("samples",))
    make_run(tmp_path / "a")
    written, left_out = analysis.draw_all([tmp_path])
    assert "cka" not in {path.stem for path in written}
    assert any("cka" in name and "--only NAME" in line for name, line in left_out)
    assert main([str(tmp_path), "--cka.images", "8"]) == 2
    assert "--cka.images needs --only cka" in capsys.readouterr().err
