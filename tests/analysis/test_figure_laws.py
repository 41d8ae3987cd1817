"""Laws of all figures: text is text, one that fails ends no other, axes that do not exaggerate."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.font_manager import fontManager
from matplotlib.image import imread

import analysis
from analysis import draw_all
from analysis.drawing import fonts
from analysis.drawing.style import line_style, lines, log_bounds, styled
from analysis.figures import (
    ablation,
    convergence,
    dedicated,
    heatmap,
    masks,
    overlap,
    samples,
    tasks,
)
from analysis.probes import affinity, cka
from analysis.read.runs import read
from dtr_lightning.rundir.run import find_runs
from tests.analysis.synthetic_runs import EIGHTHS, FOUR, GRID, make_run, make_sweep
from tests.conftest import slow_except

ODD = ["Ba$$in", "a$x^$b", "_under_", "a\\b{%", "猫と犬", "собака", "עברית", "x🙂y", "tab\tname"]
WITH_SCORES = (ablation, heatmap, convergence)


def finished(root):
    return read(find_runs([root])).finished


def texts(figure):
    return [text.get_text() for text in figure.findobj(fonts.Text)]


def caption_of(figure):
    return " ".join(figure.texts[-1].get_text().split())


def test_names_of_classes_are_drawn_as_they_are(tmp_path):
    run = make_run(tmp_path / "r")
    with np.load(run.sample_arrays) as stored:
        arrays = dict(stored)
    np.savez(run.sample_arrays, **arrays, classes=np.array([*ODD, "last"]))
    with warnings.catch_warnings(action="error"):
        written, left_out = draw_all([tmp_path], only=["samples"])
        shown = texts(samples.draw(finished(tmp_path)).figure)
    assert left_out == []
    assert set(pd.read_csv(written[2])["class"]) == {*ODD, "last"}
    assert set(shown) >= {*ODD[:-1], "tab\N{REPLACEMENT CHARACTER}name"}


@pytest.mark.slow
def test_names_of_routers_and_options_are_in_every_legend(tmp_path):
    names = ["_Mine", "Ba$$in", "a^b_c", "x\\y{", "猫", "L" * 100]
    for i, name in enumerate(names):
        args = {"alpha": 2.0, "beta": 0.8, "text": r"$\frac{1}{$"}
        make_run(tmp_path / f"{i}", name, args)
    for alpha in (1.0, 2.0):
        make_run(tmp_path / f"dtr{alpha}", "DTR", {"alpha": alpha, "beta": 0.8})
    with warnings.catch_warnings(action="error"):
        _, left_out = draw_all([tmp_path], only=["ablation", "convergence", "samples"])
    assert not [line for _, line in left_out if "failed" in line]
    (legend,) = ablation.draw(finished(tmp_path)).figure.legends
    shown = [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert all(any(name in label for label in shown) for name in names)


def test_letters_that_dejavu_lacks_come_from_a_font_that_has_them(monkeypatch):
    assert fonts.families("DTR собака") == [fonts.FAMILY]
    other = SimpleNamespace(name="Other Sans", fname="other", style="normal", weight=400)
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, other])
    letters = fonts._letters
    own = {"other": frozenset(map(ord, "猫犬"))}
    monkeypatch.setattr(fonts, "_letters", lambda path: own.get(path) or letters(path))
    assert fonts.families("猫🙂") == [fonts.FAMILY, "Other Sans"]


@pytest.mark.parametrize("where", ["needs", "draw"])
@pytest.mark.slow
def test_a_figure_that_fails_ends_neither_the_others_nor_the_report(where, tmp_path, monkeypatch):
    make_sweep(tmp_path)

    def broken(*_):
        raise KeyError("one\nbug")

    monkeypatch.setattr(tasks, where, broken)
    written, left_out = draw_all([tmp_path], only=["tasks", "samples"], report=True)
    trace = tmp_path / "figures" / "tasks.error.txt"
    assert dict(left_out)["tasks"] == f"failed: KeyError: 'one\\nbug'; see {trace}"
    assert "Traceback" in trace.read_text() and "in broken" in trace.read_text()
    assert {path.stem for path in written} == {"samples", "report"}
    monkeypatch.undo()
    draw_all([tmp_path], only=["tasks"])
    assert not trace.exists()


def test_a_figure_that_cannot_be_rendered_is_one_that_failed(tmp_path, monkeypatch):
    make_sweep(tmp_path, FOUR[:1])
    draw = masks.draw

    def bad(runs):
        drawing = draw(runs)
        drawing.figure.suptitle("$\\frac{$", parse_math=True)
        return drawing

    monkeypatch.setattr(masks, "draw", bad)
    written, left_out = draw_all([tmp_path], only=["masks", "samples"])
    assert {path.stem for path in written} == {"samples"}
    assert dict(left_out)["masks"].startswith("failed: ValueError")


def share(ax, low, high):
    """Returns the share of an axis's height between two values."""
    bottom, top = ax.transAxes.inverted().transform(ax.transData.transform([(1, low), (1, high)]))
    return top[1] - bottom[1]


def test_close_scores_lie_close_together_whatever_else_is_drawn(tmp_path):
    for far in (None, 5.5, 500.0):
        root = tmp_path / str(far)
        make_run(root / "plain", score=1.2612)
        for alpha, score in ((1.0, 1.27), (4.0, 1.2516)):
            make_run(root / f"{alpha}", "DTR", {"alpha": alpha, "beta": 0.8}, score=score)
        if far:
            make_run(root / "far", "RTR", {"beta": 0.8}, score=far)
        figure = ablation.draw(finished(root)).figure
        (ax,) = figure.axes  # not broken
        assert share(ax, 1.2516, 1.2612) < 0.03
        assert "differences below about 0.2, the known noise, mean nothing" in caption_of(figure)
        ends = ax.get_ylim()
        assert ends[0] == 0 or ax.get_yscale() == "log"


def test_ablation_takes_two_alphas_and_tells_what_is_left_out(tmp_path):
    make_run(tmp_path / "plain")
    make_run(tmp_path / "a", "DTR", {"alpha": 4.0, "beta": 0.8})
    make_run(tmp_path / "b", "DTR", {"alpha": 2.0, "beta": 0.8}, steps=2400)
    reason = ablation.needs(finished(tmp_path))
    assert "two alphas" in reason and "there is alpha 2, 4" in reason
    make_run(tmp_path / "c", "DTR", {"alpha": 1.0, "beta": 0.8})
    make_run(tmp_path / "d", "DTR", {"alpha": 8.0, "beta": 0.8}, score=math.nan)
    drawing = ablation.draw(finished(tmp_path))
    assert "left out b" in caption_of(drawing.figure) and "1 diverged" in caption_of(drawing.figure)


@pytest.mark.slow
def test_every_figure_tells_its_seeds(tmp_path):
    for seeds in ((0,), (0, 1, 2)):
        root = make_sweep(tmp_path / str(len(seeds)), GRID, seeds)
        runs = finished(root)
        for figure in (*WITH_SCORES, tasks):
            below = caption_of(figure.draw(runs).figure)
            assert ("mean of 3 seeds" in below) == (len(seeds) > 1), figure.TITLE
            assert ("one seed" in below and "mean nothing" in below) == (len(seeds) == 1)
        for figure in (masks, overlap, dedicated, samples):
            assert "one seed" in caption_of(figure.draw(runs).figure), figure.TITLE


VALUES = {"zero": [0.0] * 3, "negative": [-1.0, 2.0, 0.0], "equal": [3.0] * 3}
VALUES |= {"huge": [1e30, 1e33, 1e35], "tiny": [1e-9, 2e-9, 3e-9], "apart": [1.0, 1e3, 1e6]}


@pytest.mark.parametrize("name", slow_except(VALUES, "zero", "apart"))
def test_any_scores_are_drawn_without_a_warning(name, tmp_path):
    for i, (router, args) in enumerate(GRID):
        make_run(tmp_path / f"{i}", router, args, score=VALUES[name][i % 3])
    runs = finished(tmp_path)
    with warnings.catch_warnings(action="error"):
        for figure in WITH_SCORES:
            drawn = figure.draw(runs).figure
            FigureCanvasAgg(drawn)
            styled(drawn.draw_without_rendering)()
            assert not any("mathdefault" in text for text in texts(drawn))


def test_logarithmic_scales_span_a_factor_of_two_at_least():
    assert log_bounds([3, 3]) == pytest.approx((3 / 2**0.5, 3 * 2**0.5))
    low, high = log_bounds([1.0, 100.0, math.nan])
    assert low < 1 and high > 100 and high / low == pytest.approx(121)
    assert log_bounds([0.0, 1.0]) is log_bounds([-1.0]) is log_bounds([math.nan]) is None


def test_heatmap_colours_are_logarithmic(tmp_path):
    image = heatmap.draw(finished(make_sweep(tmp_path, GRID))).figure.axes[0].collections[0]
    low, high = image.norm.vmin, image.norm.vmax
    assert image.norm((low * high) ** 0.5) == pytest.approx(0.5) and high / low >= 1.999


@pytest.mark.parametrize("period", slow_except([2, 3, 7], 3))
def test_a_few_periods_are_drawn_of_masks_that_repeat_themselves(period, tmp_path):
    """Their pictures have the two colours of masks alone: nothing is flat, or moire."""
    t, c = np.arange(1000)[:, None], np.arange(384)
    table = (t + c) % period == 0
    np.save(tmp_path / "table.npy", table[None].repeat(2, 0))
    model = {"class_path": "DiT", "init_args": {"hidden_size": 384}}
    path = {"path": str(tmp_path / "table.npy")}
    make_run(tmp_path / "runs" / "r", "FixedMasks", path, model=model)
    written, _ = draw_all([tmp_path / "runs"], only=["overlap", "masks"])
    for figure, drawn in ((masks, table[: 4 * period, :128]), (overlap, None)):
        ax = figure.draw(finished(tmp_path / "runs")).figure.axes[0]
        assert f"repeats every {period} tasks" in ax.get_title()
        assert ax.get_ylim() == (4 * period, 0)
        picture = ax.images[0].get_array()
        assert drawn is None or (picture[:: len(picture) // len(drawn)][:, ::7] == drawn).all()
    (png,) = (path for path in written if path.name == "masks.png")
    colours = imread(png)[..., :3].reshape(-1, 3)
    ours = [to_rgb(colour) for colour in ("#440154", "#FDE725")]
    yellow, purple = (np.abs(colours - colour).max(1) < 0.02 for colour in reversed(ours))
    assert yellow.sum() / (yellow.sum() + purple.sum()) == pytest.approx(1 / period, abs=0.05)
    neither = ~(yellow | purple) & (np.ptp(colours, axis=1) > 0.2)  # edges between them
    assert neither.mean() < 0.2 * (yellow | purple).mean()


def test_the_last_task_is_on_the_axis_of_tasks(tmp_path):
    diffusion = {"schedule": "cosine", "T": 400}
    for i, (router, args) in enumerate(FOUR):
        make_run(tmp_path / f"{i}", router, args, diffusion=diffusion)
    runs = finished(tmp_path)
    for figure in (masks, overlap):
        ax = figure.draw(runs).figure.axes[0]
        assert 400 in ax.get_yticks() and max(ax.get_ylim()) == 400
    assert 400 in dedicated.draw(runs).figure.axes[0].get_xticks()


@pytest.mark.parametrize("figure, name", [(cka, "unbiased"), (affinity, "affinity")])
def test_pairs_of_tasks_have_a_tick_at_t_and_cosines_a_centre(figure, name, tmp_path, monkeypatch):
    make_sweep(tmp_path)
    runs = finished(tmp_path)
    t = np.arange(50) * 20
    own = {"t": t, "blocks": np.array(["block 1"]), "images": np.array(8)}
    own |= {"log_snr": np.linspace(9, -9, 1000), "exact": np.array(True), "error": np.zeros(2)}
    value = np.full((1, 50, 50) if figure is cka else (50, 50), -0.5)
    monkeypatch.setattr(
        figure, "measured", lambda *_: ({r.path: own | {name: value} for r in runs}, [])
    )
    monkeypatch.setattr(figure, "to_measure", lambda r: (analysis.figures.samples.settings(r), []))
    ax = next(ax for ax in figure.draw(runs).figure.axes if ax.get_visible())
    assert 1000 in ax.get_yticks() and 1000 in ax.get_xticks()
    if figure is affinity:
        norm = ax.collections[0].norm
        assert norm(0.0) == 0.5 and norm(1.0) == 1


def test_greys_do_not_set_the_axes_of_tasks(tmp_path):
    make_sweep(tmp_path, GRID)
    make_run(tmp_path / "wild", "ERCDT", {"clusters": 8}, score=99.0)
    (run,) = find_runs([tmp_path / "wild"])
    run.append_metrics({"step": 1300} | dict.fromkeys(EIGHTHS, 50.0))
    drawing = tasks.draw(finished(tmp_path))
    wild = drawing.numbers[drawing.numbers.router == "ERCDT"]
    assert not wild.coloured.any() and (wild.percent > 1000).all()
    assert all(max(map(abs, ax.get_ylim())) < 100 for ax in drawing.figure.axes)


def test_more_bands_than_can_be_told_apart_are_not_drawn(tmp_path):
    for count in (4, 8):
        points = [("DTR", {"alpha": 1.0 + i, "beta": 0.8}) for i in range(count)]
        runs = finished(make_sweep(tmp_path / str(count), points, (0, 1, 2)))
        ax = convergence.draw(runs).figure.axes[0]
        assert len(ax.collections) == (count if count <= convergence.BANDS else 0)
        looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in ax.lines}
        assert len(looks) == count


def test_long_names_of_rows_leave_room_for_samples(tmp_path):
    for name in ("a", "b"):
        run = make_run(tmp_path / name, "DTR", {"alpha": 4.0, "beta": 0.8, "text": name * 300})
    assert run.path.is_dir()
    figure = samples.draw(finished(tmp_path)).figure
    FigureCanvasAgg(figure)
    with warnings.catch_warnings(action="error"):
        styled(figure.draw_without_rendering)()
    assert figure.axes[0].get_position().width > 0.3
    assert fonts.short("日本語の名前", 6) == "日本…"


def test_a_router_of_ones_own_has_a_look_that_no_other_of_the_figure_has():
    assert line_style("Mine") == line_style("Mine")
    looks = lines(["NoRouting", "RTR", "DTR", "Switch", "Mine", "Yours", "my.Third"])
    assert len({(look["color"], look["marker"]) for look in looks}) == len(looks)
