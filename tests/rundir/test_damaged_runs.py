"""Laws of damaged runs: one is skipped, in one line that names its file, and takes no other."""

import json

import pytest

from analysis import draw_all
from analysis.read.runs import read
from dtr_lightning.rundir.run import find_runs
from tests.analysis.synthetic_runs import FOUR, make_run, make_sweep, prune

pytestmark = pytest.mark.usefixtures("empty_pdfs")
DAMAGED = {
    "torn": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[1]",
    "noise": lambda text: "\x00\x01{",
}
FILES = ["results.json", "meta.json", "config.yaml"]


def skipped(root, name):
    """Asserts that all runs but `bad` are read, and that one line names its file."""
    reading = read(find_runs([root]))
    assert len(reading.finished) == len(FOUR) and not reading.pruned
    (line,) = reading.skipped
    assert line.startswith(f"skipped: {root / 'bad' / name} ") and "\n" not in line


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def bad(sound):
    """A finished run beside four sound ones; its test may damage it."""
    yield make_run(sound / "bad", "DTR", {"alpha": 6.0, "beta": 0.8})
    for file in sorted((sound / "bad").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (sound / "bad").rmdir()


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("name", FILES)
def test_a_run_with_a_damaged_file_is_skipped(name, how, sound, bad):
    if (how, name) == ("torn", "config.yaml"):
        bad.config_file.write_text("seed: [1, 2")  # half of a YAML file may be one
    else:
        file = bad.path / name
        file.write_text(DAMAGED[how](file.read_text()))
    skipped(sound, name)


@pytest.mark.parametrize("line", ["noise", "[1]", '{"loss": 1}'])
def test_a_run_with_a_line_that_is_no_record_is_skipped(line, sound, bad):
    with bad.metrics_file.open("a") as file:
        file.write(f"{line}\n")
    skipped(sound, "metrics.jsonl")


@pytest.mark.parametrize("key", ["score", "score_name", "n"])
def test_results_without_a_score_are_skipped(key, sound, bad):
    bad.write_results({k: v for k, v in bad.results.items() if k != key})
    skipped(sound, "results.json")


def test_all_that_may_be_null_may_be_null(sound, bad):
    nulls = dict.fromkeys(["score", "accuracy", "loss", "floor", "floor_n", "copies", "notes"])
    bad.write_results(bad.results | nulls)
    bad.meta_file.write_text("{}")
    reading = read(find_runs([sound]))
    assert len(reading.finished) == len(FOUR) + 1 and not reading.skipped
    assert prune(bad, None, None) and len(read(find_runs([sound])).pruned) == 1


@pytest.mark.slow
def test_everything_else_is_drawn(tmp_path):
    make_sweep(tmp_path)
    only = ["ablation", "convergence", "samples", "tables"]
    draw_all([tmp_path], only=only)
    expected = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    table = (tmp_path / "table.md").read_text()
    for name in ("a", "b"):
        run = make_run(tmp_path / name)
        run.results_file.write_text(json.dumps(run.results)[:-9])
    _, left_out = draw_all([tmp_path], only=only, report=True)
    lines = [reason for name, reason in left_out if name == "runs"]
    assert len(lines) == 2 and all("/results.json is damaged: " in line for line in lines)
    assert (tmp_path / "table.md").read_text() == table
    assert all((tmp_path / file).is_file() for file in expected)
    assert all(f"/{name}/results.json" in (tmp_path / "report.html").read_text() for name in "ab")


@pytest.mark.parametrize("only", ["tables", "sizes", "paper_tables"])
def test_a_damaged_run_alone_draws_nothing_and_raises_nothing(only, bad):
    bad.results_file.write_text("{")
    written, left_out = draw_all([bad.path], only=[only])
    assert written == [] and "damaged" in left_out[0][1] and len(left_out) >= 2
