"""Figures from synthetic run directories: what is drawn, what is said when a piece is missing."""

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis import draw_all
from analysis.catalog import FIGURES, figure
from analysis.figures import ablation, convergence, masks, samples, tasks
from analysis.read.runs import groups, mixed, read
from analysis.read.settings import highlighted, settings
from analysis.tables.tables import markdown, table
from dtr_lightning.routing.masks import dtr
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis.synthetic_runs import FOUR, GRID, make_run, make_sweep, score_of
from tests.conftest import slow_except

# these need more than FOUR: see test_score_figures.py and test_experts_figure.py
NEED_MORE = ("heatmap", "sizes", "negative_transfer")


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("seeds"), seeds=(0, 1, 2))


def finished(root):
    return read(find_runs([root])).finished


def rc_params():
    # Reading the backend's entry would choose one.
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}


def plotted(figure):
    """Returns all points (x, y) of labelled or grey lines in a figure's first axes."""
    return [(x, y) for line in figure.axes[0].get_lines() for x, y in line.get_xydata()]


@pytest.mark.parametrize(
    "name", slow_except([name for name in FIGURES if name not in NEED_MORE], "ablation", "masks")
)
def test_every_figure_is_written_as_pdf_png_and_csv(name, four, tmp_path):
    before = rc_params()
    written, left_out = draw_all([four], out=tmp_path, only=[name])
    assert left_out == []
    assert [p.name for p in written] == [f"{name}.{kind}" for kind in ("pdf", "png", "csv")]
    assert len(pd.read_csv(written[2])) > 0
    pixels = imread(written[1])
    assert pixels.std() > 0.01 and pixels.shape[1] >= 0.95 * 3.25 * 300
    assert b"/Type3" not in written[0].read_bytes()  # text stays text
    assert rc_params() == before


def test_every_figure_says_what_it_needs_or_is_drawn_of_fifteen_runs(tmp_path):
    runs = finished(make_sweep(tmp_path / "runs", GRID))
    assert all(f.needs(runs) or f.draw(runs) for f in map(figure, FIGURES))
    assert len(highlighted(settings(runs))) == 4


def test_files_lie_in_the_sweep_or_in_out(four, tmp_path):
    written, _ = draw_all([make_sweep(tmp_path / "a", FOUR[:1])], only=["samples", "tables"])
    assert {str(p.relative_to(tmp_path / "a").parent) for p in written} == {".", "figures"}
    written, _ = draw_all([four, tmp_path / "a"], out=tmp_path / "out", only=["tables", "samples"])
    assert {p.parent for p in written} == {tmp_path / "out"}


def test_masks_csv_rebuilds_the_masks(four):
    figure, numbers, _ = masks.draw(finished(four))[:3]
    for alpha in (1.0, 4.0):
        rebuilt = np.zeros((1000, 64), bool)
        for row in numbers[numbers.alpha == alpha].itertuples():
            first, last = map(int, row.read.split("-"))
            rebuilt[row.task_first : row.task_last + 1, first : last + 1] = True
        assert (rebuilt == dtr(1000, 64, alpha, 0.8).numpy()).all()
    assert (numbers.active == 51).all() and len(figure.axes) == 3
    assert numbers[numbers.router == "RTR"].read.tolist() == [""]  # a seed says it shorter


def test_masks_need_no_run():
    assert masks.draw([]).numbers.channels.unique().tolist() == [768]


def test_ablation_csv_is_what_is_plotted(three_seeds):
    figure, numbers, note = ablation.draw(finished(three_seeds))[:3]
    points = plotted(figure)
    means = numbers[numbers.what == "mean"].set_index(["router", "alpha"]).score
    for alpha in (1.0, 4.0):
        expected = np.mean([score_of("DTR", {"alpha": alpha, "beta": 0.8}, s) for s in range(3)])
        assert means["DTR", alpha] == pytest.approx(expected)
        assert (alpha, pytest.approx(expected)) in points
    levels = {
        line.get_ydata()[0] for line in figure.axes[0].get_lines() if "_" not in line.get_label()
    }
    assert numbers[numbers.router == "floor"].score.item() == 9.1 and 9.1 in levels
    assert (numbers.what == "seed").sum() == 12 and note == ""


def test_runs_of_another_protocol_are_not_compared(tmp_path):
    root = make_sweep(tmp_path)
    make_run(root / "longer", "DTR", {"alpha": 8.0, "beta": 0.8}, steps=2400)
    numbers, note = ablation.draw(finished(root))[1:3]
    assert 8.0 not in numbers.alpha.values and "longer" in note
    labels = [setting.label for setting in settings(finished(root))]
    assert labels[-1].endswith("max_steps=2400") and len(set(labels)) == 5


def test_convergence_csv_is_what_is_plotted_and_does_not_mix_n(three_seeds):
    figure, numbers, _ = convergence.draw(finished(three_seeds))[:3]
    points = plotted(figure)
    assert sorted(numbers.step.unique()) == [300, 600, 900, 1200]
    assert (numbers.n == 512).all() and (numbers.seeds == 3).all()
    assert all((r.step, pytest.approx(r.score)) in points for r in numbers.itertuples())


def test_convergence_ends_with_the_result_when_n_is_equal(tmp_path):
    run = make_run(tmp_path / "r", steps=1300)
    results = run.results | {"n": 512}
    run.write_results(results)
    numbers = convergence.draw(finished(tmp_path)).numbers
    assert numbers.step.iloc[-1] == 1300 and numbers.score.iloc[-1] == results["score"]


def test_tasks_are_relative_to_the_twin_of_the_same_seed(three_seeds):
    figure, numbers, _ = tasks.draw(finished(three_seeds))[:3]
    expected = [100 * 0.002 * 4.0 * (i - 3) / 4 for i in range(8)]
    four_ = numbers[(numbers.router == "DTR") & (numbers.alpha == 4.0)]
    assert four_.percent.tolist() == pytest.approx(expected, abs=1e-9)
    lines = figure.axes[1].get_lines()
    points = [(x, y) for line in lines for x, y in line.get_xydata()]
    assert all((62.5 + 125 * i, pytest.approx(y)) in points for i, y in enumerate(expected))
    assert len(figure.axes) == 3  # R-TR is far off


def test_samples_are_paired_and_others_left_out(tmp_path):
    root = make_sweep(tmp_path)
    odd = make_run(root / "odd", "DTR", {"alpha": 2.0, "beta": 0.8})
    with np.load(odd.sample_arrays) as arrays:
        np.savez(odd.sample_arrays, images=arrays["images"], labels=arrays["labels"][::-1])
    make_run(root / "noisy", "DTR", {"alpha": 6.0, "beta": 0.8}, evaluation={"seed": 1})
    figure, numbers, note = samples.draw(finished(root))[:3]
    assert "and 1 more" in note and not {"odd", "noisy"} & set(numbers.run)
    assert (numbers.groupby("index").label.nunique() == 1).all() and len(numbers) == 4 * 20
    sheet = figure.axes[0].images[0].get_array()
    with np.load(Run(root / "norouting-0-seed=0").sample_arrays) as arrays:
        assert (sheet[:8, 9:17, 0] == arrays["images"][1, 0]).all()


def test_what_is_missing_is_told_in_one_line(tmp_path):
    run = make_run(tmp_path / "r")
    run.metrics_file.unlink()
    run.sample_arrays.write_bytes(b"no npz")
    names = ["ablation", "convergence", "samples", "tasks"]
    written, left_out = draw_all([tmp_path], out=tmp_path / "out", only=[*names, "tables"])
    assert [name for name, _ in left_out] == names
    assert all("\n" not in reason for _, reason in left_out)
    assert "evaluation.every above 0" in dict(left_out)["tasks"]
    assert {p.stem for p in written} == {"results", "table"}


@pytest.mark.parametrize("router, args", FOUR[1:3])
def test_one_run_alone_and_diverged_runs_do_not_break(router, args, tmp_path):
    make_run(tmp_path / "one", router, args)
    runs = finished(tmp_path)
    assert all(f.needs(runs) or len(f.draw(runs).numbers) for f in map(figure, FIGURES))
    assert len(table(runs)) == 1
    for i, score in enumerate((math.nan, math.inf)):
        make_run(tmp_path / f"bad{i}", "DTR", {"alpha": 8.0 + i, "beta": 0.8}, score=score)
    runs = finished(tmp_path)
    assert all(f.needs(runs) or len(f.draw(runs).numbers) for f in map(figure, FIGURES))
    assert ablation.needs(runs) or "2 diverged" in ablation.draw(runs).note
    assert table(runs).score.isna().tolist() == [False, True, True]
    assert markdown(table(runs)).count("diverged") == 2


def test_runs_of_other_data_or_scores_are_named(tmp_path):
    a = make_run(tmp_path / "a")
    for alpha in (2.0, 4.0):
        make_run(tmp_path / f"b{alpha}", "DTR", {"alpha": alpha, "beta": 0.8})
    assert mixed(groups(read(find_runs([tmp_path])).finished)) == ""
    images = {"class_path": "ImageFolder", "init_args": {"root": "photos"}}
    make_run(tmp_path / "c", data=images)
    reasons = dict(draw_all([tmp_path], tmp_path / "out", only=["ablation"]).left_out)
    assert reasons["runs"].startswith(
        "not compared with one another: fd_digits_v1, N = 1,797: a and 2 more; ImageFolder "
        "photos, fd_digits_v1, N = 1,797: c. "
    )
    assert "ablation" not in reasons  # c is not in the figure, nor left out of it
    a.results_file.unlink()
    (skipped,) = read(find_runs([tmp_path])).skipped
    assert skipped == "skipped: 1 unfinished (1 without its results.json)"
