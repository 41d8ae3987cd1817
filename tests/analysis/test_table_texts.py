"""How tables are written: Markdown, LaTeX, the terminal and CSV."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analysis.tables.tables import latex, markdown, over_seeds, table, write_tables
from analysis.tables.text import Text
from dtr_lightning.rundir.run import find_runs
from tests.analysis.read_back import cells, spaced, text_of
from tests.analysis.synthetic_runs import FOUR, diverge, facts, make_run, make_sweep, noisy, prune

ODD = r"[x] *y a&b%c$d#e_f{g}h~i^j\k <b>| 猫 été Łß -5 --x \input{x} ü".split()


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


def test_the_table_tells_how_many_channels_two_tasks_share(tmp_path):
    for seed, overlap in enumerate((0.7, 0.8)):
        run = make_run(tmp_path / f"core-{seed}", "SharedCore", {"alpha": 4.0}, seed)
        run.write_results(run.results | {"overlap": overlap})
    make_run(tmp_path / "plain", score=99)
    frame = table(find_runs([tmp_path]))
    assert over_seeds(frame).overlap[0] == pytest.approx(0.75)
    assert cells(markdown(frame), "overlap") == ["75.0%", "-"]
    assert "overlap: channels that two tasks share" in markdown(frame)
    assert "overlap" in spaced(text_of(frame))
    for name in ("accuracy", "copies", "loss", "seconds"):  # too wide for a terminal
        frame[name] = 0.5
    wide = frame.assign(other="patch_size=4 hidden_size=64", loss_weight=["UW", "P2", "MinSNR"])
    for name in ("overlap", "floor"):
        wide[name] = [0.5, 0.6, 0.7]
    text = text_of(wide)
    assert "overlap" not in text and "floor" not in text
    assert "overlap: " in markdown(wide) and "floor: real images" in markdown(wide)


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


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("four"))


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


def test_latex_escapes_what_is_special(tmp_path):
    make_run(tmp_path / "r", "My_Router", {"alpha": 4.0, "beta": 0.8})
    tex = latex(table(find_runs([tmp_path])))
    assert r"My\_Router" in tex and r"91.0\%" in tex and r"$\alpha$" in tex
    body = tex.split(r"\midrule")[1]
    assert "_" not in body.replace(r"\_", "") and "%" not in body.replace(r"\%", "")


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
    line = tex.split(r"\caption{")[1].split("\n")[0]
    assert r"fd\_digits\_v1, N = 1,797" in line and "exact sign-flip test, Holm over 3" in line
    assert "floor 0.42" in line and "seeds 0-5 (n = 6)" in line
    assert tex.isascii() and r"\toprule" in tex and tex.count(r"\begin") == tex.count(r"\end")


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


def test_csvs_hold_the_frame_and_the_table_unrounded(tmp_path):
    frame = noisy(tmp_path / "runs", 3, [-0.5, 0.2])
    names = ["results.csv", "table.csv", "table.md", "table.tex"]
    assert [p.name for p in write_tables(frame, tmp_path)] == names
    text = dict.fromkeys(["other", "seed", "ended_at", "baseline", "setting", "data", "notes"], str)
    for name, expected in (("results.csv", frame), ("table.csv", over_seeds(frame))):
        words = {key: kind for key, kind in text.items() if expected[key].dtype != float}
        words.pop("seed" if name == "results.csv" else "", None)
        stored = pd.read_csv(tmp_path / name, dtype=words)
        stored = stored.fillna(dict.fromkeys(words, ""))
        pd.testing.assert_frame_equal(stored, expected, check_dtype=False)
    runs = over_seeds(frame).run
    assert sorted(", ".join(runs).split(", ")) == sorted(Path(path).name for path in frame.run)
