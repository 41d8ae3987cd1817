"""Numbers of the figures of scores over seeds, alphas, steps and sizes, from synthetic runs."""

import math

import numpy as np
import pytest
from matplotlib.markers import CARETDOWN, CARETUP

from analysis.drawing.style import count_seeds, save, score_name
from analysis.figures import (
    ablation,
    convergence,
    heatmap,
    samples,
    sizes,
)
from analysis.figures import tasks as tasks_figure
from analysis.read.settings import ALPHA
from analysis.read.statistics import t_interval
from dtr_lightning.rundir.run import find_runs
from tests.analysis.page_layout import caption_of, on_page
from tests.analysis.synthetic_runs import (
    DTR4,
    FOUR,
    GRID,
    facts,
    finished,
    make_run,
    make_sweep,
    record,
    score_of,
)

CROSS = [(alpha, 0.8) for alpha in (0.5, 1.0, 2.0, 4.0, 6.0)] + [(4.0, 0.5), (4.0, 0.6), (4.0, 0.9)]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return finished(make_sweep(tmp_path_factory.mktemp("grid"), GRID, seeds=(0, 1)))


def scores_of(args, seeds=(0, 1)):
    return [score_of("DTR", args, seed) for seed in seeds]


def marks(figure):
    """Returns the triangles (marker, x, y) of cut intervals."""
    cut = []
    for ax in figure.axes:
        for line in ax.get_lines():
            if line.get_marker() in (CARETUP, CARETDOWN):
                cut += [(line.get_marker(), *map(float, point)) for point in line.get_xydata()]
    return sorted(cut)


def trials(root, points):
    for i, (alpha, beta) in enumerate(points):
        make_run(root / f"{i}", "DTR", {"alpha": alpha, "beta": beta}, score=20 + abs(i - 3))
    return finished(root)


def test_ablation_and_heatmap_have_the_t_intervals_of_the_seeds(grid):
    expected = t_interval(scores_of(DTR4))
    for figure in (ablation, heatmap):
        numbers = figure.draw(grid).numbers
        if "what" in numbers:
            numbers = numbers[numbers.what == "mean"]
        (row,) = numbers[(numbers.alpha == 4) & (numbers.beta == 0.8)].itertuples()
        assert row.seeds == 2 and row.score == pytest.approx(np.mean(scores_of(DTR4)))
        assert (row.low, row.high) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("points, seeds", [(FOUR, (0,)), (GRID, (0, 1))], ids=["broken", "grid"])
def test_a_long_score_name_stays_on_the_page(points, seeds, tmp_path):
    for path in make_sweep(tmp_path, points, seeds).iterdir():
        (run,) = find_runs([path])
        run.write_results(run.results | {"score_name": "fd_resnet18_untrained_64px", "n": 24_000})
    runs = finished(tmp_path)
    for figure in (ablation, convergence, heatmap, samples):
        if not figure.needs(runs):
            assert on_page(figure.draw(runs).figure), figure.TITLE
    label = score_name("fd_resnet18_untrained_64px" * 3, 24, "lower is better")
    assert max(map(len, label.split("\n"))) <= 30 and "(N\xa0=\xa024)" in label


def test_means_tell_of_how_many_seeds_they_are(tmp_path):
    assert [count_seeds(n) for n in ([1, 1], [], [math.nan, 3], [0, 2], [3, 1, 2])] == [
        *("", "", "3 seeds", "2 seeds", "1 to 3 seeds"),
    ]
    make_sweep(tmp_path, GRID, seeds=(0,))
    make_sweep(tmp_path, GRID[:1], seeds=(1,))
    runs = finished(tmp_path)
    captions = {f: caption_of(f.draw(runs).figure) for f in (ablation, heatmap, convergence)}
    assert all("mean of 1 to 2 seeds" in text for text in captions.values())
    assert "; bands: 95 % t interval" not in captions[ablation]  # of no routing alone: no bars
    assert "bands: 95 % t interval" in captions[ablation]


def test_an_interval_that_the_axis_cuts_has_a_triangle_at_the_edge(tmp_path):
    for seed, score in enumerate((20.0, 21.0)):
        make_run(tmp_path / f"plain{seed}", seed=seed, score=score)
        make_run(tmp_path / f"narrow{seed}", "DTR", DTR4, seed, score=19 + 0.01 * seed)
        make_run(tmp_path / f"wide{seed}", "DTR", DTR4 | {"alpha": 1.0}, seed, score=19 + seed)
    drawing = ablation.draw(finished(tmp_path))
    means = drawing.numbers[drawing.numbers.what == "mean"]
    low, high = drawing.figure.axes[0].get_ylim()
    cut = means[means.alpha != 4]  # no routing's, at the right end, and that of alpha = 1
    expected = [(CARETUP, x, 1) for x in cut.alpha.fillna(0.96)[cut.high > high]]
    expected += [(CARETDOWN, x, 0) for x in cut.alpha.fillna(0.96)[cut.low < low]]
    assert marks(drawing.figure) == sorted(expected) and len(expected) >= 2
    assert "cut off" in caption_of(drawing.figure)
    few = [run for run in finished(tmp_path) if run.seed == 0]
    figure = ablation.draw(few).figure
    assert marks(figure) == [] and "cut off" not in caption_of(figure)


def test_alphas_and_betas_of_a_search_are_points(tmp_path):
    rng = np.random.default_rng(0)
    points = np.stack([2 ** rng.uniform(-1, 3, 12), rng.uniform(0.5, 0.95, 12)], 1).round(4)
    make_run(tmp_path / "plain")
    make_run(tmp_path / "diverged", "DTR", {"alpha": 9.9, "beta": 0.5}, score=math.nan)
    runs = trials(tmp_path, points.tolist())
    assert "see heatmap" in ablation.needs(runs) and "\n" not in ablation.needs(runs)
    figure, numbers, _ = heatmap.draw(runs)[:3]
    drawn, best = figure.axes[0].collections
    assert {*map(tuple, drawn.get_offsets().data)} == {*map(tuple, points)}
    assert tuple(best.get_offsets().data[0]) == tuple(points[3])
    scored = numbers[(numbers.router == "DTR") & numbers.score.notna()]
    assert sorted(drawn.get_array()) == sorted(scored.score) and len(numbers) == 14
    assert figure.axes[0].get_xscale() == "log" and on_page(figure)


@pytest.mark.parametrize(
    "points",
    [CROSS, [(1.0, 0.5), (2.0, 0.6), (4.0, 0.7)], [p[1].values() for p in GRID[3:10]]],
    ids=["cross", "three", "unfinished grid"],
)
def test_a_grid_that_is_not_full_is_no_search(points, tmp_path):
    runs = trials(tmp_path, points)
    assert ablation.needs(runs) is None
    assert len(heatmap.draw(runs).figure.axes[0].texts) == len(points)


def test_heatmap_tells_every_cell_and_the_baseline(grid):
    figure, numbers, note = heatmap.draw(grid)[:3]
    assert note == "" and (numbers.router == "DTR").sum() == 12
    ax = figure.axes[0]
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert len(texts) == 12
    half = t_interval(scores_of(DTR4))[1] - np.mean(scores_of(DTR4))
    assert texts[3.5, 1.5] == f"{np.mean(scores_of(DTR4)):.1f}\n± {half:.1f}"
    assert "no routing: 18.4" in ax.get_title()


@pytest.mark.slow
def test_heatmap_and_sizes_are_written(grid, tmp_path):
    for width in (32, 64):
        model = {"class_path": "DiT", "init_args": {"hidden_size": width}}
        run = make_run(tmp_path / f"{width}", model=model)
        facts(run, parameters=width**2, macs=width**3)
    for figure, runs in ((heatmap, grid), (sizes, finished(tmp_path))):
        paths = save(figure.draw(runs), tmp_path / "out", "figure")
        assert [path.suffix for path in paths] == [".pdf", ".png", ".csv"]
        assert all(path.stat().st_size > 100 for path in paths)


def test_heatmap_needs_two_alphas_and_two_betas(tmp_path):
    runs = finished(make_sweep(tmp_path, FOUR))
    assert "two betas" in heatmap.needs(runs) and "\n" not in heatmap.needs(runs)
    make_run(tmp_path / "hole", "DTR", {"alpha": 1.0, "beta": 0.6}, score=math.nan)
    assert heatmap.needs(finished(tmp_path))
    make_run(tmp_path / "more", "DTR", {"alpha": 2.0, "beta": 0.6})
    figure = heatmap.draw(finished(tmp_path)).figure
    assert len(figure.axes[0].texts) == 4  # of six cells one diverged, two are not there
    assert "-" in [t.get_text() for t in figure.axes[0].texts]


def test_the_evaluations_that_reach_the_baseline_are_no_finer_than_they_are(tmp_path):
    for seed, (mine, final) in enumerate([((40, 20, 10), 15), ((40, 30, 10), 20), ((40, 30), 8)]):
        plain = make_run(tmp_path / f"plain{seed}", seed=seed)
        record(plain, scores=[(100, 50), (200, 30), (300, final)])
        run = make_run(tmp_path / f"dtr{seed}", "DTR", DTR4, seed=seed)
        record(run, scores=[(100 * (i + 1), score) for i, score in enumerate(mine)])
    alone = make_run(tmp_path / "rtr", "RTR", {"beta": 0.8}, seed=9)
    record(alone, scores=[(100, 40), (200, 20)])
    figure, numbers, _ = convergence.draw(finished(tmp_path))[:3]
    row = numbers[numbers.router == "DTR"].iloc[0]
    assert (row.reached, row.pairs) == (2, 3)  # 10 is below 15 at 300, 10 below 20 too
    assert (row.to_baseline_first, row.to_baseline, row.to_baseline_last) == (300, 300, 300)
    assert numbers[numbers.router == "RTR"].to_baseline.isna().all()
    assert numbers[numbers.router == "NoRouting"].pairs.eq(0).all()
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert f"DTR {ALPHA}=4 β=0.8: 300 steps (2 of 3 seeds)" in labels and "R-TR β=0.8" in labels
    at = numbers[(numbers.router == "DTR") & (numbers.step == 200)].iloc[0]
    assert (at.low, at.high) == pytest.approx(t_interval([20, 30, 30]))


def test_one_seed_tells_no_step_and_neither_do_seeds_that_never_get_there(tmp_path):
    for seeds, mine, label in ((1, 4, ""), (2, 6, ": never (0 of 2 seeds)")):
        root = tmp_path / str(seeds)
        for seed in range(seeds):
            record(make_run(root / f"a{seed}", seed=seed), scores=[(100, 9), (200, 5)])
            run = make_run(root / f"b{seed}", "DTR", DTR4, seed)
            record(run, scores=[(100, 20), (200, mine)])
        figure, numbers, _ = convergence.draw(finished(root))[:3]
        row = numbers[numbers.router == "DTR"].iloc[0]
        assert math.isnan(row.to_baseline) and (row.reached, row.pairs) == (int(mine < 5), seeds)
        assert figure.axes[0].get_legend_handles_labels()[1][1] == f"DTR {ALPHA}=4 β=0.8{label}"


def test_tasks_bands_are_intervals_of_paired_differences(tmp_path):
    percents = [-1.0, 2.0, 5.0]
    for seed, percent in enumerate(percents):
        plain = np.linspace(0.5, 0.1, 8) * (1 + seed)  # seeds differ, pairs do not
        record(make_run(tmp_path / f"plain{seed}", seed=seed), losses=[*plain])
        run = make_run(tmp_path / f"dtr{seed}", "DTR", DTR4, seed=seed)
        record(run, losses=[*(plain * (1 + percent / 100))])
    numbers = tasks_figure.draw(finished(tmp_path)).numbers
    assert numbers.percent.tolist() == pytest.approx([2.0] * 8)
    low, high = t_interval(percents)
    assert numbers.low.tolist() == pytest.approx([low] * 8)
    assert numbers.high.tolist() == pytest.approx([high] * 8)
    assert numbers.loss_no_routing.tolist() == pytest.approx([*(np.linspace(0.5, 0.1, 8) * 2)])


def test_sizes_are_lines_over_parameters_and_macs(tmp_path):
    for width in (32, 64, 96):
        model = {"class_path": "DiT", "init_args": {"hidden_size": width}}
        for router, args in (("NoRouting", {}), ("DTR", DTR4)):
            for seed in (0, 1):
                run = make_run(
                    tmp_path / f"{router}{width}-{seed}",
                    router,
                    args,
                    seed,
                    64 / width,
                    model=model,
                )
                run.write_results(run.results | {"parameters": 10 * width**2, "macs": width**3})
    make_run(tmp_path / "once", "RTR", {"beta": 0.8})
    drawing = sizes.draw(finished(tmp_path))
    labels, numbers = [ax.get_xlabel() for ax in drawing.figure.axes], drawing.numbers
    assert ["multiply-adds" in label for label in labels] == [False, True]
    assert numbers.macs.tolist() == [32**3, 64**3, 96**3] * 2
    assert numbers.setting.tolist() == ["no routing"] * 3 + [f"DTR {ALPHA}=4 β=0.8"] * 3
    assert numbers.parameters.tolist() == [10_240, 40_960, 92_160] * 2
    assert numbers.score.tolist() == pytest.approx([2, 1, 2 / 3] * 2)
    assert sizes.needs([r for r in finished(tmp_path) if r.flat["model.hidden_size"] == 32])


def test_samples_are_headed_by_their_classes_where_these_are_stored(tmp_path):
    run = make_run(tmp_path / "r")
    with np.load(run.sample_arrays) as stored:
        arrays = dict(stored)
    heads = []
    for names in (None, ["cat", "dog"], [f"a very long name {i}" for i in range(10)]):
        more = {} if names is None else {"classes": np.array(names)}
        np.savez(run.sample_arrays, **arrays, **more)
        figure, numbers, _ = samples.draw(finished(tmp_path))[:3]
        heads.append([label.get_text() for label in figure.axes[0].get_xticklabels()])
        assert on_page(figure) and numbers.label.tolist() == arrays["labels"].tolist()
    assert heads[0] == arrays["labels"].astype(str).tolist()
    assert heads[1][:4] == ["cat", "dog", "2", "3"]
    assert heads[2][0] == "a very long nam…" and numbers["class"][0] == "a very long name 0"
