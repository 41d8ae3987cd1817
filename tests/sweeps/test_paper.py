"""The papers' experiments: every config and every point builds, and says what it takes."""

import re
from functools import cache
from io import StringIO

import pytest
import yaml
from rich.console import Console

from analysis.tables import paper_rows
from dtr_lightning.config.parser import resolve
from dtr_lightning.data import NoImages
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import planning
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.rundir.naming import flatten
from sweeps.engine import costs, driver, plan, preview, recipe
from sweeps.engine.folder import Folder
from sweeps.engine.published import Published, beside, read_published
from sweeps.engine.workers import Workers
from tests.conftest import ROOT, slow_except
from tests.sweeps import standin
from tests.sweeps.standin import write

SWEEPS = recipe.folders()["paper"]
CONFIGS = sorted((ROOT / "configs" / "paper").glob("*.yaml"))
REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text()
PAGE = {
    name: (int(trainings), hours)
    for name, trainings, hours in re.findall(
        r"^\| `(paper/[\w/]+)` \|.*\| (\d+) \| ([\d,]+) \|$", REPRODUCE, re.M
    )
}
UNKNOWN_TO_ANALYSIS = {"paper/ant/l2", "paper/ant/s2"}  # published.yaml has no table of ANT
# Parameters of a network of 1,000 classes, or of one; of Switch-DiT all experts.
PARAMETERS = {
    ("DiT_S", 1000): 32_963_360,
    ("DiT_B", 1000): 130_512_416,
    ("DiT_B", 1): 130_512_416 - 1000 * 768,  # one row of labels for 1,001
    ("DiT_L", 1000): 458_102_816,
    ("DiT_XL", 1000): 675_129_632,
    ("ADM", 1000): 295_904_454 + 768,  # guided-diffusion's, and the row of the null class
    ("ADM", 1): 295_136_454,
    ("TextDiT", 1): 179_943_968,  # its size is ours
}
ROUTER = '''
from torch import nn
from dtr_lightning.routing import Router

class Gain(Router):
    """A map of the embedding of its own.

    Args:
        hidden: its width.
    """

    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        self.hidden = hidden

    def bind(self, tasks, widths, emb_channels, channel_dim=-1):
        super().bind(tasks, widths, emb_channels, channel_dim)
        self.map = nn.Linear(emb_channels, self.hidden)

    def forward(self, t, emb):
        _ = {look}
        gain = 1 + self.map(emb).mean()
        return [lambda z: z * gain] * self.blocks
'''
SIZES = {"DiT_S": (12, 384), "DiT_B": (12, 768), "DiT_L": (24, 1024), "DiT_XL": (28, 1152)}


def parameters_of(config):
    """Returns the parameters of a config: per block Switch-DiT adds 3 experts and their gate."""
    kind, classes = config["model"]["class_path"], config["data"]["init_args"]["num_classes"]
    known = PARAMETERS[kind, classes] * config["experts"]
    if config["router"]["class_path"] == "Switch":
        depth, c = SIZES[kind]
        known += depth * (3 * (c * c + c) + 3 * (c + 1))
    return known


def images_of(config):
    """Returns the sizes that a sweep with this config states of its images."""
    return next(
        found.images for found in map(recipe.read, SWEEPS) if found.config.stem == config.stem
    )


@pytest.fixture(scope="module")
def plans():
    """Returns a function to the plan of a sweep whose images are not there."""
    return cache(lambda name: plan.resolve_all(costs.without_images(recipe.read(name))))


@pytest.mark.parametrize("file", slow_except(CONFIGS, CONFIGS[0]), ids=lambda file: file.stem)
def test_a_config_says_its_parameters_and_its_memory(file):
    sizes = {f"data.{k}": v for k, v in images_of(file).items() if k != costs.PIXELS}
    config = resolve(file, {"data": "NoImages"} | sizes)
    experiment = Experiment(config, meta=True)
    assert experiment.parameters() == (parameters := parameters_of(config))
    head = file.read_text()
    assert f"{parameters / 1e6:.2f} M" in head.replace("\n# ", " ")
    (stated, *_) = re.findall(r"([\d.]+) GiB on each", head.replace("\n# ", " "))
    assert f"{costs.memory_of_step(config, experiment) / 2**30:.1f}" == stated
    assert f"--config configs/paper/{file.name}" in head and "ublished" in head


@pytest.mark.parametrize("name", slow_except(SWEEPS, "paper/table1/imagenet256", "paper/table6"))
def test_a_dry_run_counts_every_point_and_shows_what_was_published(name, plans):
    sweep, folder, printed = plans(name), Folder(ROOT / "no such runs"), StringIO()
    assert {p.config["data"]["class_path"] for p in sweep.points} == {"NoImages"}
    console = Console(file=printed, width=300)
    need = preview.preview(sweep, folder, Workers(folder), None, console)
    text = printed.getvalue()
    assert {*need.parameters} == {parameters_of(point.config) for point in sweep.points}
    assert text.count("waiting  ") == need.trainings == len(sweep.points)
    for label in sweep.recipe.published.rows if sweep.recipe.published else ():
        assert sweep.recipe.published.text(label) in text
    known = "published: no numbers that are known to us" not in text
    assert known == (sweep.recipe.published is not None)
    assert sweep.recipe.source in text and "GPU-hours" in text and "GiB of each GPU" in text
    assert not folder.path.exists()
    assert (int(need.trainings), f"{need.hours:,.0f}") == PAGE[name]


@pytest.mark.parametrize("name", slow_except(SWEEPS, "paper/table3", "paper/switch_dit/s2"))
def test_every_plan_could_start_once_its_images_are_there(name, plans):
    planning.check_parts({point.label: point.config for point in plans(name).points})


@pytest.mark.parametrize("name", sorted({*SWEEPS} - UNKNOWN_TO_ANALYSIS))
def test_published_numbers_are_those_of_the_analysis(name):
    published = recipe.read(name).published
    if published is None:
        assert "not known to us" in recipe.find(name).read_text()
        return
    known = [
        [value for value in row.get("published", ()) if value is not None]
        for entry in paper_rows.published().values()
        for row in entry["rows"]
    ]
    for label, numbers in published.rows.items():
        assert any(all(v in row for v in numbers.values()) for row in known), label


def test_nothing_is_trained_twice(plans):
    seen = {}
    for name in SWEEPS:
        for point in plans(name).points:
            identity = flatten({k: v for k, v in point.config.items() if k != "trainer"})
            identity = {k: v for k, v in identity.items() if not k.startswith("evaluation.")}
            steps = point.config["trainer"]["max_steps"]
            key = str(sorted(map(str, (identity | {"steps": steps}).items())))
            assert key not in seen, (name, seen[key])
            seen[key] = name


def test_the_published_grids_are_there(plans):
    counts = {name: len(plans(name).points) for name in SWEEPS}
    tables = {folder: sum(counts[name] for name in recipe.members(folder)) for folder in (
        "paper/table1", "paper/table2", "paper/table3", "paper/table6", "paper/table8",
        "paper/switch_dit",
    )}  # fmt: skip
    assert tables["paper/table2"] == 10 and tables["paper/table3"] == 1
    assert tables["paper/table6"] == 1 and tables["paper/table8"] == 3
    assert tables["paper/switch_dit"] == 6
    assert all(sweep in SWEEPS or sweep in recipe.folders()
               for name in SWEEPS for sweep in recipe.read(name).also)  # fmt: skip


# Names


def test_a_folder_stands_for_its_sweeps_and_a_path_for_its_name():
    assert recipe.members("paper/table2") == ["paper/table2/ffhq256", "paper/table2/imagenet256"]
    assert recipe.members("masking") == ["masking"]
    assert {*recipe.members("paper")} == {*SWEEPS}
    path = ROOT / "sweeps" / "paper" / "table2" / "ffhq256.yaml"
    assert recipe.read(path).name == recipe.read("paper/table2/ffhq256").name
    assert str(driver.default_folder("paper/table3", {})) == "runs/paper/table3"


def test_a_wrong_name_is_told_the_sweeps_by_their_folders():
    with pytest.raises(UserError, match=r"masking.*paper/table2/ \(ffhq256, imagenet256\)"):
        recipe.find("paper/table9")
    with pytest.raises(UserError, match="name one of them: paper/table2/ffhq256"):
        recipe.find("paper/table2")
    assert not any("/" in name for name in recipe.names())


# Published numbers


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("{table: A, rows: {DTR alpha=4: {FID: x}}}", "got DTR alpha=4"),
        ("{table: A, rows: [1]}", "got rows"),
        ("{rows: {}}", "published takes"),
        ("{table: A, rows: {RTR: {FID: 1}}}", "unknown row in published 'RTR'; valid: DTR"),
    ],
)
def test_published_numbers_that_fit_no_point_are_refused(rows, says, tmp_path, monkeypatch):
    standin.install(monkeypatch)
    path = write(tmp_path, f"config: b\ngrid: [{{router: DTR}}]\npublished: {rows}")
    with pytest.raises(UserError, match=says):
        plan.resolve_all(recipe.read(path))


def test_measured_numbers_stand_beside_the_published_ones():
    published = read_published({"table": "Table 9", "rows": {"DTR": {"FID": 7.32}}}, "x")
    assert published == Published("Table 9", {"DTR": {"FID": 7.32}})
    console = Console(file=StringIO(), width=100)
    console.print(beside(published, "score", {"DTR": [7.5, None, 7.4], "RTR": [12.0]}))
    text = " ".join(console.file.getvalue().split())
    assert "DTR 7.5, 7.4 7.32" in text and "RTR 12 -" in text and "Table 9" in text


def test_the_findings_name_sweeps_and_their_hours():
    words = yaml.safe_load((ROOT / "analysis" / "findings" / "words.yaml").read_text())
    rows = [line for line in words["settle"].splitlines() if "`paper/" in line]
    for row in rows:
        hours = sum(int(PAGE[name][1].replace(",", "")) for name in re.findall(r"`(.+?)`", row))
        assert row.endswith(f"| {hours} |")
    assert rows


def test_what_sweeps_take_adds_up():
    needs = [costs.Need(1, 2.0, 1.0, 3, 4, 5, (7,)), costs.Need(2, 3.0, 1.0, 1, 9, 2, (6, 7))]
    assert costs.Need.total(needs) == (3, 5.0, 2.0, 4, 9, 5, (6, 7), True)
    assert costs.Need.total([*needs, needs[0]._replace(memory=None)]).memory is None


@pytest.mark.parametrize(
    ("name", "look"), [("plain_gain", "emb"), ("gain_of_values", "emb.sum().item()")]
)
def test_an_own_learned_router_is_counted_by_its_options(name, look, tmp_path, monkeypatch):
    """Two widths are two counts; a class that looks at values has no memory, and says so."""
    (tmp_path / f"{name}.py").write_text(ROUTER.format(look=look))
    monkeypatch.syspath_prepend(tmp_path)
    path = write(
        tmp_path,
        f"config: {ROOT / 'configs' / 'digits.yaml'}\nsteps_per_second: 2\n"
        "images: {in_channels: 1, image_size: 8, num_classes: 10}\n"
        f"grid: [{{router: {name}.Gain, router.hidden: [2, 30]}}]\n",
    )
    sweep = plan.resolve_all(costs.without_images(recipe.read(path)))
    need = costs.need_of(sweep, [point.config for point in sweep.points])
    assert len(need.parameters) == need.trainings == 2
    assert (need.memory is None) == (name == "gain_of_values")
    assert ("memory unknown" in need.lines(sweep)[0]) == (need.memory is None)


def test_sizes_of_images_need_a_speed(tmp_path):
    images = "images: {in_channels: 4, image_size: 32}"
    path = write(tmp_path, f"config: b\ngrid: [{{router: DTR}}]\n{images}")
    with pytest.raises(UserError, match="images need steps_per_second too"):
        recipe.read(path)


def test_captions_that_are_not_there_have_sizes_and_nothing_else():
    data = NoImages(4, 32, text_tokens=77, text_channels=768)
    assert data.captions.null.shape == (77, 768)
    with pytest.raises(UserError, match="no captions"):
        data.captions.draw(2, "cpu")
    with pytest.raises(UserError, match="belong together"):
        NoImages(4, 32, text_tokens=77)
