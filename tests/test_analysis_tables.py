"""Tables, the command line and damaged directories, from synthetic run directories."""

import ast
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import analysis
from analysis import ASKED, NAMES, draw_all
from analysis.__main__ import main
from analysis.runs import read
from analysis.statistics import t_interval
from analysis.tables import console_table, latex, markdown, over_seeds, table, write_tables
from dtr_lightning.run import Run, find_runs
from tests.synthetic_runs import FOUR, diverge, make_run, make_sweep, prune, score_of


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
    assert [Run(path).results["score"] for path in frame.run] == frame.score.tolist()


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


def test_thousands_of_runs_are_tabulated_in_seconds(tmp_path):
    config = make_run(tmp_path / "first", "DTR", {"alpha": 1.0, "beta": 0.8}).config
    runs = find_runs([tmp_path])
    results = runs[0].results
    for i in range(1, 500):
        run = Run(tmp_path / str(i))
        router = {"class_path": "DTR", "init_args": {"alpha": float(i // 5), "beta": 0.8}}
        run.path.mkdir()
        run.config_file.write_text(json.dumps(config | {"seed": i % 5, "router": router}))
        run.results_file.write_text(json.dumps(results))
        run.metrics_file.write_text("no record: tables do not read it")
    start = time.process_time()
    frame = table(find_runs([tmp_path]))
    write_tables(frame, tmp_path)
    assert len(frame) == 500 and time.process_time() - start < 3


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


def test_nothing_finished_still_draws_what_configs_tell(alone, tmp_path):
    alone.results_file.unlink()
    written, left_out = draw_all([alone.path.parent], out=tmp_path / "out")
    from_configs = {"masks", "overlap", "dedicated"}
    assert {p.stem for p in written} == from_configs
    asked = [figure.NAME for figure in ASKED]
    others = [n for n in NAMES if n not in (*from_configs, *asked, "paper_tables", "tables")]
    told = ["runs", *others, ", ".join(asked), "paper_tables", "tables"]
    assert [name for name, _ in left_out] == told


@pytest.mark.parametrize("what", ["no such directory", "no runs", "unknown name", "file as out"])
def test_a_mistake_is_one_line_and_exit_2(what, alone, tmp_path, capsys):
    runs = str(alone.path.parent)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    arguments, told = {
        "no such directory": ([str(tmp_path / "nowhere")], "nowhere is not a directory"),
        "no runs": ([str(tmp_path / "empty")], "no runs in"),
        "unknown name": ([runs, "--only", "mask"], f"valid: {', '.join(NAMES)}"),
        "file as out": ([runs, "--only", "tables", "--out", str(tmp_path / "file")], "written"),
    }[what]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err and err.count("\n") == 1


LIGHT = ("errors", "masks", "naming", "notes", "run", "commands", "tasks")


def test_what_needs_no_network_reads_run_directories_only():
    allowed = {f"dtr_lightning.{name}" for name in LIGHT}
    # these make masks again, load networks or look at training images
    loading = (
        "affinity animation cka classes film gates guidance mask_tables neighbours probe transfer"
    )
    for file in Path(analysis.__file__).parent.glob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text()))
        modules = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        ours = {m for m in modules if m.startswith("dtr_lightning.")}
        assert ours <= allowed or file.stem in loading.split(), file
        assert not any(m.startswith(("optuna", "sweeps")) for m in modules)
