"""Counts of parameters and operations against the published numbers and formulas."""

import sys
from functools import cache

import pytest

from analysis.tables.paper_rows import published
from benchmarks import cost as command
from benchmarks import counts
from benchmarks.counts import ADM_64, Cost, costs
from dtr_lightning.config.parser import resolve
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.models import ADM
from tests.conftest import ROOT

cost = cache(counts.cost)
DEPTHS = {"S/2": (12, 384), "B/2": (12, 768), "L/2": (24, 1024), "XL/2": (28, 1152)}
SIZES = [32_963_360, 130_512_416, 458_102_816, 675_129_632]
MACS = [6.06, 23.01, 80.70, 118.62]


@pytest.mark.parametrize("name, size, macs", zip(DEPTHS, SIZES, MACS, strict=True))
def test_dit_has_the_published_size_and_macs(name, size, macs):
    found = cost(name, "NoRouting")
    assert found.parameters == found.active == size
    assert found.trained == size - 256 * DEPTHS[name][1]  # less the table of positions
    assert round(found.macs / 1e9, 2) == macs and found.flops == 2 * found.macs
    theirs = {(r["model"], r["router"]): r["published"] for r in published()["table7"]["rows"]}
    assert found.macs / 1e9 == pytest.approx(theirs[name, "NoRouting"][1], abs=0.02)


def test_macs_are_those_of_the_formula():
    length, (depth, width) = 256, DEPTHS["S/2"]
    block = 12 * length * width**2 + 2 * length**2 * width + 6 * width**2
    ends = 2 * width**2 + 16 * length * width + 32 * length * width + 256 * width + width**2
    assert cost("S/2", "NoRouting").macs == depth * block + ends


@pytest.mark.parametrize("more", [
    {}, {"router": "DTR"}, {"experts": 2}, {"module.compile": True}, {"gradients": "PCGrad"}
])  # fmt: skip
def test_a_run_counts_the_macs_of_its_network(more):
    """4 x 4 tokens of 64 channels through 3 blocks; experts are asked one at a time."""
    block = 12 * 16 * 64**2 + 2 * 16**2 * 64 + 6 * 64**2
    ends = 2 * 64**2 + 4 * 16 * 64 + 8 * 16 * 64 + 256 * 64 + 64**2
    assert Experiment(resolve(ROOT / "configs" / "digits.yaml", more)).macs() == 3 * block + ends


@pytest.mark.parametrize("name", ["S/2", "B/2"])
def test_dtr_adds_nothing_but_masking(name):
    plain, routed = cost(name, "NoRouting"), cost(name, "DTR")
    depth, width = DEPTHS[name]
    assert routed == plain._replace(masking=3 * 256 * width * depth) and plain.masking == 0


@pytest.mark.slow
@pytest.mark.parametrize("name, stored, active, added", [
    ("S/2", 38.3, 36, 0.91), ("B/2", 151.8, 144, 3.62), ("L/2", 533.7, 508, None),
    ("XL/2", 786.8, 749, 19.03),
])  # fmt: skip
def test_switch_dit_has_the_stored_and_active_sizes(name, stored, active, added):
    found, plain = cost(name, "Switch"), cost(name, "NoRouting")
    assert round(found.parameters / 1e6, 1) == stored and found.active // 10**6 == active
    if added:
        assert (found.one_by_one - plain.macs) / 1e9 == pytest.approx(added, abs=0.006)
    assert plain.macs < found.macs < found.one_by_one


@pytest.mark.slow
def test_adm_is_that_of_imagenet_64():
    plain, routed = cost("ADM-64", "NoRouting"), cost("ADM-64", "DTR")
    assert round(plain.parameters / 1e6, 1) == 295.9
    assert routed == plain._replace(masking=routed.masking) and routed.masking > 0


def test_masking_counts_what_blocks_read(monkeypatch):
    small = ADM_64 | {"image_size": 16, "model_channels": 32, "channel_mult": (1, 2)}
    small |= {"num_res_blocks": 1, "attention_resolutions": (2,), "num_head_channels": 32}
    monkeypatch.setitem(command.NETWORKS, "ADM-64", lambda router: ADM(**small, router=router))
    # x has 64 x 64 pixels; the second level has a quarter, attention, and the middle
    reads = [32, 32, 32, 64, 64, 64, 64, 128, 64, 96, 64, 64, 96, 64]
    halves = [1, 1, *[4] * 10, 1, 1]
    assert counts.cost("ADM-64", "DTR").masking == sum(
        c * 64**2 // h for c, h in zip(reads, halves, strict=True)
    )


@pytest.mark.slow
def test_the_table_has_published_numbers_in_their_own_columns():
    frame = costs(["S/2", "ADM-64"], ["NoRouting", "Switch"])
    assert frame.model.tolist() == ["S/2", "S/2", "ADM-64"]
    assert frame["published GFLOPs"].tolist()[:2] == [6.06, 6.74]
    text = command.text(frame, "")
    assert text.columns["published it/s"] == ["8.19", "-", "-"]
    assert text.columns["MACs (G)"][0] == "6.06" and text.columns["FLOPs (G)"][0] == "12.11"
    assert "MACs one by one (G)" in text.columns and "steps/s" not in text.columns


def test_the_command_writes_the_table(monkeypatch, capsys, tmp_path):
    def run(*options):
        monkeypatch.setattr(sys, "argv", ["benchmarks/cost.py", *options])
        return command.main(), capsys.readouterr()

    code, printed = run("--models", "S/2", "--routers", "NoRouting", "DTR", "--out", str(tmp_path))
    assert code == 0
    for count in ("32.96", "6.06", "12.11", "0.0035"):  # parameters, MACs, FLOPs, masking
        assert count in printed.out
    assert {p.name for p in tmp_path.iterdir()} == {"table7.csv", "table7.md", "table7.tex"}
    assert "32963360" in (tmp_path / "table7.csv").read_text()
    for options in (["--models", "M/2"], ["--routers", "RTR"], ["--batch", "0"]):
        code, printed = run(*options)
        assert code == 2 and printed.err.count("\n") == 1


def test_flops_are_two_per_mac():
    assert Cost(1, 1, 1, 5, 5, 0).flops == 10
