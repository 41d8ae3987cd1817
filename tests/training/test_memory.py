"""The counted memory of a training step against what autograd keeps of real tensors."""

import sys

import pytest
import torch

from benchmarks import memory as command
from dtr_lightning.models import ADM, DiT, DiT_L, DiT_XL
from dtr_lightning.routing import DTR
from dtr_lightning.training.memory import kept_for_backward, step_memory
from tests.conftest import ROOT, slow_except

GIB = 2**30
SMALL = {
    "dit": lambda **more: DiT(
        16, patch_size=2, hidden_size=64, depth=3, num_heads=4, router=DTR(), **more
    ),
    "adm": lambda **more: ADM(
        16, 4, 32, 8, num_res_blocks=1, attention_resolutions=(1, 2), channel_mult=(1, 2),
        num_head_channels=16, num_classes=10, router=DTR(), **more
    ),
}  # fmt: skip


def inputs(n=4, size=16):
    return torch.ones(n, 4, size, size), *torch.zeros(2, n, dtype=torch.long)


def on_meta(name, n=4, **options):
    with torch.device("meta"):
        return SMALL[name](**options), inputs(n)


def kept_by_autograd(model, x):
    """Returns the bytes of the storages that a real forward pass keeps."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(saved):
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # kept here too, so that no address is used twice
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        model.train()(*x)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", SMALL)
def test_the_count_is_what_autograd_keeps_of_real_tensors(name):
    real = kept_by_autograd(SMALL[name](), inputs())
    assert kept_for_backward(*on_meta(name), "32-true") == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("name", slow_except(SMALL, next(iter(SMALL))))
@pytest.mark.parametrize("checkpoint", [False, True])
def test_activations_grow_with_the_batch_and_less_under_checkpointing(name, checkpoint):
    few, many = (
        kept_for_backward(*on_meta(name, n, use_checkpoint=checkpoint), "32-true") for n in (8, 16)
    )
    assert many == pytest.approx(2 * few, rel=0.05)
    if checkpoint:
        assert many < 0.6 * kept_for_backward(*on_meta(name, 16), "32-true")


def test_a_network_is_left_as_it_was():
    model, x = on_meta("dit", use_checkpoint=True)
    first = kept_for_backward(model.eval(), x)
    assert model.use_checkpoint and not model.training
    assert kept_for_backward(model, x) == first


@pytest.mark.parametrize("cls, weights, activations", [(DiT_L, 8.5, 10), (DiT_XL, 12.6, 13.2)])
def test_the_papers_networks_fit_40_gigabytes(cls, weights, activations):
    """Beside an earlier count, of fake CUDA tensors."""
    with torch.device("meta"):
        found = step_memory(cls(patch_size=2), inputs(32, 32))
    assert (found.total - found.activations) / GIB == pytest.approx(weights, abs=0.1)
    assert found.activations / GIB == pytest.approx(activations, rel=0.05)


@pytest.mark.slow
def test_the_page_on_reproduction_has_the_counted_memory():
    page = (ROOT / "docs" / "reproduce.md").read_text()
    rows = command.rows(list(command.NETWORKS), 32, "bf16-mixed")
    for plain, saved in zip(rows[::2], rows[1::2], strict=True):
        counts = (plain.memory.activations, plain.memory.total, saved.memory.total)
        cells = " | ".join(f"{count / GIB:.1f}" for count in counts)
        assert f"| {plain.model} | {cells} |" in page


def test_the_command_prints_a_row_with_and_without_checkpointing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory.py", "--models", "S/2", "--batch", "2"])
    assert command.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("S/2") == 2 and "batch 2, bf16-mixed" in printed
    monkeypatch.setattr(sys, "argv", ["memory.py", "--models", "M/2"])
    assert command.main() == 2
    assert "valid: S/2, B/2" in capsys.readouterr().err
