"""Means over seeds, paired differences and p-values in tables, from synthetic run directories."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.read.runs import read
from analysis.read.statistics import t_interval
from analysis.tables.tables import latex, markdown, over_seeds, table
from dtr_lightning.rundir.run import find_runs
from tests.analysis.read_back import cells, text_of
from tests.analysis.synthetic_runs import (
    FOUR,
    diverge,
    facts,
    make_run,
    make_sweep,
    noisy,
    prune,
    score_of,
)


def test_seeds_become_means_with_their_t_interval(tmp_path):
    frame = table(find_runs([make_sweep(tmp_path, FOUR, seeds=(0, 1, 2))]))
    means = over_seeds(frame)
    assert len(frame) == 12 and len(means) == 4 and set(means.seed) == {"0, 1, 2"}
    single = [score_of("NoRouting", {}, seed) for seed in range(3)]
    assert means.score[0] == pytest.approx(np.mean(single)) and means.seeds[0] == 3
    half = 4.302653 * np.std(single, ddof=1) / 3**0.5
    assert means.high[0] - means.score[0] == pytest.approx(half, rel=1e-6)
    text = markdown(frame)
    assert f"{np.mean(single):.2f} ± {half:.2f}" in text
    assert "95 % t interval over seeds 0-2 (n = 3)" in text


def test_settings_are_compared_with_their_no_routing_at_equal_seeds(tmp_path):
    means = over_seeds(noisy(tmp_path, 6, [-0.5, 0.2])).set_index("alpha")
    noise = [0.01 * math.sin(13 * seed + 1) for seed in range(6)]
    low, high = t_interval(noise)
    dtr = means.loc[1.0]
    assert dtr.difference == pytest.approx(-0.5 + np.mean(noise)) and dtr.pairs == 6
    bounds = (dtr.difference_low, dtr.difference_high)
    assert bounds == pytest.approx((-0.5 + low, -0.5 + high))
    assert (dtr.p, dtr.p_holm) == (2 / 64, 4 / 64)
    baseline = means[means.router == "NoRouting"].iloc[0]
    assert dtr.baseline == baseline.setting and baseline.baseline == ""
    assert math.isnan(baseline.difference) and math.isnan(baseline.p_holm) and baseline.pairs == 0


def test_every_loss_weight_has_its_own_baseline(tmp_path):
    weights = ("Constant", "MinSNR", "P2")
    for i, weight in enumerate(weights):
        for router in ("NoRouting", "DTR")[i == 2 :]:  # P2 has no baseline
            for seed in (0, 1):
                score = 10.0 * (i + 1) + seed + (router == "DTR") * (i + 1)
                choice = {"class_path": weight, "init_args": {}}
                path = tmp_path / f"{weight}-{router}-{seed}"
                make_run(path, router, {}, seed, score, loss_weight=choice)
    frame = table(find_runs([tmp_path]))
    means = over_seeds(frame)
    gaps = means[means.router == "DTR"].set_index("loss_weight").difference
    assert gaps["Constant"] == 1 and gaps["MinSNR"] == 2 and math.isnan(gaps["P2"])
    assert sorted(cells(markdown(frame), "Δ")) == ["+1.00 ± 0.00", "+2.00 ± 0.00", "-", "-", "-"]


@pytest.mark.parametrize("seeds, shifts, reach, ps", [
    (3, [-1, -2], "no p: in the exact sign-flip test 3 seeds cannot reach 5 % (least p 0.25)", []),
    (6, [-1], "Holm over 1 comparison; *: below 5 %", ["0.031*", "-"]),
    (6, [-1, -2], "; 6 seeds cannot reach 5 % after Holm (least p 0.062)", ["0.062", "0.062", "-"]),
    (8, [-1, -2], "Holm over 2 comparisons; *: below 5 %", ["0.016*", "0.016*", "-"]),
])  # fmt: skip
def test_the_table_says_what_its_test_can_reach(seeds, shifts, reach, ps, tmp_path):
    frame = noisy(tmp_path, seeds, shifts)
    text = markdown(frame)
    assert reach in text and cells(text, "p") == ps
    assert reach in " ".join(text_of(frame).split()) and reach in latex(frame).replace(r"\%", "%")
    assert ("*" in "".join(cells(text, "p"))) == ("*: below 5 %" in text)


def test_holm_counts_only_what_can_be_tested(tmp_path):
    frame = noisy(tmp_path, 6, [-1])
    for i in range(5):
        for seed in range(3):
            make_run(tmp_path / f"few{i}-{seed}", "DTR", {"alpha": 10.0 + i}, seed, 3.0 + seed)
    more = table(find_runs([tmp_path]))
    tested = [over_seeds(f).set_index("alpha").p_holm[1.0] for f in (frame, more)]
    assert tested == [2 / 64, 2 / 64]
    means = over_seeds(more)
    assert means.p_holm.notna().sum() == 1 and (means.p.notna()).sum() == 6
    text = markdown(more)
    assert "Holm over 1 comparison of at least 6 seeds; 3 seeds cannot reach 5 %" in text
    assert sorted(cells(text, "p")) == ["-"] * 6 + ["0.031*"]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("four"))


def test_one_seed_has_neither_difference_nor_p(four):
    frame = table(find_runs([four]))
    head = markdown(frame).splitlines()[2]
    assert "Δ" not in head and "| p " not in head and "±" not in markdown(frame)
    assert "seed" not in head and "; seed 0" in markdown(frame)


def test_only_common_seeds_are_compared(tmp_path):
    for seed in range(3):
        make_run(tmp_path / f"a{seed}", seed=seed, score=5.0 + seed)
    for seed in range(1, 5):
        make_run(tmp_path / f"b{seed}", "RTR", {"beta": 0.8}, seed, score=6.0 + 2 * seed)
    frame = table(find_runs([tmp_path]))
    routed = over_seeds(frame).set_index("router").loc["RTR"]
    assert (routed.pairs, routed.seeds, routed.difference) == (2, 4, 2.5)
    assert cells(markdown(frame), "seeds") == ["0-2", "1-4"]


def test_pairs_are_shown_where_they_are_not_all_seeds(tmp_path):
    """Means of 1.30 and 1.69 stand beside a difference of +0.10: it is that of the common seeds."""
    for seed, score in enumerate((1.0, 1.2, 1.7)):
        make_run(tmp_path / f"a{seed}", seed=seed, score=score)
    for seed, score in ((0, 1.1), (1, 1.3), (5, 2.67)):
        make_run(tmp_path / f"b{seed}", "RTR", {"beta": 0.8}, seed, score)
    frame = table(find_runs([tmp_path]))
    assert [cell[:4] for cell in cells(markdown(frame), "score")] == ["1.30", "1.69"]
    assert cells(markdown(frame), "Δ") == ["-", "+0.10 ± 0.00 (2 pairs)"]
    assert "(2 pairs)" in text_of(frame) and "(2 pairs)" in latex(frame)
    make_run(tmp_path / "a5", seed=5, score=2.0)
    frame = table(find_runs([tmp_path]))
    assert "(3 pairs)" in cells(markdown(frame), "Δ")[1]  # a seed of the baseline has no partner
    make_run(tmp_path / "b2", "RTR", {"beta": 0.8}, 2, 1.8)
    assert "pairs)" not in markdown(table(find_runs([tmp_path])))


def test_a_diverged_seed_is_named_and_not_averaged(tmp_path):
    for seed, score in enumerate((20.0, 22.0, math.nan)):
        make_run(tmp_path / str(seed), seed=seed, score=score)
    frame = table(find_runs([tmp_path]))
    assert over_seeds(frame).score.item() == 21.0
    assert "21.00 ± 12.71 (1 diverged)" in markdown(frame)


def test_pruned_and_diverged_runs_are_told_last_and_enter_nothing(tmp_path):
    root = make_sweep(tmp_path / "runs", FOUR, seeds=(0, 1))
    sound = over_seeds(table(find_runs([root])))
    bad = {"alpha": 8.0, "beta": 0.8}
    diverge(make_run(root / "bad", "DTR", bad), 30)
    best = {"alpha": 4.0, "beta": 0.8}
    prune(make_run(root / "cut", "DTR", best, seed=2), 400, 3.21)
    prune(make_run(root / "cut_early", "DTR", bad, seed=1), 200, None)
    reading = read(find_runs([root]))
    assert sorted(run.path.name for run in reading.pruned) == ["cut", "cut_early"]
    finished, skipped = reading
    assert len(finished) == 9 and skipped == []
    frame = table(find_runs([root]))
    pd.testing.assert_frame_equal(table([*finished, *reading.pruned]), frame)
    means = over_seeds(frame)
    columns = ["router", "score", "low", "difference", "p_holm", "seeds"]
    pd.testing.assert_frame_equal(means[columns][:4], sound[columns])
    expected = ["diverged at 30", "pruned at 400: 3.21", "pruned at 200"]
    assert cells(markdown(frame), "score")[4:] == expected
    assert frame.status.tolist() == ["done"] * 8 + ["diverged", "pruned", "pruned"]
    assert all(cell in text_of(frame, 120) for cell in expected)
    assert "fd_digits_v1, N = 1,797, lower" in markdown(frame) and len(latex(frame)) > 0


def test_a_table_of_nothing_but_pruned_runs(tmp_path):
    prune(make_run(tmp_path / "cut"), 400, 3.21)
    frame = table(find_runs([tmp_path]))
    assert cells(markdown(frame), "score") == ["pruned at 400: 3.21"]
    assert "pruned at 400: 3.21" in text_of(frame)


def test_settings_that_differ_elsewhere_are_not_averaged(tmp_path):
    make_run(tmp_path / "a", steps=1200)
    make_run(tmp_path / "b", steps=2400)
    make_run(tmp_path / "c", loss_weight={"class_path": "MinSNR", "init_args": {"gamma": 5.0}})
    means = over_seeds(table(find_runs([tmp_path])))
    assert (means.seeds == 1).all() and set(means.loss_weight) == {"Constant", "MinSNR"}
    assert sum("max_steps=2400" in other for other in means.other) == 1


@pytest.mark.parametrize("who", ["DTR", "NoRouting"])
@pytest.mark.parametrize("wrong", [
    {"accuracy": 0.1, "chance": 0.1}, {"floor": 0.1}, {"copies": 0.3}, {"smoke": True},
    {"extractor_random": True},
])  # fmt: skip
def test_scores_that_mean_nothing_have_no_p_and_are_never_the_best(who, wrong, tmp_path):
    noisy(tmp_path, 6, [-1])
    for run in find_runs([tmp_path]):
        name = run.config["router"]["class_path"]
        facts(run, **({"floor": 1.0} | (wrong if name.endswith(who) else {})))
    frame = table(find_runs([tmp_path]))
    assert over_seeds(frame)[["p", "p_holm"]].isna().all(axis=None)
    text, tex = markdown(frame), latex(frame)
    assert not cells(text, "p") and "sign-flip" not in text and r"\textbf" not in tex
    if "smoke" not in wrong:
        assert len(cells(text, "Δ")) == 2 and text.count("(1 of 2 rows)") == 1
