"""A run is what it computes: its length, its protocol and its place may change."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image

from dtr_lightning.config.parser import resolve, run_name
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.fit import run
from dtr_lightning.experiment.load import TrainedRun, other_protocol
from dtr_lightning.rundir.naming import slug
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY, slow_except

ROUTER = """
import torch
from dtr_lightning.routing import MaskRouter

class Mine(MaskRouter):
    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift

    def mask(self, channels, block):
        t, c = torch.arange(self.tasks)[:, None], torch.arange(channels)
        return (t + c + self.shift) % 2 == 0
"""
IMAGES = {
    "data.size": 8,
    "data.batch_size": 4,
    "data.workers": 0,
    "model.patch_size": 4,
    "evaluation.every": 0,
    "features.model": "test_resnet",
    "features.size": 32,
}


def of_images(root, **options):
    dotted = {key.replace("__", "."): value for key, value in options.items()}
    file = ROOT / "configs" / "images_small.yaml"
    return resolve(file, TINY | IMAGES | {"data.root": str(root)} | dotted)


def draw_images(root, names=("cat", "dog"), n=8):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(n):
            colour = (30 * i, 10 * j, 99)
            Image.new("RGB", (9, 8), colour).save(root / name / f"{j}.png")
    return root


def computed(path):
    """Returns what a repetition of a run would reproduce."""
    results = {
        k: v for k, v in Run(path).results.items() if "seconds" not in k and "_per_" not in k
    }
    weights = torch.load(Run(path).last, weights_only=True)["state_dict"]
    return results, Run(path).metrics(), {k: v.tolist() for k, v in weights.items()}


@pytest.mark.parametrize("half", slow_except([3, 6], 3))
@pytest.mark.parametrize("router", slow_except(["DTR", "MaxRoaming"], "MaxRoaming"))
@pytest.mark.slow
def test_half_and_half_is_the_whole(tiny, tmp_path, router, half):
    options = {"router": router, "checkpoint__milestones": 3}
    options |= {"router__interval": 2} if router == "MaxRoaming" else {}
    first = run(tiny(trainer__max_steps=half, **options), tmp_path / "parts")
    run(tiny(trainer__max_steps=12, **options), tmp_path / "parts")
    run(tiny(trainer__max_steps=12, **options), tmp_path / "whole")
    assert computed(tmp_path / "parts") == computed(tmp_path / "whole")
    (kept,) = (tmp_path / "parts" / "artifacts" / "evaluations").glob(f"step={half}-*.json")
    assert json.loads(kept.read_text()) == first


@pytest.mark.slow
def test_what_follows_from_max_steps_stays_what_it_was(tiny, tmp_path):
    run(tiny(router="MaxRoaming"), tmp_path)
    run(tiny(router="MaxRoaming", trainer__max_steps=12), tmp_path)
    trained = TrainedRun(Run(tmp_path), other_protocol(Run(tmp_path), []))
    assert trained.experiment.planned_steps == 6


def test_how_often_a_run_saves_and_logs_is_no_part_of_it(tiny, tmp_path):
    results = run(tiny(), tmp_path)
    for option in ("checkpoint__every", "evaluation__every", "trainer__log_every_n_steps"):
        assert run(tiny(**{option: 2}), tmp_path) == results


def test_another_protocol_is_another_evaluation_of_the_same_run(tiny, tmp_path):
    first = run(tiny(), tmp_path)
    before = Run(tmp_path).last.read_bytes()
    second = run(tiny(evaluation__n=24), tmp_path)
    assert (first["n"], second["n"]) == (20, 24) and first["loss"] == second["loss"]
    assert Run(tmp_path).last.read_bytes() == before
    (kept,) = (tmp_path / "artifacts" / "evaluations").glob("*-n=20-*.json")
    assert json.loads(kept.read_text()) == first


def test_a_run_is_not_made_shorter(tiny, tmp_path):
    results = run(tiny(), tmp_path)
    with pytest.raises(UserError, match=r"is at step 6 already, past --trainer\.max_steps 4"):
        run(tiny(trainer__max_steps=4), tmp_path)
    assert Run(tmp_path).results == results == run(tiny(), tmp_path)


def test_the_name_of_a_run_holds_no_place(tmp_path):
    here, there = draw_images(tmp_path / "a" / "pets"), tmp_path / "b" / "other"
    file = ROOT / "configs" / "images_small.yaml"
    name = run_name(of_images(here), file)
    shutil.copytree(here, there)
    assert run_name(of_images(there), file) == name and "pets" not in name
    Image.new("RGB", (9, 8)).save(there / "cat" / "new.png")
    assert run_name(of_images(there), file) != name


@pytest.mark.slow
@pytest.mark.parametrize("letter", ["x", "Ж", "漢", "🚌"])
def test_the_name_of_a_run_fits_a_disk_in_any_script(letter):
    """Names of files have up to 255 bytes, and part of that is for `.log` and the like."""
    config = {"router": {"class_path": "mine.Router", "init_args": {"name": letter * 100}}}
    other = {"router": {"class_path": "mine.Router", "init_args": {"name": letter * 101}}}
    names = [slug(each, {}) for each in (config, other)]
    assert names[0] != names[1] and all(len(name.encode()) <= 127 for name in names)


def test_images_may_move(tmp_path, monkeypatch):
    root = draw_images(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    often = {"evaluation__every": 3}
    run(of_images("here", trainer__max_steps=3, **often), tmp_path / "run")
    assert Run(tmp_path / "run").config["data"]["init_args"]["root"] == str(root)
    moved = root.rename(tmp_path / "there")
    trained = TrainedRun(Run(tmp_path / "run"), other_protocol(Run(tmp_path / "run"), []))
    assert trained.experiment.data.class_names == ("cat", "dog")  # no image was asked for
    with pytest.raises(UserError, match="does not exist"):
        trained.evaluate()
    options = [f"--data.root={moved}", "--evaluation.n=12"]
    config = other_protocol(Run(tmp_path / "run"), options)
    assert TrainedRun(Run(tmp_path / "run"), config).evaluate()["n"] == 12
    run(of_images(moved, **often), tmp_path / "run")
    run(of_images(moved, **often), tmp_path / "whole")
    assert computed(tmp_path / "run") == computed(tmp_path / "whole")


@pytest.mark.parametrize("change", ["renamed", "more"])
def test_other_images_are_another_run(tmp_path, change):
    root = draw_images(tmp_path / "data")
    results = run(of_images(root), tmp_path / "run")
    if change == "renamed":
        (root / "cat").rename(root / "zebra")
    else:
        Image.new("RGB", (9, 8)).save(root / "cat" / "new.png")
    with pytest.raises(UserError, match=r"the images of --data\.root are others"):
        run(of_images(root, trainer__max_steps=9), tmp_path / "run")
    assert Run(tmp_path / "run").results == results
    trained = TrainedRun(Run(tmp_path / "run"), other_protocol(Run(tmp_path / "run"), []))
    if change == "renamed":
        with pytest.raises(UserError, match=r"classes dog, zebra.* trained on cat, dog"):
            len(trained.experiment.data.split("train"))


def test_a_class_that_was_edited_is_another_run(tiny, tmp_path, monkeypatch):
    (tmp_path / "mine_of_identity.py").write_text(ROUTER)
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny(router="mine_of_identity.Mine", diffusion__T=50)
    results = run(config, tmp_path / "run")
    name = run_name(config, ROOT / "configs" / "digits.yaml")
    assert run(config, tmp_path / "run") == results
    (tmp_path / "mine_of_identity.py").write_text(ROUTER.replace("== 0", "== 1"))
    with pytest.raises(UserError, match=r"the file of mine_of_identity\.Mine has changed"):
        run(config, tmp_path / "run")
    assert run_name(config, ROOT / "configs" / "digits.yaml") != name
    sys.modules.pop("mine_of_identity")


def test_a_router_of_a_persons_own_knows_the_number_of_tasks(tiny, tmp_path, monkeypatch):
    (tmp_path / "mine_of_tasks.py").write_text(ROUTER)
    monkeypatch.syspath_prepend(tmp_path)
    run(tiny(router="mine_of_tasks.Mine", diffusion__T=50), tmp_path / "run")
    trained = TrainedRun(Run(tmp_path / "run"), other_protocol(Run(tmp_path / "run"), []))
    assert trained.module.model.router.table(0).shape[0] == 50


def test_a_milestone_is_a_file_of_its_own(tiny, tmp_path):
    run(tiny(checkpoint__milestones=3), tmp_path)
    steps = [
        torch.load(tmp_path / "ckpt" / name, weights_only=True)["global_step"]
        for name in ("step=3.ckpt", "step=6.ckpt", "last.ckpt")
    ]
    assert steps == [3, 6, 6]


def test_every_json_of_a_run_ends_its_line(tmp_path):
    directory = Run(tmp_path)
    directory.update_meta(status="running")
    directory.write_results({"score": 1.0})
    directory.write_evaluation("other", {"score": float("inf")})
    files = sorted(tmp_path.rglob("*.json"))
    assert [file.name for file in files] == ["other.json", "meta.json", "results.json"]
    for file in files:
        assert file.read_text().endswith("\n}\n")
