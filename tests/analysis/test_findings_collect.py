"""Laws of the findings' archives: only a registered sweep, whole, becomes one; else none does."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis.findings.archive import Archive, cka_of, pack
from analysis.findings.collect import collect, whole
from analysis.findings.orders import searched
from analysis.findings.registered import Registered, names
from analysis.read.runs import read
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import write_text
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis.synthetic_runs import make_run

CONFIG = "configs/digits.yaml"
CORES = (0.2, 0.4, 0.55, 0.65, 0.8)


def run_of(path, config, seed=0):
    """Makes a finished run of a resolved config."""
    run = make_run(path, score=1.0, steps=300)
    write_text(run.config_file, yaml.safe_dump(config | {"seed": seed}))


def make(path, name="findings/digits_overlap", seeds=10, **options):
    """Makes a directory as `python sweep.py findings/digits_overlap` leaves it."""
    path.mkdir(parents=True)
    write_text(path / "sweep.yaml", f"name: {name}\n")
    for core in CORES:
        chosen = {"router": "SharedCore", "router.core": core, "evaluation.every": 0} | options
        config = resolve(CONFIG, chosen)
        for seed in range(seeds):
            run_of(path / f"{core}-{seed}", config, seed)
    return path


@pytest.fixture(scope="module")
def overlap(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sweep") / "overlap")


def another_seed(run):
    run_of(run.path.with_name("more"), run.config, seed=77)


def none_of(name, runs):
    return {}


def test_a_whole_sweep_is_archived(overlap, tmp_path):
    assert [(path.name, n) for path, n in collect([overlap], tmp_path, none_of)] == [
        ("digits_overlap.tar.xz", 50)
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: run.results_file.unlink(), "1 unfinished .*goes on"),
        (lambda run: write_text(run.results_file, "{"), "0.4-3.*damaged.*move that away, then"),
        (
            lambda run: shutil.copytree(run.path, run.path.with_name("x")),
            "copies of other runs: 1, .*/x; move",
        ),
        (lambda run: run.meta_file.unlink(), "0.4-3 has no meta.json"),
        (lambda run: run.metrics_file.unlink(), "0.4-3 has no metrics.jsonl"),
        (lambda run: run.write_results(run.results | {"smoke": True}), "is a smoke run"),
        (lambda run: shutil.rmtree(run.path), "49 of 50 runs; .*goes on"),
        (another_seed, "seed 77 is none of .*digits_overlap.yaml"),
    ],
    ids=["unfinished", "damaged", "copy", "meta", "metrics", "smoke", "fewer", "seed"],
)
def test_one_that_is_not_whole_replaces_nothing(overlap, tmp_path, change, told):
    folder = tmp_path / "archives"
    ((file, _),) = collect([overlap], folder, none_of)
    before = file.read_bytes()
    other = shutil.copytree(overlap, tmp_path / "other")
    change(Run(other / "0.4-3"))
    with pytest.raises(UserError, match=told):
        collect([other], folder, none_of)
    assert file.read_bytes() == before and [*folder.iterdir()] == [file]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trainer.max_steps": 10}, "trainer.max_steps is 10, in .*digits_overlap.yaml 1000"),
        ({"router.beta": 0.9}, "router.beta is 0.9, in .* 0.8"),
        ({"evaluation.n": 100}, "evaluation.n is 100, in .* 1797"),
    ],
)
def test_other_settings_than_registered_are_named(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        whole(make(tmp_path / "sweep", seeds=1, **options))


def test_another_sweep_is_one_line(overlap, tmp_path):
    with pytest.raises(UserError, match="is not the directory of a sweep"):
        whole(tmp_path)
    write_text(tmp_path / "sweep.yaml", "name: masking\n")
    with pytest.raises(UserError, match="'masking'; valid: findings/digits_longer, "):
        whole(tmp_path)
    write_text(tmp_path / "sweep.yaml", "name: findings/digits_overlap\n")
    with pytest.raises(UserError, match="0 of 50 runs"):
        whole(tmp_path)
    with pytest.raises(UserError, match="as another of these"):
        collect([overlap, overlap], tmp_path / "archives", none_of)


def test_nothing_is_written_if_one_of_several_is_not_whole(overlap, tmp_path):
    with pytest.raises(UserError, match="is not the directory of a sweep"):
        collect([overlap, tmp_path], tmp_path / "archives", none_of)
    assert not (tmp_path / "archives").exists()


def test_an_archive_that_is_not_whole_is_told(overlap, tmp_path):
    runs = read(find_runs([overlap])).finished
    cka = {"t": np.arange(2), "blocks": ["0"], "images": 2, "unbiased": np.ones((1, 2, 2))}
    pack("digits_overlap", runs, tmp_path, {runs[0].path: cka})
    with Archive(tmp_path) as archive:
        archive.check()
        (measured,) = [run for run in archive.sweeps["digits_overlap"] if cka_of(run)]
        write_text(measured.path / "cka.npz", "no arrays")
        with pytest.raises(UserError, match=r"digits_overlap: .*/cka.npz is damaged"):
            cka_of(measured)
        measured.meta_file.unlink()
        with pytest.raises(UserError, match=r"overlap.tar.xz: digits_overlap/.* has no meta.json"):
            archive.check()
    pack("digits_overlap", runs[:40], tmp_path, {})
    with Archive(tmp_path) as archive, pytest.raises(UserError, match=r"xz has 40 of 50 runs"):
        archive.check()


def test_every_registered_sweep_is_read():
    for name in names():
        registered = Registered.of(name)
        assert registered.runs >= 10 and registered.settings, name


def test_a_search_may_try_what_it_likes_in_its_space_alone(tmp_path):
    config = resolve(CONFIG, {"router": "FreeWindow", "router.alpha": 2.0, "router.beta": 0.7})
    run_of(tmp_path / "a", config)
    longer = config | {"trainer": config["trainer"] | {"max_steps": 2000}}
    run_of(tmp_path / "b", longer)
    search = Registered.of("digits_window")
    assert search.runs == 90
    inside, outside = read(find_runs([tmp_path])).finished
    assert search.count([inside]) == 1
    with pytest.raises(UserError, match="max_steps is 2000"):
        search.count([outside])


@pytest.mark.slow
def test_the_tested_window_is_the_one_that_the_search_found():
    with Archive(Path("results/findings")) as archive:
        found = searched(archive).router
    settings = Registered.of("digits_window_test").settings
    (window,) = [each for each in settings if each["router"] == "FreeWindow"]
    assert {key: window[f"router.{key}"] for key in found} == found
