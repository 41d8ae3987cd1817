"""DiT against the official network: outputs, gradients, training losses, guidance, sampling."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dtr_lightning.diffusion import Diffusion
from dtr_lightning.diffusion.samplers import DDIM, DDPM, guided
from dtr_lightning.errors import UserError
from dtr_lightning.models import ADM, DiT, DiT_B, DiT_L, DiT_S, DiT_XL
from dtr_lightning.objectives import Constant, MinSNR
from dtr_lightning.routing import DTR, FixedMasks, NoRouting, Switch
from dtr_lightning.training.module import DiffusionModule
from tests.conftest import GOLDEN, golden, max_relative

NAMES = ("dit_cond4", "dit_uncond1")
SIZES = ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads")


@pytest.fixture
def official(tmp_path, device):
    """Returns a function: (name, routing) -> network with the official weights, arrays, numbers."""

    def load(name, routing):
        arrays, numbers = golden(f"dit/{name}.npz"), golden(f"dit/{name}.json")
        config = numbers["config"]
        if routing == "rtr":
            np.save(tmp_path / "rtr.npy", arrays["masks_rtr"])
        router = {
            "none": NoRouting,
            "dtr": lambda: DTR(config["alpha"], config["beta"]),
            "rtr": lambda: FixedMasks(str(tmp_path / "rtr.npy")),
        }[routing]()
        options = {key: config[key] for key in (*SIZES, "num_classes", "learn_sigma")}
        model = DiT(**options, router=router)
        weights = load_file(GOLDEN / f"dit/{name}.safetensors")
        model.load_state_dict({key: value.float() for key, value in weights.items()})
        arrays = {key: torch.from_numpy(arrays[key]) for key in arrays}
        arrays.setdefault("y", torch.zeros_like(arrays["t"]))
        arrays = {key: value.to(device) for key, value in arrays.items()}
        return model.eval().to(device), arrays, numbers

    return load


def check_gradients(model, expected, tolerance):
    floor = 1e-4 * max(e["norm"] for e in expected.values())
    for name, e in expected.items():
        grad = model.get_parameter(name).grad
        norm = grad.double().norm().item()
        assert abs(norm - e["norm"]) <= tolerance * max(e["norm"], floor), name
        first = grad.flatten()[:5].double().cpu()
        error = (first - torch.tensor(e["first5"], dtype=torch.float64)).abs().max().item()
        assert error <= tolerance * max(e["norm"], floor), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("routing", ["none", "dtr", "rtr"])
class TestOfficialNumbers:
    def test_output_and_gradients(self, official, name, routing):
        model, a, numbers = official(name, routing)
        x = a["x"].requires_grad_()
        out = model(x, a["t"], a["y"])
        assert max_relative(out.detach(), a[f"out_{routing}"]) < 1e-5
        (out * a["probe"]).sum().backward()
        assert max_relative(x.grad, a[f"probe_grad_x_{routing}"]) < 1e-4
        check_gradients(model, numbers[f"probe_{routing}"]["grads"], 1e-4)

    @pytest.mark.parametrize("weight", ["constant", "min_snr_5"])
    def test_training_losses(self, official, name, routing, weight):
        model, a, numbers = official(name, routing)
        config = numbers["config"]
        variance = "learned_range" if config["learn_sigma"] else "fixed_large"
        diffusion = Diffusion(config["schedule"], config["taskcount"], variance)
        loss_weight = Constant() if weight == "constant" else MinSNR(5)
        loss_weight.bind(diffusion)
        x_t = diffusion.q_sample(a["x"], a["t"], a["noise"])
        mse, vb = diffusion.losses(model(x_t, a["t"], a["y"]), a["x"], a["t"], a["noise"])
        expected = a[f"train_{weight}_loss_{routing}"]
        singly = [
            loss_weight(*(part[i : i + 1] for part in (mse, vb, a["t"]))) for i in range(len(x_t))
        ]
        assert max_relative(torch.stack(singly).detach(), expected) < 2e-4
        assert max_relative(mse.detach(), a[f"train_constant_mse_{routing}"]) < 2e-4
        loss = loss_weight(mse, vb, a["t"])
        assert loss.item() == pytest.approx(expected.mean().item(), rel=2e-4)
        loss.backward()
        check_gradients(model, numbers[f"train_{weight}_{routing}"]["grads"], 3e-3)


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("channels", ["all", "first3"])
@pytest.mark.parametrize("routing", ["none", "dtr"])
def test_guided_output(official, scale, channels, routing):
    model, a, _ = official("dit_cond4", routing)
    n = len(a["x"]) // 2
    network = guided(model, scale, model.null, channels)
    with torch.no_grad():
        out = network(a["x"][:n], a["t"][:n], a["y"][:n])
    assert max_relative(out, a[f"cfg_{channels}_{scale}_{routing}"][:n]) < 1e-5


@pytest.mark.parametrize("sampler", [DDPM(10, clip=True), DDIM(10, clip=True)])
@pytest.mark.parametrize("routing", ["none", "dtr"])
def test_network_and_sampler_together(official, sampler, routing, device):
    model, _, _ = official("dit_cond4", routing)
    a = golden("dit/dit_cond4_sampling.npz")
    z, y, noises = (torch.from_numpy(a[key]).to(device) for key in ("z", "y", "noises"))
    network = guided(model, a["cfg_scale"].item(), model.null)
    draws = iter(noises[:, : len(z)])
    diffusion = Diffusion("linear", 1000)
    out = sampler(lambda x, t: network(x, t, y), z, diffusion, lambda: next(draws))
    expected = torch.from_numpy(a[f"{type(sampler).__name__.lower()}_{routing}"])
    assert (out.cpu() - expected).abs().max() < 1e-3


COUNTS = {DiT_S: 32_963_360, DiT_B: 130_512_416, DiT_L: 458_102_816, DiT_XL: 675_129_632}


@pytest.mark.parametrize("size", COUNTS, ids=lambda size: size.__name__)
def test_parameter_counts_are_the_published_ones(size):
    with torch.device("meta"):
        model, uncond = size(), size(num_classes=1)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[size]
    rows = 1000 * model.pos_embed.shape[-1]
    assert sum(p.numel() for p in uncond.parameters()) == COUNTS[size] - rows


@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_output_is_zero_at_initialisation(patch_size):
    model = DiT(16, patch_size, 3, 32, 2, 4, num_classes=10)
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([0, 999]), torch.tensor([0, 10])
    out = model(x, t, y)
    assert out.shape == (2, 6, 16, 16)
    assert not out.any()


def test_attention_over_few_and_many_tokens_agrees():
    from dtr_lightning.models.layers import Attention

    attention = Attention(24, num_heads=2, qkv_bias=True)
    x = torch.randn(3, 16, 24)
    reference = super(Attention, attention).forward(x)
    torch.testing.assert_close(attention(x), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 9}, "patch_size 2 does not divide"),
        ({"hidden_size": 30}, "must be divisible by num_heads"),
        ({"class_dropout_prob": 1.0}, "class_dropout_prob"),
        ({"patch_size": 0}, "patch_size must be positive"),
        ({"depth": -1}, "depth must be positive"),
        ({"num_heads": 0}, "num_heads must be positive"),
        ({"mlp_ratio": 0}, "mlp_ratio must be positive"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        DiT(**({"input_size": 8, "hidden_size": 32, "num_heads": 4, "depth": 1} | options))


@pytest.mark.parametrize("router", [NoRouting, DTR, Switch])
def test_checkpointed_blocks_change_no_gradient(router):
    grads = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        sizes = {"input_size": 8, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
        model = DiT(**sizes, router=router(), use_checkpoint=use_checkpoint)
        for parameter in model.parameters():  # blocks that start at zero would pass nothing on
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        x, t = torch.randn(4, 4, 8, 8), torch.tensor([0, 10, 500, 999])
        model(x, t, torch.tensor([0, 1, 2, 3])).square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


def test_blocks_compiled_one_by_one_share_a_graph_and_change_nothing():
    graphs = []

    def count(graph, example):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = DiT(
        input_size=8, patch_size=2, in_channels=1, hidden_size=16, depth=10, num_heads=2,
        num_classes=3, router=DTR(),
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    x, y = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    times = [torch.tensor([1, 5, 500, 999]), torch.tensor([7, 7, 8, 9])]
    eager = [model(x, t, y) for t in times]
    model.compile_blocks(fullgraph=True, backend=count)
    assert all(map(torch.equal, eager, (model(x, t, y) for t in times)))
    assert len(graphs) == 1


def test_a_network_of_unlike_blocks_is_not_compiled_block_by_block():
    sizes = {"image_size": 8, "in_channels": 1, "out_channels": 2, "model_channels": 32}
    network = ADM(**sizes, num_res_blocks=1, attention_resolutions=[2], num_classes=1)
    with pytest.raises(UserError, match=r"module\.compile blocks .* ADM takes true or false"):
        DiffusionModule(network, Diffusion(), Constant(), compile="blocks")
