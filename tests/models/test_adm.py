"""ADM against the official network, and what its routed blocks keep."""

import json

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import load_file
from torch import nn

from dtr_lightning.errors import UserError
from dtr_lightning.models import ADM
from dtr_lightning.models.adm import (
    AttentionBlock,
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
)
from dtr_lightning.routing import DTR, RTR
from tests.conftest import GOLDEN, counting_graphs, golden, max_relative, slow_except
from tests.models.test_dit import check_gradients
from tests.routing.test_routers import open_gates

NAMES = ("adm_ssn0_updown0_uncond", "adm_ssn1_updown1_cond")
ROUTED = {"new_dtr_a4_b0.8": (4, 0.8), "new_dtr_a1_b0.5": (1, 0.5)}
T = torch.tensor([0, 1, 500, 999])


def small(router=None, **options):
    torch.manual_seed(0)
    sizes = {"image_size": 4, "in_channels": 1, "model_channels": 32, "out_channels": 2}
    blocks = {"num_res_blocks": 1, "attention_resolutions": [2], "channel_mult": [1, 2]}
    flags = {"num_head_channels": 16, "use_scale_shift_norm": True, "num_classes": 3}
    return ADM(**(sizes | blocks | flags | options), router=router)


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 1, 4, 4, generator=generator).to(dtype)
    return x, T, torch.arange(4) % 3


def gradients(model, t=T):
    x, _, y = inputs()
    model(x, t, y).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def official(name, routing, device):
    arrays, numbers = golden(f"adm/{name}.npz"), golden(f"adm/{name}.json")
    options = {key: value for key, value in numbers["config"].items() if key not in ("seed", "t")}
    router = DTR(*ROUTED[routing]) if routing in ROUTED else None
    model = ADM(**options, use_new_attention_order=routing != "legacy", router=router)
    weights = load_file(GOLDEN / f"adm/{name}.safetensors")
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    arrays = {key: torch.from_numpy(arrays[key]) for key in arrays}
    arrays.setdefault("y", torch.zeros_like(arrays["t"]))
    arrays = {key: value.to(device) for key, value in arrays.items()}
    return model.eval().to(device), arrays, numbers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("routing", ["new", "legacy", *ROUTED])
def test_official_output_and_gradients(name, routing, device):
    model, a, numbers = official(name, routing, device)
    x = a["x"].requires_grad_()
    out = model(x, a["t"], a["y"])
    assert max_relative(out.detach(), a[f"out_{routing}"]) < 1e-5
    (out * a["probe"]).sum().backward()
    assert max_relative(x.grad, a[f"probe_grad_x_{routing}"]) < 1e-4
    expected = numbers[f"probe_{routing}"]["grads"]
    assert set(expected) == {name for name, _ in model.named_parameters()}
    check_gradients(model, expected, 5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_that_read_are_the_residual_and_attention_blocks_in_order(name):
    router = recorded()
    options = golden(f"adm/{name}.json")["config"]
    model = ADM(**{k: v for k, v in options.items() if k not in ("seed", "t")}, router=router)
    expected = golden(f"adm/{name}.json")["routed_blocks"]
    blocks = [
        (name, type(module).__name__)
        for name, module in model.named_modules()
        if isinstance(module, ResBlock | AttentionBlock)
    ]
    assert blocks == [(name, kind) for name, kind, _ in expected]
    assert router.sizes == ([width for _, _, width in expected], 128, 1)


def recorded(*options):
    """Returns DTR that remembers in `sizes` what it was bound to."""
    router = DTR(*options)
    bind = router.bind

    def record(tasks, widths, emb_channels, channel_dim):
        router.sizes = (list(widths), emb_channels, channel_dim)
        bind(tasks, widths, emb_channels, channel_dim)

    router.bind = record
    return router


IMAGENET64 = {
    "image_size": 64,
    "in_channels": 3,
    "model_channels": 192,
    "out_channels": 6,
    "num_res_blocks": 3,
    "attention_resolutions": [2, 4, 8],
    "channel_mult": [1, 2, 3, 4],
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": True,
    "dropout": 0.1,
}


def test_the_imagenet_64_network_is_the_official_one():
    numbers = golden("adm/imagenet64.json")
    with torch.device("meta"):
        model, uncond = ADM(**IMAGENET64, num_classes=1000), ADM(**IMAGENET64)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == numbers["shapes"]
    assert sum(p.numel() for p in model.parameters()) == numbers["parameters"] == 295_904_454
    assert sum(p.numel() for p in uncond.parameters()) == numbers["parameters_unconditional"]
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(ResBlock), kinds.count(AttentionBlock)) == (36, 22)


@pytest.mark.parametrize("resblock_updown", [False, True])
@pytest.mark.parametrize("conv_resample", [False, True])
@pytest.mark.parametrize("num_classes", [None, 1, 3])
def test_output_is_zero_at_initialisation(resblock_updown, conv_resample, num_classes):
    options = {"resblock_updown": resblock_updown, "conv_resample": conv_resample}
    model = small(DTR(), num_classes=num_classes, **options)
    out = model(*inputs())
    assert out.shape == (4, 2, 4, 4)
    assert not out.any()
    assert hasattr(model, "label_emb") is (num_classes == 3)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resblock_updown", [False, True])
@pytest.mark.parametrize("router", [None, DTR()], ids=["none", "dtr"])
def test_every_parameter_gets_a_finite_gradient(scale_shift, resblock_updown, router):
    options = {"use_scale_shift_norm": scale_shift, "resblock_updown": resblock_updown}
    # with one channel per group a norm removes what comes before it, so 64 channels
    model = open_gates(small(router, model_channels=64, **options))
    for name, gradient in gradients(model).items():
        assert gradient.isfinite().all() and gradient.any(), name


ALL = {"concat_mask": "per_part", "mask_second_norm": True, "resblock_updown": True}
DTR_HALF = DTR(1, 0.5)
OPTIONS = [{}, ALL | {"use_checkpoint": True}]


@pytest.mark.parametrize("options", slow_except(OPTIONS, OPTIONS[1]), ids=["default", "all"])
@pytest.mark.parametrize("router", slow_except([None, DTR_HALF], DTR_HALF), ids=["none", "dtr"])
@pytest.mark.slow
def test_compiles_into_one_graph_for_all_t(options, router):
    model = open_gates(small(router, **options))
    compiled, graphs = counting_graphs(model)
    x, t, y = inputs()
    for shift in (0, 3, 700):
        moved = (t + shift) % 1000
        torch.testing.assert_close(compiled(x, moved, y), model(x, moved, y))
    assert len(graphs) == 1


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "all"])
@pytest.mark.parametrize("router", [None, DTR_HALF], ids=["none", "dtr"])
class TestRouted:
    def test_rows_of_a_batch_are_independent(self, options, router):
        model = open_gates(small(router, **options))
        x, t, y = inputs()
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(model(x, t, y), alone, rtol=1e-4, atol=1e-4)

    def test_gradient_checkpointing_leaves_gradients_unchanged(self, options, router):
        plain = gradients(open_gates(small(router, **options | {"use_checkpoint": False})))
        model = open_gates(small(router, **options | {"use_checkpoint": True}))
        x, t, y = inputs()
        loss = model(x, t, y).square().sum()
        model(x, t.flip(0), y)  # a second forward before the backward
        loss.backward()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.grad, plain[name]), name

    def test_works_in_bfloat16_autocast(self, options, router):
        model = open_gates(small(router, **options))
        exact = model(*inputs())
        with torch.autocast("cpu", torch.bfloat16):
            out = model(*inputs())
        assert out.dtype is torch.bfloat16
        assert max_relative(out.detach(), exact.detach()) < 0.1
        out.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("concat_mask", ["joint", "per_part"])
@pytest.mark.parametrize("router", [DTR(beta=1.0), RTR(beta=1.0)], ids=["DTR", "RTR"])
def test_beta_one_is_no_routing(concat_mask, router):
    plain = open_gates(small())
    routed = open_gates(small(router, concat_mask=concat_mask, mask_second_norm=True))
    assert torch.equal(plain(*inputs()), routed(*inputs()))


def test_each_part_of_a_concatenation_may_have_its_own_window():
    joint, parts = recorded(1, 0.5), recorded(1, 0.5)
    a = open_gates(small(joint))(*inputs())
    b = open_gates(small(parts, concat_mask="per_part"))(*inputs())
    assert (joint.sizes[0][-2:], parts.sizes[0][-4:]) == ([96, 64], [64, 32, 32, 32])
    assert (a - b).abs().amax((1, 2, 3)).min() > 1e-3


def test_a_part_is_read_by_its_own_route():
    block = ResBlock([32, 64], 8, 32, 0.0)
    seen = []

    def route(z):
        seen.append(z.shape[1])
        return torch.zeros_like(z) if z.shape[1] == 64 else z

    block.in_layers[2].register_forward_pre_hook(lambda conv, a: seen.append(a[0].any((0, 2, 3))))
    block(torch.randn(2, 96, 4, 4), torch.randn(2, 8), [route, route])
    assert seen[:2] == [32, 64]
    assert torch.equal(seen[2], torch.arange(96) < 32)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_second_norm_may_be_read_too(scale_shift):
    options = {"use_scale_shift_norm": scale_shift}
    first, both = recorded(1, 0.5), recorded(1, 0.5)
    a = open_gates(small(first, **options))(*inputs())
    b = open_gates(small(both, mask_second_norm=True, **options))(*inputs())
    assert len(both.sizes[0]) == len(first.sizes[0]) + 8  # residual blocks
    assert (a - b).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_second_norm_is_read_after_its_scale_and_shift():
    block = ResBlock([32], 8, 64, 0.0, use_scale_shift_norm=True, mask_second_norm=True)
    assert block.reads == [32, 64]
    mask = (torch.arange(64) < 20).view(1, 64, 1, 1)
    seen = []
    block.out_layers[3].register_forward_pre_hook(lambda conv, a: seen.append(a[0].any((0, 2, 3))))
    block(torch.randn(2, 32, 4, 4), torch.randn(2, 8), [lambda z: z, lambda z: z * mask])
    assert torch.equal(seen[0], mask.flatten())


@pytest.mark.parametrize("resample", [None, Upsample, Downsample])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_masking_after_the_norm_is_masking_after_silu_and_after_resampling(resample, scale_shift):
    torch.manual_seed(0)
    block = open_gates(ResBlock([64], 8, 32, 0.0, scale_shift, resample=resample))
    x, emb = torch.randn(2, 64, 4, 4), torch.randn(2, 8)
    mask = (torch.rand(2, 64) < 0.5).float().view(2, 64, 1, 1)

    def masked_before(layer):
        handle = layer.register_forward_pre_hook(lambda module, a: (a[0] * mask,))
        out = block(x, emb, [lambda z: z])
        handle.remove()
        return out

    norm, silu, conv = block.in_layers
    after_norm = block(x, emb, [lambda z: z * mask])
    assert torch.equal(after_norm, masked_before(silu))
    assert torch.equal(after_norm, masked_before(conv))
    assert not torch.allclose(after_norm, masked_before(norm), atol=1e-3)
    assert not torch.allclose(after_norm, block(x, emb, [lambda z: z]), atol=1e-3)


def test_attention_reads_after_its_norm_and_leaves_the_skip():
    block = open_gates(AttentionBlock(64, 4, new_order=True))
    x, mask = torch.randn(2, 64, 4, 4), (torch.arange(64) < 20).float()[:, None]
    out = block(x, None, [lambda z: z * mask])
    block.qkv.weight.data *= mask  # reading a channel as zero is giving it no weight
    torch.testing.assert_close(out, block(x, None, [lambda z: z]))


@pytest.mark.parametrize("new_order", [False, True])
def test_attention_is_the_softmax_of_its_formula(new_order):
    block = open_gates(AttentionBlock(64, 4, new_order)).double()
    x = torch.randn(1, 64, 2, 2)
    z = block.norm(x.flatten(2)).double()
    rows = torch.arange(192)  # of qkv: which of q, k, v; then the heads, 16 rows each
    which = rows // 64 if new_order else rows // 16 % 3
    q, k, v = (block.qkv(z)[0, which == i].view(4, 16, 4) for i in range(3))
    weights = torch.einsum("hdi,hdj->hij", q, k).div(16**0.5).softmax(-1)
    h = torch.einsum("hij,hdj->hdi", weights, v).reshape(1, 64, 4)
    expected = x + block.proj_out(h).view(1, 64, 2, 2)
    torch.testing.assert_close(block(x.double(), None, [lambda z: z]), expected)


def test_group_norm_computes_in_float32_and_keeps_the_dtype():
    norm = GroupNorm(64)
    x = 1000 + torch.randn(2, 64, 4, 4)
    exact = nn.functional.group_norm(x.bfloat16().float(), 32)
    for layer in (norm, norm.bfloat16()):
        out = layer(x.bfloat16())
        assert out.dtype is torch.bfloat16
        torch.testing.assert_close(out.float(), exact, rtol=2**-7, atol=0.02)


def test_the_null_class_is_one_more_row():
    model = open_gates(small(class_dropout_prob=0.1))
    assert small(class_dropout_prob=0.0).label_emb.num_embeddings == 3
    assert model.label_emb.num_embeddings == 4
    x, t, y = inputs()
    a, b = model(x, t, torch.full_like(y, 3)), model(x, t, y)
    assert (a - b).abs().amax((1, 2, 3)).min() > 1e-3
    assert small(class_dropout_prob=0.1, num_classes=1).class_dropout_prob == 0


def test_routers_see_the_timestep_without_the_label():
    model = small(DTR())
    seen = []
    model.router.register_forward_pre_hook(lambda router, a: seen.append(a[1]))
    model(*inputs())
    assert torch.equal(seen[0], model.embed(T))


def test_routers_start_from_the_weights_of_the_plain_network():
    plain, routed = small(), small(RTR(), concat_mask="per_part")
    for (name, a), b in zip(plain.named_parameters(), routed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_dropout_drops_only_in_training():
    model = open_gates(small(dropout=0.5))
    assert not torch.equal(model(*inputs()), model(*inputs()))
    model.eval()
    assert torch.equal(model(*inputs()), model(*inputs()))


def test_options_can_be_read_from_text():
    parser = ArgumentParser()
    parser.add_class_arguments(ADM, "model", skip={"router"})
    sizes = {key: IMAGENET64[key] for key in IMAGENET64 if key != "dropout"}
    given = [f"--model.{key}={json.dumps(value)}" for key, value in sizes.items()]
    options = parser.parse_args([*given, "--model.concat_mask=per_part"]).model
    with torch.device("meta"):
        model = ADM(**options)
    assert sum(p.numel() for p in model.parameters()) == 295_136_454


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_channels": 24}, "multiple of 32"),
        ({"channel_mult": [1, 0.5]}, "multiple of 32"),
        ({"channel_mult": []}, "multiple of 32"),
        ({"model_channels": 0}, "multiple of 32"),
        ({"image_size": 5}, "image_size must be a multiple of 2, as channel_mult has 2 levels"),
        ({"image_size": 0}, "image_size must be a multiple of 2"),
        ({"attention_resolutions": [2, 8]}, r"attention_resolutions \[8\]; valid: 1, 2"),
        ({"num_head_channels": 48}, "num_head_channels must divide the 64 channels"),
        ({"num_head_channels": 0}, "num_head_channels must divide the 64 channels"),
        ({"num_head_channels": -1, "num_heads": 3}, "num_heads must divide the 64 channels"),
        ({"num_head_channels": -1, "num_heads": 0}, "num_heads must divide the 64 channels"),
        ({"num_res_blocks": 0}, "num_res_blocks must be positive"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"class_dropout_prob": 1.0}, "class_dropout_prob must lie in"),
        ({"concat_mask": "both"}, "unknown concat_mask 'both'; valid: joint, per_part"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message) as caught:
        small(**options)
    assert "\n" not in str(caught.value)
