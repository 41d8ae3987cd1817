"""Negative transfer by held-out loss: experts beside the joint model."""

import pytest

from analysis.drawing.style import save
from analysis.figures import negative_transfer
from analysis.read.statistics import t_interval
from tests.analysis.synthetic_runs import finished, make_run, record


@pytest.fixture
def experts(tmp_path):
    joint = [0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01]
    for seed in (0, 1):
        record(make_run(tmp_path / f"joint{seed}", seed=seed, experts=1), losses=joint)
        for count in (2, 3):
            run = make_run(tmp_path / f"{count}-{seed}", seed=seed, experts=count, steps=600)
            record(
                run, losses=[x * (0.9 + 0.02 * seed if i < 4 else 1.2) for i, x in enumerate(joint)]
            )
    return tmp_path


def test_negative_transfer_is_the_experts_loss_against_the_joint_one(experts):
    numbers = negative_transfer.draw(finished(experts)).numbers
    two = numbers[(numbers.experts == 2) & (numbers.what == "interval")]
    assert two[["t_first", "t_last"]].to_numpy().tolist() == [[0, 499], [500, 999]]
    assert two.percent.tolist() == pytest.approx([-9.0, 20.0])
    assert two.gap.tolist() == pytest.approx([-0.09 * 2.1 / 4, 0.2 * 0.36 / 4])
    assert (two.low.iloc[0], two.high.iloc[0]) == pytest.approx(t_interval([-10, -8]))
    assert two.against.unique().tolist() == ["2 experts, 600 steps each; joint: 1,200 steps"]
    three = numbers[numbers.experts == 3]  # thirds are no unions of eighths
    assert set(three.what) == {"eighth"} and len(three) == 8


def test_negative_transfer_needs_experts_and_an_equal_joint_run(experts, tmp_path):
    runs = finished(experts)
    assert "--experts" in negative_transfer.needs([run for run in runs if run.flat["experts"] == 1])
    assert "joint" in negative_transfer.needs([run for run in runs if run.flat["experts"] > 1])
    odd = [run for run in runs if run.flat["experts"] == 1 and run.seed == 1]
    odd += [run for run in runs if run.flat["experts"] > 1 and run.seed == 0]
    assert "joint" in negative_transfer.needs(odd)


def test_it_is_written(experts, tmp_path):
    paths = save(negative_transfer.draw(finished(experts)), tmp_path / "out", "figure")
    assert [path.suffix for path in paths] == [".pdf", ".png", ".csv"]
    assert all(path.stat().st_size > 100 for path in paths)
