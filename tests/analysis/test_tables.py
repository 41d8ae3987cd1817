"""Which runs are in a table, and what the command says of others and of mistakes."""

import json

import pandas as pd
import pytest

from analysis import draw_all
from analysis.__main__ import main
from analysis.catalog import PROBES, valid_names
from analysis.read.runs import read
from analysis.tables.tables import latex, markdown, table, write_tables
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis.read_back import spaced, text_of
from tests.analysis.synthetic_runs import (
    FOUR,
    facts,
    make_run,
    make_sweep,
    prune,
    score_of,
)


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


def test_a_run_in_a_run_is_a_part_of_it_unless_it_is_named(alone):
    inner = make_run(alone.path / "experts" / "0-500")
    assert [run.path for run in find_runs([alone.path.parent])] == [alone.path]
    assert [run.path for run in find_runs([inner.path, alone.path])] == [alone.path]
    assert [run.path for run in find_runs([inner.path.parent])] == [inner.path]


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
    names = ["runs", *others, ", ".join(PROBES), "paper_tables", "tables"]
    assert [name for name, _ in left_out] == names


@pytest.mark.parametrize("what", ["no such directory", "no runs", "unknown name", "file as out"])
def test_a_mistake_is_one_line_and_exit_2(what, alone, tmp_path, capsys):
    runs = str(alone.path.parent)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    arguments, message = {
        "no such directory": ([str(tmp_path / "nowhere")], "nowhere is not a directory"),
        "no runs": ([str(tmp_path / "empty")], "no runs in"),
        "unknown name": ([runs, "--only", "mask"], f"valid: {', '.join(valid_names())}"),
        "file as out": ([runs, "--only", "tables", "--out", str(tmp_path / "file")], "written"),
    }[what]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
