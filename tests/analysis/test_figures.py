"""Numbers of the figures over seeds, masks, experts, sizes and gates, from tiny synthetic runs."""

import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.markers import CARETDOWN, CARETUP
from matplotlib.text import Text
from torch.nn import functional as F

from analysis.drawing.mask_tables import FORMULAS, mask_tables
from analysis.drawing.style import count_seeds, save, score_name, styled
from analysis.figures import (
    ablation,
    convergence,
    dedicated,
    heatmap,
    masks,
    overlap,
    samples,
    sizes,
)
from analysis.figures import negative_transfer as ntg
from analysis.figures import tasks as tasks_figure
from analysis.probes import film, gates
from analysis.read.runs import read
from analysis.read.settings import ALPHA
from analysis.read.statistics import t_interval
from dtr_lightning.models.layers import TimestepEmbedder
from dtr_lightning.routing import MaxRoaming, Switch
from dtr_lightning.routing.masks import dtr, ercdt
from dtr_lightning.rundir.run import find_runs
from tests.analysis.synthetic_runs import EIGHTHS, FOUR, GRID, make_run, make_sweep, score_of

DTR4 = {"alpha": 4.0, "beta": 0.8}


def finished(root):
    return read(find_runs([root])).finished


def record(run, step=1200, scores=(), losses=()):
    """Replaces a run's record by evaluations (step, score) and held-out losses at its end."""
    run.metrics_file.unlink()
    for at, score in scores:
        run.append_metrics({"step": at, "eval/score": score, "eval/n": 512})
    run.append_metrics({"step": step} | dict(zip(EIGHTHS, losses, strict=False)))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return finished(make_sweep(tmp_path_factory.mktemp("grid"), GRID, seeds=(0, 1)))


def scores_of(args, seeds=(0, 1)):
    return [score_of("DTR", args, seed) for seed in seeds]


def test_ablation_and_heatmap_have_the_t_intervals_of_the_seeds(grid):
    expected = t_interval(scores_of(DTR4))
    for figure in (ablation, heatmap):
        numbers = figure.draw(grid).numbers
        if "what" in numbers:
            numbers = numbers[numbers.what == "mean"]
        (row,) = numbers[(numbers.alpha == 4) & (numbers.beta == 0.8)].itertuples()
        assert row.seeds == 2 and row.score == pytest.approx(np.mean(scores_of(DTR4)))
        assert (row.low, row.high) == pytest.approx(expected)


@styled
def on_page(figure):
    """Returns whether nothing that is drawn leaves the page, in inches."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.005


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
    assert all("mean of 1 to 2 seeds" in told for told in captions.values())
    assert "; bands: 95 % t interval" not in captions[ablation]  # of no routing alone: no bars
    assert "bands: 95 % t interval" in captions[ablation]


def caption_of(figure):
    return " ".join(figure.texts[-1].get_text().split())


def marks(figure):
    """Returns the triangles (marker, x, y) of cut intervals."""
    found = []
    for ax in figure.axes:
        for line in ax.get_lines():
            if line.get_marker() in (CARETUP, CARETDOWN):
                found += [(line.get_marker(), *map(float, point)) for point in line.get_xydata()]
    return sorted(found)


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


def trials(root, points):
    for i, (alpha, beta) in enumerate(points):
        make_run(root / f"{i}", "DTR", {"alpha": alpha, "beta": beta}, score=20 + abs(i - 3))
    return finished(root)


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


CROSS = [(alpha, 0.8) for alpha in (0.5, 1.0, 2.0, 4.0, 6.0)] + [(4.0, 0.5), (4.0, 0.6), (4.0, 0.9)]


@pytest.mark.parametrize(
    "points",
    [CROSS, [(1.0, 0.5), (2.0, 0.6), (4.0, 0.7)], [p[1].values() for p in GRID[3:10]]],
    ids=["cross", "three", "unfinished grid"],
)
def test_a_grid_that_is_not_full_is_no_search(points, tmp_path):
    runs = trials(tmp_path, points)
    assert ablation.needs(runs) is None
    assert len(heatmap.draw(runs).figure.axes[0].texts) == len(points)


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


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_still_tells_its_guess_and_fills_its_page(count):
    x = torch.zeros(6, count, 3, 8, 8, dtype=torch.uint8)
    moments = film.Moments([999, 800, 600, 400, 200, 0], x, x, torch.arange(count))
    figure = styled(film._still)(dtr(1000, 64).numpy(), moments, "DTR")
    assert on_page(figure)
    texts = [t.get_text() for t in figure.findobj(Text)]
    assert texts.count("guess of x$_0$") == film.STILLS
    bottom = min(ax.get_window_extent().y0 for ax in figure.findobj(Axes) if ax.images)
    assert bottom / figure.dpi < 0.4  # inches


def test_heatmap_tells_every_cell_and_the_baseline(grid):
    figure, numbers, note = heatmap.draw(grid)[:3]
    assert note == "" and (numbers.router == "DTR").sum() == 12
    ax = figure.axes[0]
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert len(texts) == 12
    half = t_interval(scores_of(DTR4))[1] - np.mean(scores_of(DTR4))
    assert texts[3.5, 1.5] == f"{np.mean(scores_of(DTR4)):.1f}\n± {half:.1f}"
    assert "no routing: 18.4" in ax.get_title()


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
    assert f"DTR {ALPHA}=4 β=0.8 (300, 2 of 3)" in labels and "R-TR β=0.8" in labels
    at = numbers[(numbers.router == "DTR") & (numbers.step == 200)].iloc[0]
    assert (at.low, at.high) == pytest.approx(t_interval([20, 30, 30]))


def test_one_seed_tells_no_step_and_neither_do_seeds_that_never_get_there(tmp_path):
    for seeds, mine, label in ((1, 4, ""), (2, 6, " (0 of 2)")):
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


def test_masks_without_any_are_those_of_the_paper(tmp_path):
    make_run(tmp_path / "plain")
    found, note = mask_tables(finished(tmp_path))
    assert [one.label for one in found] == [*FORMULAS] and note == ""
    assert found[3].table.equal(dtr(1000, 64, 4.0, 0.8))


def test_masks_are_those_of_the_runs_own_routers(tmp_path):
    make_sweep(tmp_path, [*FOUR, ("ERCDT", {"clusters": 8})], seeds=(1, 2))
    make_run(tmp_path / "roaming", "MaxRoaming", {"beta": 0.8}, seed=1)
    make_run(tmp_path / "unknown", "NoSuchRouter")
    found, note = mask_tables(finished(tmp_path))
    tables = {one.name: one.table for one in found}
    assert len(found) == 6 and "left out NoSuchRouter" in note and "\n" not in note
    assert tables[f"DTR {ALPHA}=1 β=0.8"].equal(dtr(1000, 64, 1.0, 0.8))
    router = MaxRoaming(0.8, seed=1, steps=1200)
    router.bind(1000, [64, 64], 64)
    assert tables["MaxRoaming β=0.8, step 0"].equal(router.table(0))
    router.advance(1200, None)
    assert tables["MaxRoaming β=0.8, step 1,200"].equal(router.table(0))

    numbers = masks.draw(finished(tmp_path)).numbers
    assert numbers[numbers.router == "RTR"].seed.tolist() == [1]
    rows = numbers[numbers.router == "ERCDT"]
    rebuilt = np.zeros((1000, 64), bool)
    for row in rows.itertuples():
        for part in row.read.split():
            first, last = map(int, part.split("-"))
            rebuilt[row.task_first : row.task_last + 1, first : last + 1] = True
    assert (rebuilt == ercdt(1000, 64).numpy()).all() and len(rows) == 8


def test_overlap_is_the_windows_and_of_random_masks_the_expectation(tmp_path):
    numbers = overlap.draw(finished(make_sweep(tmp_path, FOUR))).numbers
    window = numbers[(numbers.router == "DTR") & (numbers.alpha == 4)]
    start = dtr(1000, 64, 4.0, 0.8).int().argmax(1).numpy()
    shift = np.abs(start[window.task] - start[window.other_task])
    assert window.overlap.to_numpy() == pytest.approx((51 - shift) / 64)
    pairs = np.abs(start[:, None] - start)[~np.eye(1000, dtype=bool)]
    assert window["mean"].iloc[0] == pytest.approx((51 - pairs.mean()) / 64)
    random = numbers[numbers.router == "RTR"].iloc[0]
    assert random.expected_random == pytest.approx((51 / 64) ** 2)
    assert random["mean"] == pytest.approx(random.expected_random, abs=2e-3)


def test_dedicated_counts_are_the_shifts_of_the_window(tmp_path):
    points = [("DTR", DTR4), ("RTR", {"beta": 0.8}), ("ERCDT", {"clusters": 5})]
    for i, (router, args) in enumerate(points):
        model = {"class_path": "DiT_B", "init_args": {}}
        make_run(tmp_path / f"{i}", router, args, model=model)
    numbers = dedicated.draw(finished(tmp_path)).numbers
    window = numbers[numbers.router == "DTR"]
    start = dtr(1000, 768, 4.0, 0.8).int().argmax(1).numpy()
    ends = start[99::100]
    assert window.switched_on.tolist() == [0, *np.diff(ends)]
    assert window.switched_off.tolist() == [0, *np.diff(start[::100])]
    assert window.only.tolist() == [0] * 9 + [ends[-1] - ends[-2]]
    half = int((start[-1] - start[800:]).max())  # over 100 of the tasks that read them are last
    assert window.own.iloc[-1] == pytest.approx(half, abs=1) and window.own.iloc[:-1].sum() == 0
    random = numbers[numbers.router == "RTR"]
    assert not random[["switched_on", "own", "only"]].to_numpy().any()
    explicit = numbers[numbers.router == "ERCDT"]  # five clusters are two tenths each
    segments = [77, 77, 76, 77, 77]
    assert explicit.switched_on.tolist() == [0, 0, 77, 0, 76, 0, 77, 0, 77, 0]
    assert explicit.switched_off.tolist()[2::2] == segments[:4] and explicit.only.sum() == 0


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


def test_figures_that_need_experts_or_sizes_are_written(experts, grid, tmp_path):
    for figure, runs in ((ntg, finished(experts)), (heatmap, grid)):
        paths = save(figure.draw(runs), tmp_path / "out", "figure")
        assert [path.suffix for path in paths] == [".pdf", ".png", ".csv"]
        assert all(path.stat().st_size > 100 for path in paths)


def test_negative_transfer_is_the_experts_loss_against_the_joint_one(experts):
    numbers = ntg.draw(finished(experts)).numbers
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
    assert "--experts" in ntg.needs([run for run in runs if run.flat["experts"] == 1])
    assert "joint" in ntg.needs([run for run in runs if run.flat["experts"] > 1])
    odd = [run for run in runs if run.flat["experts"] == 1 and run.seed == 1]
    odd += [run for run in runs if run.flat["experts"] > 1 and run.seed == 0]
    assert "joint" in ntg.needs(odd)


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


def test_gates_are_softmax_of_the_checkpoint_and_the_matched_prior(tmp_path):
    run = make_run(tmp_path / "switch", "Switch", {"experts": 3, "k": 2, "alpha": 4.0})
    assert "no checkpoint" in gates.needs(finished(tmp_path))
    torch.manual_seed(0)
    embedder, router = TimestepEmbedder(8), Switch()
    router.bind(1000, [8, 8], 8)
    for part in router.routers:
        torch.nn.init.normal_(part.f_gate[1].weight, std=5.0)
    router.advance(0, embedder)
    state = {f"model.t_embedder.{n}": w for n, w in embedder.state_dict().items()}
    state |= {f"model.router.{n}": w for n, w in router.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 1200}, run.last)

    figure, numbers, note = gates.draw(finished(tmp_path))[:3]
    assert note == "" and len(figure.axes) == 2 + 3
    t = torch.arange(0, 1000, 20)
    with torch.no_grad():
        emb = F.silu(embedder(t))
        p = torch.stack([part.f_gate[1](emb).softmax(-1) for part in router.routers], 1)
    assert numbers.p.to_numpy() == pytest.approx(p.flatten().numpy(), abs=1e-6)
    chosen = numbers.selected.to_numpy().reshape(50, 2, 3)
    assert (chosen.sum(-1) == 2).all() and (chosen.argmin(-1) == p.argmin(-1).numpy()).all()
    prior = router.prior[t].int().numpy()
    assert (numbers.prior.to_numpy().reshape(50, 6) == prior).all()
    matched = prior[:, router.assignment.numpy()]
    assert (numbers.matched.to_numpy().reshape(50, 6) == matched).all()
    assert numbers.differ_matched.iloc[0] <= numbers.differ_before.iloc[0]

    run.last.write_bytes(b"torn")
    assert "left out Switch" in gates.needs(finished(tmp_path))
