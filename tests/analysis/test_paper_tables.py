"""The papers' tables: which runs are in which row, our statistics, the published numbers apart."""

import csv
import math
import re

import numpy as np
import pytest
from scipy.stats import t

from analysis.__main__ import main
from analysis.read.runs import read
from analysis.read.settings import ALPHA
from analysis.tables.paper_rows import needs, paper_rows, published, select
from analysis.tables.paper_tables import write_paper_tables
from analysis.tables.text import Text, p_value, published_cells
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis.synthetic_runs import diverge, make_run

REAL = {"experts": 1, "gradients": {"class_path": "Joint", "init_args": {}}}
DTR = {"alpha": 4.0, "beta": 0.8}


def make(root, name, router="NoRouting", args=None, seeds=(0,), score=5.0, **config):
    """Runs of a setting with the keys that every real config has; the score is score + seed."""
    for seed in seeds:
        path = root / f"{name}-{seed}"
        run = make_run(path, router, args, seed, score + seed, **(REAL | config))
    return run


def finished(root):
    return read(find_runs([root]), records=False).finished


def rows(root, name):
    entry = published()[name]
    return paper_rows(entry, select(entry, finished(root)))


@pytest.fixture
def masking(tmp_path):
    make(tmp_path, "none", seeds=(0, 1, 2))
    make(tmp_path, "dtr", "DTR", DTR, (0, 1, 2), 4.0)
    make(tmp_path, "one", "DTR", {"alpha": 1.0, "beta": 0.8}, (0, 1, 2), 1.0)
    make(tmp_path, "cdtr", "CDTR", DTR | {"clusters": 8}, (0, 1, 2), 5.5)
    make(tmp_path, "roaming", "MaxRoaming", {"beta": 0.8, "clusters": None}, (0, 1), 9.0)
    return tmp_path


def test_every_table_has_the_published_numbers_of_the_text():
    tables = published()
    assert [row["published"][0] for row in tables["table8"]["rows"]] == [
        10.99,
        39.9,
        10.13,
        9.61,
        7.32,
    ]
    theirs = {row["label"]: row["published"] for row in tables["table2"]["rows"]}
    assert theirs["ANT-UW, DTR"] == [4.61, 208.76, 0.84, 0.48, 8.81]
    assert theirs["P2"] == [None, None, None, None, 10.08]
    assert "damaged" in next(
        r["note"] for r in tables["table2"]["rows"] if "Min-SNR, D" in r["label"]
    )
    xl = [r["published"] for r in tables["switch_dit"]["rows"] if "XL" in r["label"]]
    assert [row[0] for row in xl] == [9.40, 10.85, 8.76]
    for entry in tables.values():
        for row in entry["rows"]:
            assert len(row.get("published", entry["columns"])) == len(entry["columns"])
    assert all("published" not in row for row in tables["table4"]["rows"])


def test_repeated_published_numbers_agree():
    """No routing and DTR of DiT-L/2 on ImageNet are in five tables, FFHQ's in two."""

    def of(name, label):
        return next(r["published"] for r in published()[name]["rows"] if r["label"] == label)

    for label in ("no routing", "DTR"):
        imagenet = of("table2", label)[:4]
        assert of("table1_latent", label)[1:5] == imagenet == of("table6", label)[:4]
        assert of("table8", label)[0] == of("table1_latent", label)[0]
        same = {"no routing": "DiT-L", "DTR": "DiT-L, DTR"}[label]
        assert of("switch_dit", same) == imagenet and of("table5", same) == imagenet[:1]


def test_table8_is_of_the_defaults_beside_the_published(masking):
    frame = rows(masking, "table8")
    assert frame.row.tolist() == ["no routing", "MaxRoaming", "ERCDT", "CDTR", "DTR"]
    assert frame["published FID"].tolist() == [10.99, 39.9, 10.13, 9.61, 7.32]
    scores = frame.score.tolist()
    assert scores[:2] == [6.0, 9.5] and math.isnan(scores[2]) and scores[3:] == [6.5, 5.0]
    assert frame.run[4] == "dtr-0, dtr-1, dtr-2" and frame.run[2] == ""  # not alpha = 1
    half = t.ppf(0.975, 2) * np.std([4, 5, 6], ddof=1) / 3**0.5
    assert frame.high[4] - frame.score[4] == pytest.approx(half)
    assert frame.difference.tolist()[3:] == [0.5, -1.0] and frame.pairs[1] == 2


def test_holm_is_over_the_rows_of_the_table_alone(tmp_path):
    seeds = range(6)
    make(tmp_path, "none", seeds=seeds)
    make(tmp_path, "dtr", "DTR", DTR, seeds, 4.0)
    make(tmp_path, "cdtr", "CDTR", DTR | {"clusters": 8}, seeds, 4.5)
    for alpha in (1.0, 2.0, 8.0):
        make(tmp_path, f"alpha{alpha}", "DTR", {"alpha": alpha, "beta": 0.8}, seeds, 3.0)
    eight, four = rows(tmp_path, "table8"), rows(tmp_path, "table4")
    assert eight.p_holm.dropna().tolist() == [2 / 64 * 2] * 2
    assert four.p_holm.dropna().tolist() == [2 / 64 * 4] * 4
    assert four.row.tolist() == ["no routing", *(f"DTR {ALPHA}={a}" for a in (1, 2, 4, 8))]


def test_each_loss_weight_is_compared_with_its_own_baseline(tmp_path):
    weights = {"Constant": {}, "MinSNR": {"gamma": 5.0}, "UW": {"clusters": 8}}
    for i, (name, args) in enumerate(weights.items()):
        choice = {"loss_weight": {"class_path": name, "init_args": args}}
        make(tmp_path, f"none-{name}", score=10.0 * i, **choice)
        make(tmp_path, f"dtr-{name}", "DTR", DTR, score=10.0 * i + i + 1, **choice)
    other = {"loss_weight": {"class_path": "MinSNR", "init_args": {"gamma": 1.0}}}
    make(tmp_path, "gamma", score=99.0, **other)
    frame = rows(tmp_path, "table2").set_index("row")
    routed = frame.loc[["DTR", "Min-SNR, DTR", "ANT-UW, DTR"]]
    assert routed.difference.tolist() == [1, 2, 3] and frame.difference.count() == 3
    assert not frame.run.str.contains("gamma").any()


def test_random_routing_is_not_the_shared_control(tmp_path):
    make(tmp_path, "none")
    make(tmp_path, "shared", "RTR", {"beta": 0.8, "shared": True})
    make(tmp_path, "half", "RTR", {"beta": 0.5, "shared": False})
    entry = published()["table1_latent"]
    assert "R-TR" in needs(entry, select(entry, finished(tmp_path)))
    make(tmp_path, "rtr", "RTR", {"beta": 0.8, "shared": False}, score=7.0)
    assert rows(tmp_path, "table1_latent").run.tolist() == ["none-0", "rtr-0", ""]


def test_settings_in_one_row_say_what_tells_them_apart(tmp_path):
    for width in (32, 64):
        model = {"model": {"class_path": "DiT", "init_args": {"hidden_size": width}}}
        make(tmp_path, f"none{width}", **model)
        make(tmp_path, f"dtr{width}", "DTR", DTR, score=width, **model)
    frame = rows(tmp_path, "table5")
    frame = frame[frame.run != ""]
    assert frame.row.tolist() == [
        f"{row}, hidden_size={width}" for row in ("DiT", "DiT, DTR") for width in (32, 64)
    ]
    assert frame.difference.dropna().tolist() == [27, 59] and frame["published FID"].isna().all()
    entry = published()["table1_latent"]  # all else equal: one size, the others are named
    assert len(select(entry, finished(tmp_path)).others) == 2


def test_experts_are_compared_with_the_one_network(tmp_path):
    make(tmp_path, "none", score=2.0)
    make(tmp_path, "dtr", "DTR", DTR, score=1.0)
    for steps in (250, 500):
        trainer = {"max_steps": steps}
        make(tmp_path, f"four{steps}", experts=4, score=steps, trainer=trainer)
    make(tmp_path, "two", experts=2, trainer={"max_steps": 500})
    frame = rows(tmp_path, "table6")
    assert frame.difference.dropna().tolist() == [248, 498, -1]
    assert frame.row[1] == "four experts, max_steps=250" and not frame.run.str.contains("two").any()


def test_a_diverged_setting_has_its_row_and_no_score(tmp_path):
    make(tmp_path, "none")
    diverge(make(tmp_path, "ercdt", "ERCDT", {"clusters": 8}), 300)
    write_paper_tables(finished(tmp_path), tmp_path)
    assert re.search(r"\| ERCDT +\| diverged \|", (tmp_path / "table8.md").read_text())


def test_files_keep_ours_and_the_published_apart(masking, tmp_path):
    written, reasons = write_paper_tables(finished(masking), tmp_path / "out")
    names = {path.stem for path in written}
    assert names == {"table1_latent", "table4", "table8"} and len(written) == 9
    assert {name for name, _ in reasons} == published().keys() - names
    with (tmp_path / "out" / "table8.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert (float(last["score"]), float(last["published FID"])) == (5.0, 7.32)
    text = (tmp_path / "out" / "table8.md").read_text()
    assert "comparable in value with ours only where" in text and "fd_digits_v1 (N = 1,797" in text
    assert "FFHQ 256x256" in text and "roaming-0, roaming-1" in text
    tex = (tmp_path / "out" / "table8.tex").read_text()
    assert r"\multicolumn{1}{c}{published}" in tex and "% dtr-0, dtr-1, dtr-2" in tex


def test_latex_is_balanced(masking, tmp_path):
    written, _ = write_paper_tables(finished(masking), tmp_path / "out")
    for path in (path for path in written if path.suffix == ".tex"):
        lines = [re.sub(r"(?<!\\)%.*", "", line) for line in path.read_text().splitlines()]
        text = "\n".join(lines)
        plain = re.sub(r"\\[{}$&%_#]", "", text)
        assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
        assert text.count(r"\begin") == text.count(r"\end") == 2 and text.isascii()
        align = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]
        body = [
            line for line in lines if line.rstrip().endswith(r"\\") and "multicolumn" not in line
        ]
        assert {line.replace(r"\&", "").count("&") for line in body} == {len(align) - 1}


def test_what_cannot_be_drawn_says_what_makes_it(tmp_path, capsys):
    make(tmp_path, "none")
    make(tmp_path, "dtr", "DTR", DTR)
    assert main([str(tmp_path), "--only", "paper_tables"]) == 0
    lines = capsys.readouterr().out.splitlines()
    needed = [line for line in lines if "not drawn" in line]
    assert any(line.startswith("table8") and "python sweep.py masking" in line for line in needed)
    assert any(line.startswith("table7") and "benchmarks/cost.py" in line for line in needed)
    assert len(needed) == 9 and (tmp_path / "tables" / "table1_latent.tex").is_file()


def test_small_scores_have_more_decimals(tmp_path):
    make(tmp_path, "none", score=0.412)
    make(tmp_path, "dtr", "DTR", DTR, score=0.418)
    write_paper_tables(finished(tmp_path), tmp_path)
    text = (tmp_path / "table1_latent.md").read_text()
    assert all(f" {number} " in text for number in ("0.412", "0.418", "+0.006", "10.99", "7.32"))


def test_a_table_says_which_space_the_published_numbers_are_of():
    dit, adm = (published()[f"table1_{space}"] for space in ("latent", "pixel"))
    assert (dit["number"], adm["number"]) == ("Table 1 (DiT)", "Table 1 (ADM)")
    assert "latent space of images of 256x256" in dit["scale"]
    assert "pixel space of images of 64x64" in adm["scale"]


def test_numbers_and_marks():
    assert published_cells([134.6, math.nan]) == ["134.60", "-"] and published_cells([33]) == ["33"]
    assert [p_value(p) for p in (0.0001, 0.03, 0.2, math.nan)] == [
        "<0.001*",
        "0.030*",
        "0.200",
        "-",
    ]
    text = Text({"a|b": ["x|y"], "run": ["r_1"]}, ["a|b"], "C.", ["N_1."], ["run"])
    assert r"a\|b" in text.markdown() and r"x\|y" in text.markdown()
    assert "x\\textbar{}y \\\\ % r_1" in text.latex() and r"N\_1." in text.latex()


def test_notes_and_the_best_stand_in_the_papers_tables_too(masking, tmp_path):
    """MaxRoaming is far off, CDTR draws copies: neither has a p, neither is the best."""
    for run in find_runs([masking]):
        name = run.config["router"]["class_path"]
        far = {"score": 40.0 + run.config["seed"]} if name.endswith("MaxRoaming") else {}
        copies = {"copies": 0.3, "score": 2.0} if name.endswith(".CDTR") else {}
        run.write_results(run.results | {"floor": 1.9, "accuracy": 0.9} | far | copies)
    write_paper_tables(finished(masking), tmp_path / "out")
    text = (tmp_path / "out" / "table8.md").read_text()
    marked = re.findall(r"^\| (\w+) ([¹²])", text, re.M)
    assert marked == [("MaxRoaming", "¹"), ("CDTR", "²")]
    assert text.count("¹ The score is 20 times its floor or more") == 1
    assert text.count("² More than 5% of the samples are near copies") == 1
    rows = (tmp_path / "out" / "table8.tex").read_text().split(r"\midrule")[1].splitlines()
    assert [row.split(" & ")[0] for row in rows if r"\textbf" in row] == ["no routing", "DTR"]
    assert all(row.count(r"\textbf") <= 1 for row in rows)  # equal accuracies are no best


def test_a_smoke_never_takes_the_place_of_real_runs(tmp_path):
    make(tmp_path, "none")
    make(tmp_path, "dtr", "DTR", DTR)
    for i, router in enumerate(("NoRouting", "DTR", "CDTR", "ERCDT")):
        args = DTR | {"clusters": 8} if i else {}
        args = DTR if router == "DTR" else args
        make(tmp_path, f"smoke{i}", router, args, trainer={"max_steps": 30})
        Run(tmp_path / f"smoke{i}-0").update_meta(smoke=True)
    frame = rows(tmp_path, "table8")
    assert frame.run[frame.run != ""].tolist() == ["none-0", "dtr-0"]
