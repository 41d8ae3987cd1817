"""Laws of damaged runs: one whose files hold wrong kinds is named, and takes no other with it."""

import json

import pytest
import yaml

from analysis import draw_all
from analysis.read.runs import read
from dtr_lightning.rundir.run import find_runs
from tests.analysis.synthetic_runs import FOUR, make_run, make_sweep, prune

pytestmark = pytest.mark.usefixtures("empty_pdfs")
RESULTS = [("score", wrong) for wrong in ("3", [1], True, {}, 10**400)]
RESULTS += [("n", wrong) for wrong in (None, "x", 1.5, True)]
RESULTS += [("score_name", wrong) for wrong in (["x"], None, 3)]
RESULTS += [(key, "x") for key in ("accuracy", "loss", "parameters", "macs", "floor", "seconds")]
RESULTS += [("floor_n", [6]), ("copies", False), ("steps", "x"), ("protocol", [1])]
RESULTS += [("notes", "x"), ("notes", [1]), ("diverged_at", "x")]
RESULTS += [("class_images", [1]), ("chance", "x"), ("smoke", 1), ("num_features", 1.5)]
CONFIG = [("seed", "abc"), ("seed", None), ("seed", True), ("alpha", [1]), ("alpha", "x")]
CONFIG += [("beta", True), ("trainer", {"max_steps": "x"}), ("model", [1])]
META = [
    {"status": ["a"]},
    {"status": "pruned", "pruned_at": "x"},
    {"status": "pruned", "pruned_score": [1]},
    {"status": "pruned", "pruned_at": True},
    {"status": 3},
    {"smoke": "x"},
]


def edit(file, load, dump, changes):
    file.write_text(dump(load(file.read_text()) | changes))


def skipped(root, file, what):
    """Asserts that all runs but `bad` are read, and that one line names its file and the key."""
    reading = read(find_runs([root]))
    assert len(reading.finished) == len(FOUR) and not reading.pruned
    (line,) = reading.skipped
    assert line.startswith(f"skipped: {root / 'bad' / file} is damaged: {what}")
    assert "\n" not in line and len(line) < len(str(root)) + 160


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


@pytest.mark.parametrize("key, wrong", RESULTS, ids=lambda value: str(value)[:12])
def test_results_of_a_wrong_kind_are_skipped(key, wrong, sound, bad):
    edit(bad.results_file, json.loads, json.dumps, {key: wrong})
    skipped(sound, "results.json", f"{key} is ")


@pytest.mark.parametrize("key, wrong", CONFIG, ids=lambda value: str(value)[:16])
def test_a_config_of_a_wrong_kind_is_skipped(key, wrong, sound, bad):
    changes = {key: wrong}
    if key in ("alpha", "beta"):
        changes = {"router": {"class_path": "DTR", "init_args": changes}}
    edit(bad.config_file, yaml.safe_load, yaml.safe_dump, changes)
    names = {"alpha": "router.alpha", "beta": "router.beta", "trainer": "trainer.max_steps"}
    skipped(sound, "config.yaml", f"{names.get(key, key)} is ")


@pytest.mark.parametrize("text", ["a: 2020-01-01", "a: {1: 2}", "a: &a [*a]", "a: !!binary aa=="])
def test_a_config_that_no_json_holds_is_skipped(text, sound, bad):
    bad.config_file.write_text(f"{bad.config_file.read_text()}\n{text}\n")
    skipped(sound, "config.yaml", "")


@pytest.mark.parametrize("meta", META, ids=str)
@pytest.mark.parametrize("finished", [False, True])
def test_meta_of_a_wrong_kind_is_skipped(meta, finished, sound, bad):
    if not finished:
        bad.results_file.unlink()
    bad.meta_file.write_text(json.dumps(meta))
    skipped(sound, "meta.json", next(reversed(meta)))


@pytest.mark.parametrize("wrong", ["x", [1], True])
def test_a_record_of_a_wrong_kind_is_skipped(wrong, sound, bad):
    bad.append_metrics({"step": 1200, "eval/score": wrong})
    skipped(sound, "metrics.jsonl", "eval/score is ")


def test_all_that_may_be_null_may_be_null(sound, bad):
    nulls = dict.fromkeys(["score", "accuracy", "loss", "floor", "floor_n", "copies", "notes"])
    edit(bad.results_file, json.loads, json.dumps, nulls)
    bad.meta_file.write_text("{}")
    router = {"class_path": "my.Router", "init_args": {"alpha": None}}
    edit(bad.config_file, yaml.safe_load, yaml.safe_dump, {"router": router})
    reading = read(find_runs([sound]))
    assert len(reading.finished) == len(FOUR) + 1 and not reading.skipped
    assert prune(bad, None, None) and len(read(find_runs([sound])).pruned) == 1


def test_everything_else_is_drawn(tmp_path):
    make_sweep(tmp_path)
    only = ["ablation", "convergence", "samples", "tables"]
    draw_all([tmp_path], only=only)
    expected = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    table = (tmp_path / "table.md").read_text()
    for i, (key, wrong) in enumerate([("score", [1]), ("n", "x"), ("parameters", "x")]):
        run = make_run(tmp_path / f"bad{i}")
        run.write_results(run.results | {key: wrong})
    _, left_out = draw_all([tmp_path], only=only, report=True)
    lines = [reason for name, reason in left_out if name == "runs"]
    assert len(lines) == 3 and all("/results.json is damaged: " in line for line in lines)
    assert (tmp_path / "table.md").read_text() == table
    assert all((tmp_path / file).is_file() for file in expected)
    assert all(f"/bad{i}/results.json" in (tmp_path / "report.html").read_text() for i in range(3))


@pytest.mark.parametrize("only", ["tables", "sizes", "paper_tables"])
def test_a_damaged_run_alone_draws_nothing_and_raises_nothing(only, bad):
    edit(bad.results_file, json.loads, json.dumps, {"score": "3"})
    written, left_out = draw_all([bad.path], only=[only])
    assert written == [] and "score is" in left_out[0][1] and len(left_out) >= 2
