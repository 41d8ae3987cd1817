"""Tables, the command line and damaged directories, from synthetic run directories."""

import ast
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import analysis
from analysis import NAMES, draw_all
from analysis.__main__ import main
from analysis.runs import read
from analysis.tables import console_table, latex, markdown, over_seeds, table, write_tables
from dtr_lightning.run import Run, find_runs
from tests.synthetic_runs import FOUR, make_run, make_sweep, score_of


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


def test_seeds_become_means_with_their_deviation(tmp_path):
    frame = table(find_runs([make_sweep(tmp_path, FOUR, seeds=(0, 1, 2))]))
    means = over_seeds(frame)
    assert len(frame) == 12 and len(means) == 4 and set(means.seed) == {"0, 1, 2"}
    single = [score_of("NoRouting", {}, seed) for seed in range(3)]
    assert means.score[0] == pytest.approx(np.mean(single))
    assert means["std"][0] == pytest.approx(np.std(single, ddof=1))
    assert f"{np.mean(single):.2f} ± {np.std(single, ddof=1):.2f}" in markdown(frame)


def test_a_diverged_seed_is_named_and_not_averaged(tmp_path):
    for seed, score in enumerate((20.0, 22.0, math.nan)):
        make_run(tmp_path / str(seed), seed=seed, score=score)
    frame = table(find_runs([tmp_path]))
    assert over_seeds(frame).score.item() == 21.0
    assert "21.00 ± 1.41 (1 diverged)" in markdown(frame)


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


def test_console_table_fits_eighty_columns(four):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(console_table(table(find_runs([four]))))
    text = console.export_text()
    assert "R-TR" in text and "…" not in text and "fd_digits_v1" in text


def test_results_csv_holds_the_frame(four, tmp_path):
    frame = table(find_runs([four]))
    assert [p.name for p in write_tables(frame, tmp_path)] == [
        "results.csv",
        "table.md",
        "table.tex",
    ]
    stored = pd.read_csv(tmp_path / "results.csv", dtype={"other": str}).fillna({"other": ""})
    pd.testing.assert_frame_equal(stored, frame, check_dtype=False)


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


def test_nothing_finished_still_draws_masks(alone, tmp_path):
    alone.results_file.unlink()
    written, left_out = draw_all([alone.path.parent], out=tmp_path / "out")
    assert {p.stem for p in written} == {"masks"}
    assert [name for name, _ in left_out] == ["runs", *(name for name in NAMES if name != "masks")]


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


def test_analysis_reads_run_directories_only():
    allowed = {
        "dtr_lightning.errors",
        "dtr_lightning.masks",
        "dtr_lightning.naming",
        "dtr_lightning.run",
        "dtr_lightning",
    }
    for file in Path(analysis.__file__).parent.glob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text()))
        modules = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        ours = {m for m in modules if m.startswith("dtr_lightning")}
        assert ours <= allowed and not any(m.startswith(("optuna", "sweeps")) for m in modules)
