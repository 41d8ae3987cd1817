"""Laws of report.html: self-contained, honest, readable at every width."""

import re
import shutil
import subprocess

import pytest

from analysis import draw_all
from analysis.read.runs import read
from analysis.report.doubts import doubts
from analysis.tables.tables import over_seeds, table
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis import synthetic_runs
from tests.conftest import slow_except

pytestmark = pytest.mark.usefixtures("empty_pdfs")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of some made-up runs, and their directory."""
    directory = tmp_path_factory.mktemp("sweep")
    synthetic_runs.make_sweep(directory)
    draw_all([directory], report=True)
    return (directory / "report.html").read_text(), directory


def test_it_needs_no_network(page):
    text, _ = page
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "@import" not in text
    assert "url(" not in text


def test_it_says_what_was_run_and_names_every_run(page):
    text, directory = page
    for run in directory.glob("*/config.yaml"):
        if Run(run.parent).results is not None:
            name = run.parent.name
            assert f"--config {run} --out runs/again/{name}<" in text
    assert text.count(str(directory)) == text.count("--config ")
    assert text.count("<figure>") == len(list((directory / "figures").glob("*.png")))
    assert "it is not FID" in text
    assert "The setting with the fewest seeds has 1: with fewer than 6" in text


def again_of(text):
    """The paths of config and directory in the commands that compute runs again."""
    return re.findall(r"train\.py --config (\S+) --out (\S+?)<", text)


def test_a_report_elsewhere_has_the_name_and_the_commands_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "first", "DTR", 4.0)
    make(tmp_path / "second", "RTR", 6.0)
    draw_all(["first"], out="shown", only=["tables"], report=True)
    text = (tmp_path / "shown" / "report.html").read_text()
    assert "<title>first</title>" in text
    run = f"{tmp_path}/first/DTR/config.yaml"
    assert again_of(text) == [(run, "runs/again/DTR")]
    draw_all(["first", "second"], out="shown", only=["tables"], report=True)
    text = (tmp_path / "shown" / "report.html").read_text()
    assert "<title>first, second</title>" in text
    assert {out for _, out in again_of(text)} == {
        "runs/again/first/DTR",
        "runs/again/second/RTR",
    }
    monkeypatch.setattr("analysis.report.page.CLONE", tmp_path)
    draw_all(["first"], only=["tables"], report=True)
    assert (
        again_of((tmp_path / "first" / "report.html").read_text())[0][0] == "first/DTR/config.yaml"
    )


def test_markup_in_a_name_is_text(tmp_path):
    synthetic_runs.make_sweep(tmp_path)
    (tmp_path / "sweep.yaml").write_text("name: <script>alert(1)</script>")
    for file in tmp_path.glob("*/meta.json"):
        Run(file.parent).update_meta(command="<b>bold</b>")
    draw_all([tmp_path], only=["overlap", "tables"], report=True)
    text = (tmp_path / "report.html").read_text()
    assert "<b>bold" not in text
    assert "alert(1)" not in text


def doubts_of(directory):
    """The sentences under "What does not hold", a run per router: {name: changes of results}."""
    reading = read(find_runs([directory]))
    return doubts(over_seeds(table([*reading.finished, *reading.pruned])), reading)


def make(directory, name="NoRouting", score=5.0, **results):
    run = synthetic_runs.make_run(directory / name, name, score=score)
    run.write_results(run.results | results)


@pytest.mark.parametrize("floor_n, copies", [(6, 0.0), (2000, 0.0), (6, 0.2)])
def test_a_score_below_the_floor_is_explained_by_what_is_known(tmp_path, floor_n, copies):
    make(tmp_path, "DTR", floor=9.0, floor_n=floor_n, copies=copies)
    make(tmp_path, "NoRouting", 12.0, floor=9.0, floor_n=floor_n)
    sentences = doubts_of(tmp_path)
    (below,) = (line for line in sentences if "below its floor" in line)
    assert below.endswith(": DTR.") and "copy training images" in below
    assert ("a floor of 6 images is too high for 1,797 samples" in below) == (floor_n == 6)
    assert any("near copies" in line and ": DTR." in line for line in sentences) == (copies > 0)
    assert any("6 held-out images tell little" in line for line in sentences) == (floor_n == 6)


def test_above_the_floor_nothing_is_said_of_it(tmp_path):
    make(tmp_path, score=12.0, floor=9.0, floor_n=360)
    assert not any("floor" in line or "copies" in line for line in doubts_of(tmp_path))


def test_notes_are_told_once_and_judged_anew(tmp_path):
    """Runs of older versions do not say that the features are random; their score's name does."""
    for name in ("NoRouting", "DTR"):
        make(tmp_path, name, 12.0, score_name="fd_resnet18_untrained", notes=["outdated"])
    sentences = doubts_of(tmp_path)
    assert sum("features' weights are random" in line for line in sentences) == 1
    assert not any("not FID" in line or "utdated" in line for line in sentences)
    draw_all([tmp_path], only=["tables"], report=True)
    text = (tmp_path / "report.html").read_text()
    assert "No score is a measure of quality" in text and "Lowest score" not in text


def test_enough_seeds_are_no_doubt_and_paths_keep_their_case(tmp_path):
    synthetic_runs.make_sweep(tmp_path, seeds=range(6))
    (tmp_path / "Torn").mkdir()
    (tmp_path / "Torn" / "config.yaml").write_text("a: [")
    (tmp_path / "Torn" / "results.json").write_text("{}")
    sentences = doubts_of(tmp_path)
    assert not any("fewest seeds" in line for line in sentences)
    assert any(line.startswith("Skipped: ") and "/Torn/config.yaml" in line for line in sentences)


def test_small_scores_are_told_apart_in_sentences(tmp_path):
    make(tmp_path, "DTR", 0.412)
    make(tmp_path, "NoRouting", 0.418)
    draw_all([tmp_path], only=["tables"], report=True)
    text = (tmp_path / "report.html").read_text()
    assert "0.412 (1 seed)" in text and "-0.006." in text


def test_what_could_not_be_drawn_is_a_list(page):
    text, _ = page
    part = text.split("What could not be drawn")[1].split("</ul>")[0]
    items = [line for line in part.splitlines() if line.startswith("<li>")]
    assert len(items) == part.count("<li>") > 1
    assert all(line.startswith("<li><b>") and line.endswith("</li>") for line in items)


def test_without_a_finished_run_there_is_no_report(tmp_path):
    Run(tmp_path / "a").prepare({"seed": 0})
    with pytest.raises(UserError, match=r"no run .* is finished"):
        draw_all([tmp_path], only=["samples"], report=True)


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", slow_except([500, 1400], 500))
def test_nothing_overflows_in_a_browser(page, tmp_path, width):
    text, _ = page
    probe = "document.title = document.documentElement.scrollWidth + ' of ' + innerWidth;"
    probe += "document.querySelector('th button').click();"
    file = tmp_path / "report.html"
    file.write_text(text.replace("</script>", probe + "</script>"))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    shown = subprocess.run([BROWSER, *options], capture_output=True, text=True, timeout=60).stdout
    needed, given = map(int, re.search(r"<title>(\d+) of (\d+)</title>", shown).groups())
    assert needed <= given
    assert 'aria-sort="ascending"' in shown  # a click on a heading sorts


@pytest.mark.slow
def test_the_files_of_numbers_are_where_it_says(tmp_path):
    synthetic_runs.make_sweep(tmp_path / "sweep")
    for out in (None, tmp_path / "elsewhere"):
        draw_all([tmp_path / "sweep"], out=out, only=["overlap"], report=True)
        place = out or tmp_path / "sweep"
        files = re.findall(r"numbers: ([^<]*)<", (place / "report.html").read_text())
        assert files and all((place / file).is_file() for file in files)
