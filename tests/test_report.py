"""Laws of report.html: self-contained, honest, readable at every width."""

import re
import shutil
import subprocess

import pytest

from analysis import draw_all
from dtr_lightning.errors import UserError
from dtr_lightning.run import Run
from tests import synthetic_runs


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
            assert str(run.parent) in text
            assert f"--config {run}" in text
    assert text.count("<figure>") == len(list((directory / "figures").glob("*.png")))
    assert "it is not FID" in text
    assert "below 6 no difference can be told from chance" in text


def test_markup_in_a_name_is_text(tmp_path):
    synthetic_runs.make_sweep(tmp_path)
    (tmp_path / "sweep.yaml").write_text("name: <script>alert(1)</script>")
    for file in tmp_path.glob("*/meta.json"):
        Run(file.parent).update_meta(command="<b>bold</b>")
    draw_all([tmp_path], report=True)
    text = (tmp_path / "report.html").read_text()
    assert "<b>bold" not in text
    assert "alert(1)" not in text


def test_without_a_finished_run_there_is_no_report(tmp_path):
    Run(tmp_path / "a").prepare({"seed": 0})
    with pytest.raises(UserError, match=r"no run .* is finished"):
        draw_all([tmp_path], report=True)


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", [500, 1400])
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
