"""The text-conditional DiT: its block against a plain formula, laws of text, captions and runs."""

import pytest
import torch
from torch.nn import functional as F

from dtr_lightning.config.parser import resolve
from dtr_lightning.data.digits_captions import TinyCaptions
from dtr_lightning.diffusion.samplers import guided
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import read_checkpoint, run
from dtr_lightning.models import TextDiT
from dtr_lightning.models.text_dit import TextDiTBlock
from dtr_lightning.routing import DTR, RTR, NoRouting
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY, counting_graphs, max_relative
from tests.routing.test_routers import open_gates

CAPTIONS = TinyCaptions()
LABELS = torch.arange(10).repeat_interleave(6)
WHICH = torch.arange(6).repeat(10)


def small(router=None, **options):
    torch.manual_seed(0)
    sizes = {"input_size": 4, "patch_size": 2, "in_channels": 1, "hidden_size": 24, "depth": 2}
    sizes |= {"num_heads": 2, "num_classes": 10, "null_text": CAPTIONS.null}
    return TextDiT(**(sizes | {"router": router} | options))


def inputs(n=5):
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0, 1, 500, 998, 999])[:n]
    return x, t, CAPTIONS(torch.arange(n), torch.arange(n))


def config(**options):
    """Returns the recipe of the text model at a tiny size, with guidance 1.5 as in the paper."""
    dotted = {key.replace("__", "."): value for key, value in options.items()}
    return resolve(ROOT / "configs" / "backbones" / "text_dit.yaml", TINY | dotted)


def plain_block(block, x, c, mask, text):
    """Returns r + (1 - m) x with r = m x, to which each sublayer of r is added in turn."""
    heads = block.attn.num_heads

    def attention(q, k, v):
        parts = []
        for i, j, w in zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True):
            parts.append((i @ j.mT / i.shape[-1] ** 0.5).softmax(-1) @ w)
        return torch.cat(parts, -1)

    def self_attention(h):
        return block.attn.proj(attention(*block.attn.qkv(h).chunk(3, -1)))

    def cross_attention(h):
        cross = block.cross_attn
        return cross.proj(attention(cross.q(h), *cross.kv(text).chunk(2, -1)))

    def mlp(h):
        return block.mlp.fc2(F.gelu(block.mlp.fc1(h), approximate="tanh"))

    modulation = block.adaLN_modulation[1](F.silu(c))[:, None].chunk(9, -1)
    r = mask * x
    for i, sublayer in enumerate((self_attention, cross_attention, mlp)):
        shift, scale, gate = modulation[3 * i : 3 * i + 3]
        r = r + gate * sublayer(F.layer_norm(r, r.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    return r + (1 - mask) * x


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_block_is_its_formula(dtype, tolerance):
    block = open_gates(TextDiTBlock(24, 2, 4.0)).to(dtype)
    g = torch.Generator().manual_seed(0)
    x, c, text = (torch.randn(s, generator=g).to(dtype) for s in ((3, 4, 24), (3, 24), (3, 8, 24)))
    mask = (torch.rand(3, 1, 24, generator=g) < 0.7).to(dtype)
    out = block(x, c, lambda z: mask * z, text)
    assert max_relative(out.detach(), plain_block(block, x, c, mask, text).detach()) < tolerance


class TestNetwork:
    def test_output_is_zero_at_initialisation(self):
        out = small()(*inputs())
        assert out.shape == (5, 2, 4, 4)
        assert not out.any()

    @pytest.mark.parametrize("router", [None, DTR(), RTR()], ids=["none", "DTR", "RTR"])
    def test_every_parameter_gets_a_finite_gradient(self, router):
        model = open_gates(small(router))
        model(*inputs()).square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().sum() > 0, name

    def test_rows_of_a_batch_are_independent(self):
        model = open_gates(small(DTR()))
        alone = torch.cat([model(*(part[i : i + 1] for part in inputs())) for i in range(5)])
        torch.testing.assert_close(model(*inputs()), alone, rtol=1e-5, atol=1e-5)

    def test_routed_starts_from_the_same_weights_and_beta_one_is_no_routing(self):
        plain, routed = small(NoRouting()), small(DTR(beta=1.0))
        assert all(map(torch.equal, plain.parameters(), routed.parameters()))
        open_gates(plain), open_gates(routed)
        assert torch.equal(plain(*inputs()), routed(*inputs()))
        assert not torch.equal(plain(*inputs()), open_gates(small(DTR()))(*inputs()))

    def test_reads_the_text_but_not_the_order_of_its_tokens(self):
        """Order is the captions' affair, through the code of the position in the features."""
        model = open_gates(small())
        x, t, y = inputs()
        out = model(x, t, y)
        torch.testing.assert_close(model(x, t, y.flip(1)), out, rtol=1e-5, atol=1e-5)
        for i in range(5):
            other = model(x, t, CAPTIONS(torch.arange(5) + 1, torch.arange(5)))
            assert (other[i] - out[i]).abs().max() > 1e-3
        a, b = (CAPTIONS.encode([text] * 5) for text in ("the digit 3", "3 the digit"))
        assert (model(x, t, a) - model(x, t, b)).abs().max() > 1e-3

    def test_routers_see_the_timestep_alone(self):
        model = open_gates(small())
        x, t, y = inputs()
        seen = []
        routes = model.router.forward
        model.router.forward = lambda t, emb: seen.append(emb) or routes(t, emb)
        model(x, t, y), model(x, t, model.null(y))
        assert torch.equal(*seen)

    def test_guidance_towards_the_empty_text_is_no_guidance(self):
        model = open_gates(small())
        x, t, y = inputs()
        null = model.null(y)
        assert torch.equal(null[3], CAPTIONS.encode([""])[0])
        out = guided(model, 1.5, model.null)(x, t, null)
        torch.testing.assert_close(out, model(x, t, null), rtol=1e-5, atol=1e-5)

    def test_empty_text_is_kept_with_the_weights(self):
        other = small(null_text=torch.zeros(8, 32))
        other.load_state_dict(small().state_dict())
        assert torch.equal(other.null_text, CAPTIONS.null)

    @pytest.mark.slow
    def test_compiles_into_one_graph_for_all_t(self):
        model = open_gates(small(DTR()))
        compiled, graphs = counting_graphs(model)
        x, t, y = inputs()
        for shift in (0, 3, 700):
            moved = (t + shift) % 1000
            torch.testing.assert_close(compiled(x, moved, y), model(x, moved, y))
        assert len(graphs) == 1

    def test_bf16_autocast_is_near(self):
        model = open_gates(small(DTR()))
        expected = model(*inputs())
        with torch.autocast("cpu", torch.bfloat16):
            out = model(*inputs())
        assert max_relative(out.detach().float(), expected.detach()) < 0.05

    def test_needs_captions(self):
        with pytest.raises(UserError, match="TextDiT needs data with captions"):
            small(null_text=None)


class TestCaptions:
    def test_every_wording_of_every_digit_is_told_apart(self):
        tokens = CAPTIONS(LABELS, WHICH)
        assert tokens.shape == (60, 8, 32)
        assert len(tokens.flatten(1).unique(dim=0)) == 60
        assert tokens.var().item() == pytest.approx(1, abs=0.2)

    def test_a_wording_is_its_text_and_wraps_around(self):
        texts = [text for of_label in CAPTIONS.texts for text in of_label]
        assert texts[18] == "a handwritten three"
        assert torch.equal(CAPTIONS(LABELS, WHICH), CAPTIONS.encode(texts))
        assert torch.equal(CAPTIONS(LABELS, WHICH + 12), CAPTIONS.encode(texts))
        assert torch.equal(CAPTIONS.encode(["The  DIGIT 3"]), CAPTIONS.encode(["the digit 3"]))

    def test_draws_all_wordings_from_the_global_generator(self):
        draws = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            which = CAPTIONS.draw(200, torch.device("cpu"))
            draws.append(CAPTIONS(torch.full((200,), 3), which))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        wordings = CAPTIONS(torch.full((6,), 3), torch.arange(6)).flatten(1)
        assert torch.equal(draws[0].flatten(1).unique(dim=0), wordings.unique(dim=0))

    def test_padding_is_the_empty_text(self):
        tokens = CAPTIONS.encode(["the digit 3", ""])
        assert torch.equal(tokens[1], CAPTIONS.null)
        assert torch.equal(tokens[0, 3:], CAPTIONS.null[3:])
        assert not (tokens[0, :3] == CAPTIONS.null[:3]).any()

    def test_the_order_of_words_matters(self):
        """Not as a permutation of the same tokens: attention could not tell these apart."""
        a, b = CAPTIONS.encode(["the digit 3", "3 the digit"]).sort(dim=1).values
        assert not torch.equal(a, b)

    def test_features_are_fixed_and_no_state(self):
        before = torch.random.get_rng_state()
        again = TinyCaptions()
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(again(LABELS, WHICH), CAPTIONS(LABELS, WHICH))
        assert not again.state_dict()

    def test_words_that_are_not_known(self):
        with pytest.raises(UserError, match=r"unknown word in a caption 'cat'; valid: .*handwritt"):
            CAPTIONS.encode(["a handwritten cat"])
        with pytest.raises(UserError, match="at most 8 words"):
            CAPTIONS.encode(["a " * 9])


class TestRuns:
    def test_drops_whole_texts(self):
        module = Experiment(config(model__class_dropout_prob=0.5)).module
        torch.manual_seed(0)
        labels = torch.arange(200) % 10
        y = module.condition(labels, module.captions.draw(200, labels.device))
        dropped = module.drop_labels(y, torch.rand(200))
        null = (dropped == module.captions.null).flatten(1).all(1)
        assert 60 < null.sum() < 140
        assert torch.equal(dropped[~null], y[~null])

    def test_a_run_is_scored_with_guidance_and_keeps_the_empty_text(self, tmp_path):
        results = run(config(router="DTR"), tmp_path)
        assert results["n"] == 20
        assert results["protocol"]["guidance"] == 1.5
        assert 0 <= results["accuracy"] <= 1
        assert "model.null_text" in read_checkpoint(Run(tmp_path).last)["state_dict"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"data": "Digits"}, "TextDiT needs data with captions"),
            ({"model": "DiT", "model__patch_size": 2}, "DiT needs data with class labels"),
            (
                {"model__class_dropout_prob": 0},
                "guidance 1.5 needs .*: train with --model",
            ),
        ],
    )
    def test_parts_that_do_not_fit(self, options, message):
        with pytest.raises(UserError, match=message):
            Experiment(config(**options))
