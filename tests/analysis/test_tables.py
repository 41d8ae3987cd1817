"""Tables, the command line and damaged directories, from synthetic run directories."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis import draw_all
from analysis.__main__ import main
from analysis.catalog import PROBES, valid_names
from analysis.read.runs import read
from analysis.read.statistics import t_interval
from analysis.tables.tables import console_table, latex, markdown, over_seeds, table, write_tables
from analysis.tables.text import Text
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis.synthetic_runs import FOUR, diverge, make_run, make_sweep, prune, score_of


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("four"))


@pytest.fixture
def alone(tmp_path):
    return make_run(tmp_path / "runs" / "alone", "DTR", {"alpha": 4.0, "beta": 0.8})


def test_table_has_a_row_per_run_sorted_by_score(four):
    frame = table(find_runs([four]))
    assert frame.score.is_monotonic_increasing and len(frame) == 4
    expected = sorted(score_of(router, args, 0) for router, args in FOUR)
    assert frame.score.tolist() == pytest.approx(expected)
    assert [Run(four / path).results["score"] for path in frame.run] == frame.score.tolist()


def text_of(frame, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(console_table(frame))
    return console.export_text()


def cells(text, column):
    """Returns the cells of a column of a Markdown table, from the first row on."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    head = [cell.strip() for cell in rows[0]]
    return [row[head.index(column)].strip() for row in rows[2:]] if column in head else []


def spaced(text):
    """Returns a text without its line breaks."""
    return " ".join(text.split())


def noisy(root, seeds, shifts):
    """Runs of a router per shift, in score `shift` from no routing, and a noise of their own."""
    points = [("NoRouting", {}, 0.0)]
    points += [("DTR", {"alpha": float(i + 1), "beta": 0.8}, s) for i, s in enumerate(shifts)]
    for i, (router, args, shift) in enumerate(points):
        for seed in range(seeds):
            score = 5 + math.cos(7 * seed) + shift + 0.01 * math.sin(13 * seed + i) * (i > 0)
            make_run(root / f"{i}-{seed}", router, args, seed, score)
    return table(find_runs([root]))


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
    found = means[means.router == "DTR"].set_index("loss_weight").difference
    assert found["Constant"] == 1 and found["MinSNR"] == 2 and math.isnan(found["P2"])
    assert sorted(cells(markdown(frame), "Δ")) == ["+1.00 ± 0.00", "+2.00 ± 0.00", "-", "-", "-"]


@pytest.mark.parametrize("seeds, shifts, told, ps", [
    (3, [-1, -2], "sign-flip test; 3 seeds cannot reach 5 % (least p 0.25)", []),
    (6, [-1], "Holm over 1 comparison; *: below 5 %", ["0.031*", "-"]),
    (6, [-1, -2], "; 6 seeds cannot reach 5 % after Holm (least p 0.062)", ["0.062", "0.062", "-"]),
    (8, [-1, -2], "Holm over 2 comparisons; *: below 5 %", ["0.016*", "0.016*", "-"]),
])  # fmt: skip
def test_the_table_says_what_its_test_can_reach(seeds, shifts, told, ps, tmp_path):
    frame = noisy(tmp_path, seeds, shifts)
    text = markdown(frame)
    assert told in text and cells(text, "p") == ps
    assert told in " ".join(text_of(frame).split()) and told in latex(frame).replace(r"\%", "%")
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


@pytest.mark.parametrize("scale, digits", [(10, 2), (1, 2), (0.4, 3), (0.08, 3), (0.04, 4)])
def test_scores_have_the_decimals_that_tell_the_smallest_apart(scale, digits, tmp_path):
    for i, router in enumerate(("NoRouting", "DTR")):
        for seed in range(2):
            make_run(tmp_path / f"{router}{seed}", router, {}, seed, scale * (1 + i / 50 + seed))
    frame = table(find_runs([tmp_path]))
    score, difference = (cells(markdown(frame), name) for name in ("score", "Δ"))
    means = [f"{1.5 * scale:.{digits}f}", f"{1.52 * scale:.{digits}f}"]
    assert [cell.split(" ")[0] for cell in score] == means
    assert {len(part.split(".")[1]) for cell in score for part in cell.split(" ± ")} == {digits}
    assert difference == ["-", f"+{scale / 50:.{digits}f} ± {0:.{digits}f}"]
    assert score[0] in text_of(frame) and score[0].split(" ")[0] in latex(frame)


def test_the_table_tells_how_many_channels_two_tasks_share(tmp_path):
    for seed, overlap in enumerate((0.7, 0.8)):
        run = make_run(tmp_path / f"core-{seed}", "SharedCore", {"alpha": 4.0}, seed)
        run.write_results(run.results | {"overlap": overlap})
    make_run(tmp_path / "plain", score=99)
    frame = table(find_runs([tmp_path]))
    assert over_seeds(frame).overlap[0] == pytest.approx(0.75)
    assert cells(markdown(frame), "overlap") == ["75.0%", "-"]
    assert "overlap: channels that two tasks share" in markdown(frame)


@pytest.mark.parametrize("score, floor, shown", [
    (1.25, 0.42, "0.42"), (1.25, 0.042, "0.042"), (1.25, 0.0042, "0.0042"), (0.41, 0.42, "0.420"),
])  # fmt: skip
def test_the_floor_is_as_precise_as_the_score(score, floor, shown, tmp_path):
    run = make_run(tmp_path / "one", score=score)
    run.write_results(run.results | {"floor": floor})
    text = markdown(table(find_runs([tmp_path])))
    assert f"floor {shown}: real images" in text and not cells(text, "floor")


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


def test_latex_escapes_what_is_special(tmp_path):
    make_run(tmp_path / "r", "My_Router", {"alpha": 4.0, "beta": 0.8})
    tex = latex(table(find_runs([tmp_path])))
    assert r"My\_Router" in tex and r"91.0\%" in tex and r"$\alpha$" in tex
    body = tex.split(r"\midrule")[1]
    assert "_" not in body.replace(r"\_", "") and "%" not in body.replace(r"\%", "")


def test_markdown_and_latex_rows_have_as_many_cells_as_the_heading(four):
    frame = table(find_runs([four]))
    rows = [line for line in markdown(frame).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4 and len({row.count("|") for row in rows}) == 1
    body = [line for line in latex(frame).splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + 4 and len({row.count("&") for row in body}) == 1


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_console_table_fits_eighty_columns(seeds, tmp_path):
    weight = {"class_path": "MinSNR", "init_args": {}}
    root = make_sweep(tmp_path, FOUR, seeds=range(seeds))
    frame = table(find_runs([root]))
    for seed in range(seeds):
        make_run(root / f"weighted{seed}", "DTR", {"alpha": 4.0, "beta": 0.8}, seed, lr=0.1)
        make_run(root / f"snr{seed}", seed=seed, loss_weight=weight)
    prune(make_run(root / "cut", "DTR", {"alpha": 8.0, "beta": 0.8}, seed=1), 400, 3.21)
    diverge(make_run(root / "bad", "DTR", {"alpha": 9.0, "beta": 0.8}), 30)
    for shown in (frame, table(find_runs([root]))):
        text = text_of(shown)
        assert "R-TR" in text and "…" not in text and "fd_digits_v1" in text
        head = text.split("no routing")[0].split()
        assert {"router", "alpha", "beta", "score"} < set(head)
        assert ("Δ" in head) == (seeds > 1) and ("p" in head) == (seeds == 6)
        assert "400: 3.21" in text or shown is frame


def test_console_table_keeps_its_numbers_whole_beside_much_text(tmp_path):
    weight = {"class_path": "MinSNR", "init_args": {}}
    for i, (router, args) in enumerate(FOUR):
        for seed in range(6):
            make_run(tmp_path / f"a{i}-{seed}", router, args, seed, steps=24000)
            make_run(tmp_path / f"b{i}-{seed}", router, args, seed, loss_weight=weight)
    frame = table(find_runs([tmp_path]))
    text = text_of(frame)
    assert "…" not in text and "0.188" in text and "38.36 ± 0.44" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def facts(run, **results):
    run.write_results(run.results | results)
    return run


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


def test_every_sentence_stands_once_below_the_table_and_its_rows_are_marked(tmp_path):
    noisy(tmp_path, 2, [-1, 70])
    for run in find_runs([tmp_path]):
        facts(run, floor=3.0, n=48, num_features=48, floor_n=360)
    frame = table(find_runs([tmp_path]))
    for text in map(spaced, (markdown(frame), text_of(frame), latex(frame))):
        assert text.count("All rows: 48 samples are fewer than the 48 features need") == 1
        assert text.count("The score is 20 times its floor or more") == 1
        assert text.count("(1 of 3 rows)") == 1
    assert cells(markdown(frame), "router") == ["DTR", "no routing", "DTR ¹"]
    assert "DTR $^1$ & 2" in latex(frame)
    assert frame.meaningless.sum() == 2 and frame.notes.str.startswith("48 samples").all()


def test_smoke_other_data_and_other_scores_have_tables_of_their_own(tmp_path):
    evaluation = {"n": 1797, "every_n": 512, "seed": 0}
    make_sweep(tmp_path / "real", seeds=(0, 1))
    five = {"class_path": "DDIM", "init_args": {"steps": 5}}
    make_run(tmp_path / "smoke", steps=30, sampler=five, score=1.0).update_meta(smoke=True)
    for name in ("cats", "dogs"):
        images = {"class_path": "ImageFolder", "init_args": {"root": f"/there/{name}", "size": 8}}
        make_run(tmp_path / name, data=images)
    make_run(tmp_path / "guided", evaluation=evaluation | {"guidance": 4.0})
    facts(make_run(tmp_path / "fewer", evaluation=evaluation | {"n": 99}), n=99)
    prune(make_run(tmp_path / "cut", "DTR", {"alpha": 9.0, "beta": 0.8}, score=1.0), 400, 3.2)
    frame = table(find_runs([tmp_path]))
    labels = frame.group.value_counts(sort=False)
    assert labels.tolist() == [9, 1, 1, 1, 1, 1]  # the pruned run belongs to the first
    assert labels.index[0] == "fd_digits_v1, N = 1,797"
    assert labels.index[-1] == "fd_digits_v1, N = 1,797, smoke"
    assert set(labels.index[1:-1]) == {
        "ImageFolder cats, fd_digits_v1, N = 1,797",
        "ImageFolder dogs, fd_digits_v1, N = 1,797",
        "fd_digits_v1, N = 1,797, guidance=4.0",
        "fd_digits_v1, N = 99",
    }
    for text in (markdown(frame), text_of(frame)):
        assert all(label in spaced(text) for label in labels.index)
        assert spaced(text).count("its numbers mean nothing") == 1
    assert markdown(frame).count("| router") == latex(frame).count(r"\begin{table}") == 6
    assert not frame.other.any()  # what all rows of a table share is in none of its columns


def test_figures_are_of_runs_that_may_be_compared(tmp_path):
    make_sweep(tmp_path / "runs")
    smokes = []
    for i, (router, args) in enumerate(FOUR):
        run = make_run(tmp_path / "runs" / f"smoke{i}", router, args, steps=30, score=900.0)
        run.update_meta(smoke=True)
        smokes.append(run.path)
    _, left_out = draw_all([tmp_path / "runs"], tmp_path / "out", only=["ablation"])
    assert pd.read_csv(tmp_path / "out" / "ablation.csv").score.max() < 100
    assert "fd_digits_v1, N = 1,797, smoke: smoke0 and 3 more" in dict(left_out)["runs"]
    draw_all(smokes, tmp_path / "smoke", only=["ablation"])
    assert pd.read_csv(tmp_path / "smoke" / "ablation.csv").score.max() == 900


def test_latex_is_a_table_of_a_paper(tmp_path):
    noisy(tmp_path, 6, [-0.5, 0.0, 2.0])
    for run in find_runs([tmp_path]):
        far = run.config["router"]["init_args"].get("alpha") == 3
        loss = 0.1 + run.results["score"] / 100
        facts(run, floor=0.42, accuracy=0.9 if far else 0.95, loss=loss)
    tex = latex(table(find_runs([tmp_path])))
    head, *rows = [line.split(" & ") for line in tex.splitlines() if line.endswith(r"\\")]
    assert head[:6] == ["router", r"$\alpha$", r"$\beta$", "score", r"$\Delta$", "p"]
    assert not {"floor", "seconds", "run", "seeds"} & set(head)

    def bold(name):
        return [row[head.index(name)].startswith(r"\textbf{") for row in rows]

    assert bold("score") == [True, True, True, False]  # intervals that overlap that of the lowest
    assert bold("accuracy") == [True, True, True, False]  # the higher is the better
    assert bold(r"loss \\") == [True, False, False, False]
    assert not any(bold("p") + bold(r"$\Delta$") + bold("copies"))
    told = tex.split(r"\caption{")[1].split("\n")[0]
    assert r"fd\_digits\_v1, N = 1,797" in told and "exact sign-flip test, Holm over 3" in told
    assert "floor 0.42" in told and "seeds 0-5 (n = 6)" in told
    assert tex.isascii() and r"\toprule" in tex and tex.count(r"\begin") == tex.count(r"\end")


ODD = r"[x] *y a&b%c$d#e_f{g}h~i^j\k <b>| 猫 été Łß -5 --x \input{x} ü".split()


def test_no_text_breaks_a_table():
    text = Text({"row": ODD, "$_^": ODD}, ["row"], "".join(ODD), ODD, best={"$_^": [0, 1]})
    assert text.latex().isascii() and r"{[}x]" in text.latex() and r"\'{e}t\'{e}" in text.latex()
    rows = [line for line in text.markdown().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    broken = Text({"a\nb": ["c\nd"]}, ["a\nb"], "C")
    assert "| c d |" in broken.markdown() and "a b" in broken.latex()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdfLaTeX here")
def test_pdflatex_reads_the_tables(tmp_path):
    make_sweep(tmp_path / "runs", seeds=(0, 1))
    odd = Text({"row": ODD, "$_^": ODD}, ["row"], "".join(ODD), ODD, best={"$_^": [0, 1]}).latex()
    start = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    body = [start, latex(table(find_runs([tmp_path]))), odd, r"\end{document}"]
    (tmp_path / "t.tex").write_text("\n".join(body), "ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_run_in_a_run_is_a_part_of_it_unless_it_is_named(alone):
    inner = make_run(alone.path / "experts" / "0-500")
    assert [run.path for run in find_runs([alone.path.parent])] == [alone.path]
    assert [run.path for run in find_runs([inner.path, alone.path])] == [alone.path]
    assert [run.path for run in find_runs([inner.path.parent])] == [inner.path]


def test_csvs_hold_the_frame_and_the_table_unrounded(tmp_path):
    frame = noisy(tmp_path / "runs", 3, [-0.5, 0.2])
    names = ["results.csv", "table.csv", "table.md", "table.tex"]
    assert [p.name for p in write_tables(frame, tmp_path)] == names
    text = dict.fromkeys(["other", "seed", "ended_at", "baseline", "setting", "data", "notes"], str)
    for name, expected in (("results.csv", frame), ("table.csv", over_seeds(frame))):
        kept = {key: kind for key, kind in text.items() if expected[key].dtype != float}
        kept.pop("seed" if name == "results.csv" else "", None)
        stored = pd.read_csv(tmp_path / name, dtype=kept)
        stored = stored.fillna(dict.fromkeys(kept, ""))
        pd.testing.assert_frame_equal(stored, expected, check_dtype=False)
    runs = over_seeds(frame).run
    assert sorted(", ".join(runs).split(", ")) == sorted(Path(path).name for path in frame.run)


def test_tables_of_many_runs_read_no_records(tmp_path):
    config = make_run(tmp_path / "first", "DTR", {"alpha": 1.0, "beta": 0.8}).config
    runs = find_runs([tmp_path])
    results = runs[0].results
    for i in range(1, 100):
        run = Run(tmp_path / str(i))
        router = {"class_path": "DTR", "init_args": {"alpha": float(i // 5), "beta": 0.8}}
        run.path.mkdir()
        run.config_file.write_text(json.dumps(config | {"seed": i % 5, "router": router}))
        run.results_file.write_text(json.dumps(results))
        run.metrics_file.write_text("no record")
    frame = table(find_runs([tmp_path]))
    write_tables(frame, tmp_path)
    assert len(frame) == 100


def test_unfinished_runs_are_counted_and_damaged_ones_named(alone, tmp_path, capsys):
    root = alone.path.parent
    for name, status in (("u1", "running"), ("u2", "failed"), ("u3", "failed")):
        make_run(root / name).results_file.unlink()
        Run(root / name).update_meta(status=status)
    make_run(root / "torn").results_file.write_text('{"score": 1')
    make_run(root / "empty").results_file.write_text("{}")
    make_run(root / "noise").metrics_file.write_text("noise\n")
    make_run(root / "yaml").config_file.write_text("a: [")
    reading = read(find_runs([root]))
    assert [run.path.name for run in reading.finished] == ["alone"]
    assert reading.skipped[-1] == "skipped: 3 unfinished (2 failed, 1 running)"
    for name in ("torn", "empty", "noise", "yaml"):
        assert sum(f"/{name}/" in line and "\n" not in line for line in reading.skipped) == 1
    assert main([str(root), "--only", "tables"]) == 0
    assert "3 unfinished" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_finished_still_draws_what_configs_tell(alone, tmp_path):
    alone.results_file.unlink()
    written, left_out = draw_all([alone.path.parent], out=tmp_path / "out")
    from_configs = {"masks", "overlap", "dedicated"}
    assert {p.stem for p in written} == from_configs
    others = [
        n for n in valid_names() if n not in (*from_configs, *PROBES, "paper_tables", "tables")
    ]
    told = ["runs", *others, ", ".join(PROBES), "paper_tables", "tables"]
    assert [name for name, _ in left_out] == told


@pytest.mark.parametrize("what", ["no such directory", "no runs", "unknown name", "file as out"])
def test_a_mistake_is_one_line_and_exit_2(what, alone, tmp_path, capsys):
    runs = str(alone.path.parent)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    arguments, told = {
        "no such directory": ([str(tmp_path / "nowhere")], "nowhere is not a directory"),
        "no runs": ([str(tmp_path / "empty")], "no runs in"),
        "unknown name": ([runs, "--only", "mask"], f"valid: {', '.join(valid_names())}"),
        "file as out": ([runs, "--only", "tables", "--out", str(tmp_path / "file")], "written"),
    }[what]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err and err.count("\n") == 1
