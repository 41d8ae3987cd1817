"""The pages are true: links, commands, options, figures and YAMLs exist, and code in them runs."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest
import yaml

import dtr_lightning as dtr
from analysis.catalog import FIGURES, PROBES, TABLES, check_names, figure
from dtr_lightning.config.parser import AXES, make_parser, parse
from dtr_lightning.config.registry import options
from dtr_lightning.experiment.load import other_protocol
from dtr_lightning.rundir.run import Run
from sweeps.engine.plan import resolve_all
from sweeps.engine.recipe import members, read
from tests.conftest import ROOT, TINY, shipped
from tests.test_architecture import HOUSES

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
OPTIONS = ROOT / "docs" / "options.md"
COMMANDS = ("train", "evaluate", "sample", "make_reference", "sweep")
OF_READERS = {"my_router.py", "my_sweep.yaml", "mine.yaml", "config.yaml", "captions.txt"}


class Block(NamedTuple):
    """A block of code of a page: its language ("" where none is told) and its text."""

    language: str
    text: str


def blocks(page):
    """Yields the fenced and the indented blocks of a page."""
    text = page.read_text()
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    yield from (Block(*found.groups()) for found in fence.finditer(text))
    for found in re.finditer(r"(?:^    .*\n|^\n(?=    ))+", fence.sub("", text), re.M):
        yield Block("", re.sub(r"^    ", "", found[0], flags=re.M).strip() + "\n")


def commands(page):
    """Yields the words of every `python ...` of a page's blocks, tables and sentences."""
    lines = [line for b in blocks(page) if not b.language for line in joined(b.text)]
    lines += re.findall(r"`([^`\n]*\bpython [^`\n]*|[^`\n]*\btrain\.py [^`\n]*)`", page.read_text())
    for line in lines:
        for part in re.split(r"&&|;|&", re.sub(r"(?:^|\s)#.*", "", line)):
            words = shlex.split(part) if re.search(r"\bpython |\btrain\.py ", part) else []
            while words and not words[0].startswith("python") and "train.py" not in words[:1]:
                words = words[1:]  # variables, srun, torchrun
            if len(words) > 1 and words[1:3] != ["-m", "venv"] and "$sweep" not in words:
                yield words if words[0].startswith("python") else ["python", *words]


def joined(text):
    return text.replace("\\\n", " ").splitlines()


def slugs(page):
    """Returns the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


ALL = sorted({tuple(words) for page in PAGES for words in commands(page)})


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            name, _, anchor = unquote(link).partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in slugs(target), link


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_page_holds_the_marks_of_a_merge(page):
    assert not re.search(r"^(<{7}|>{7}|={7})( |$)", page.read_text(), re.M)


def test_every_page_and_picture_is_linked_and_pictures_are_small():
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    }
    pictures = [path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()]
    assert {*PAGES, *pictures} - linked == set()
    assert sum(picture.stat().st_size for picture in pictures) < 3e6


def test_readme_is_short_and_begins_with_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    setup = "python3 -m venv .venv && . .venv/bin/activate && pip install -r"
    found = [b.text.strip() for b in blocks(ROOT / "README.md") if not b.language][:2]
    assert found == [
        f"{setup} requirements.txt && python sweep.py",
        f"{setup} requirements-dev.txt && python -m pytest",
    ]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_yamls_and_other_files_that_a_page_names_exist(page):
    text = page.read_text()
    pattern = r"(?<![\w*/.:-])(?:\.\./)*[\w-]+(?:/[\w-]+)*\.(?:yaml|py|txt|sbatch)\b"
    configs = [ROOT / "configs", *(ROOT / "configs").glob("*/")]
    places = [page.parent, ROOT, ROOT / "sweeps", *configs]
    for name in set(re.findall(pattern, text)) - OF_READERS:
        assert name[:5] == "path/" or any((place / name).exists() for place in places), name


# Commands


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Returns a run that was trained, for commands on RUN."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    dtr.train(ROOT / "configs" / "digits.yaml", TINY, out)
    return out


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the router and the sweeps of the pages into the working directory of a reader."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (code,) = [b.text for b in blocks(ROOT / "README.md") if b.language == "python"]
    (tmp_path / "my_router.py").write_text(code)
    for page, name in (("README.md", "my_sweep.yaml"), ("docs/images.md", "mine.yaml")):
        (text,) = [b.text for b in blocks(ROOT / page) if b.language == "yaml"]
        (tmp_path / name).write_text(text)
    yield tmp_path
    sys.modules.pop("my_router", None)


class Parsed(Exception):
    """What a command's parser made of its words."""


@pytest.fixture
def parsed(monkeypatch):
    """Returns a function from a command's module and words to its options and what is left."""
    original = argparse.ArgumentParser.parse_known_args
    depth = []

    def keep(parser, *arguments, **named):
        depth.append(parser)
        found = original(parser, *arguments, **named)
        depth.pop()
        if depth:  # of a subcommand
            return found
        raise Parsed(*found)

    def parse_words(module, words):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", keep)
        monkeypatch.setattr(sys, "argv", [module, *words])
        with pytest.raises(Parsed) as found:
            importlib.import_module(module).main()
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", original)
        return found.value.args

    return parse_words


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_commands_can_be_given(words, own, tiny_run, parsed):
    program, *given = words[1:]
    if program == "-m":
        program, *given = given
    file = program if "/" in program or program.endswith(".py") else ""
    assert not file or (ROOT / file).is_file()
    given = [{"RUN": str(tiny_run), "DIR": str(own), "DIR...": str(own)}.get(w, w) for w in given]
    if program == "train.py":
        given = [w for w in given if w != "..."]
        asks = [w for w in given if w.endswith("help") or w == "--print_config"]
        config = [] if "--config" in given else ["--config", "configs/digits.yaml"]
        parser = make_parser()
        parser.add_argument("--out")
        parser.add_argument("--fast-dev-run", action="store_true")
        parse(parser, [*config, *given[: -2 * len(asks) or None]])
    elif program == "pytest":
        assert all((ROOT / w).exists() for w in given if w.startswith("tests"))
    elif "--help" in given:
        with pytest.raises(SystemExit, match=r"^0$"):
            parsed("analysis.__main__", given)
    elif program != "docs/make_options.py":
        module = program.removesuffix(".py").replace("/", ".")
        found, rest = parsed("analysis.__main__" if module == "analysis" else module, given)
        if module == "sweep" and found.sweep != "NAME":
            for name in members(found.sweep):
                assert resolve_all(read(name, options=found.set, paper=found.paper)).config
        elif module == "analysis":
            check_names(found.only or ())
        elif module in ("evaluate", "sample"):
            other_protocol(Run(tiny_run), rest)
            rest = []
        elif module == "make_latents" and rest[:1]:
            assert rest.pop(0).startswith("--data.") and len(rest) == 1
            rest = []
        assert rest == []


def test_there_are_commands_of_every_kind():
    programs = {words[1].removesuffix(".py") for words in ALL}
    assert programs >= {*COMMANDS, "-m"} and len(ALL) > 50


# Options, figures


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_dotted_options_exist(page):
    known = {
        f"{axis}.{option}"
        for axis, (base, linked) in AXES.items()
        for name in shipped(base)
        for option in options(base, name) - linked
    }
    known |= {action.dest for action in make_parser()._actions}
    for name in PROBES:
        if config := getattr(figure(name), "CONFIG", None):
            known |= {f"{name}.{option}" for option in config.__annotations__}
    known |= {"router.help", "router.n"}  # the latter is of the README's router
    found = set(re.findall(r"--(\w+\.\w+)", page.read_text()))
    assert found - known == set()


def test_the_page_of_options_is_that_of_the_classes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("make_options")
    _, _, rest = OPTIONS.read_text().partition(page.MARKER)
    assert rest.strip() == page.generated().strip(), "python docs/make_options.py"
    for axis in AXES:
        for name in shipped(AXES[axis][0]):
            assert f"\n### `{name}`\n" in rest


def test_the_first_table_of_the_page_of_options_names_choices_that_there_are():
    rows = re.findall(r"^\| \[`--(\w+)`\].*", OPTIONS.read_text(), re.M)
    assert rows == [*dict.fromkeys(rows)] and {*rows} == {*AXES}
    for axis, (base, _) in AXES.items():
        row = re.search(rf"^\| \[`--{axis}`\]\(\S+\) \|(.*)$", OPTIONS.read_text(), re.M)[1]
        assert {*re.findall(r"`(\w+)`", row)} <= {*shipped(base)}  # the sections below have all


def test_the_page_of_figures_shows_figures_that_there_are():
    rows = re.findall(r"^\| `(\w+)` \|.*\|$", (ROOT / "docs" / "figures.md").read_text(), re.M)
    assert len(rows) == len({*rows})
    assert {*rows} <= {*FIGURES, *PROBES, *TABLES}  # a figure is added without an entry there
    pictures = {file.stem for file in (ROOT / "docs" / "images").glob("*.png")}
    assert pictures == {*rows} - {*TABLES}


def test_the_page_of_sweeps_names_every_sweep_and_its_trainings():
    text = (ROOT / "docs" / "sweeps.md").read_text()
    rows = dict(re.findall(r"^\| `python sweep\.py ?(\w*)` \|.*\| (\d+) \|$", text, re.M))
    rows["alpha_beta"] = rows.pop("")
    assert set(rows) == {file.stem for file in (ROOT / "sweeps").glob("*.yaml")}
    for name, trainings in rows.items():
        recipe = read(name)
        assert (recipe.trials or len(recipe.assignments)) * recipe.seeds == int(trainings)


@pytest.mark.parametrize(("house", "floors"), HOUSES.items())
def test_the_page_on_development_shows_the_rooms_as_they_are(house, floors):
    text = (ROOT / "docs" / "development.md").read_text()
    table = text.split(f"| floor | rooms of {house} |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| (.*?)(?: \(.*|:.*)? \|$", table, re.M)
    shown = {int(floor): set(re.findall(r"`(\w+)`", rooms)) for floor, rooms in rows}
    assert shown == dict(enumerate(floors, 1))
    if house == "dtr_lightning":
        drawn = re.findall(r'^ +(\w+)\["\1: ', text, re.M)
        assert sorted(drawn) == sorted(room for rooms in floors for room in rooms)


# Code


@pytest.mark.parametrize(
    "text",
    [b.text for page in PAGES for b in blocks(page) if b.language == "yaml"],
    ids=lambda text: text.splitlines()[1],
)
def test_sweeps_in_pages_can_be_planned(text, own):
    config = yaml.safe_load(text)["config"]
    (own / "sweeps").mkdir()
    folder = own / "sweeps" if config.startswith("..") else own
    (folder / "a.yaml").write_text(text)
    assert resolve_all(read(folder / "a.yaml")).config


def test_a_router_of_the_readme_trains(own):
    changed = TINY | {"router": "my_router.EveryNth", "router.n": 4}
    run = dtr.train("configs/digits.yaml", changed, "runs/own")
    assert run.router.table(0)[1, :6].tolist() == [False, False, False, True, False, False]


def test_classes_of_the_page_on_development_train(own):
    code = [b.text for b in blocks(ROOT / "docs" / "development.md") if b.language == "python"]
    (own / "my_module.py").write_text("\n".join(code))
    sys.modules.pop("my_module", None)  # that of another test
    changed = TINY | {"router": "my_module.Gain", "loss_weight": "my_module.Late"}
    assert dtr.train("configs/digits.yaml", changed, "runs/own").results["steps"] == 6
    sys.modules.pop("my_module")


@pytest.mark.slow
def test_the_page_on_python_runs_like_a_notebook(own):
    space = {"__name__": "__main__"}
    for block in blocks(ROOT / "docs" / "python.md"):
        exec(compile(block.text, "docs/python.md", "exec"), space)
    images, frame = space["images"], space["frame"]
    assert images.shape == (64, 1, 8, 8) and space["mask"].shape == (1000, 768)
    assert space["output"].shape == (2, 2, 8, 8) and space["table"].shape == (1000, 16)
    assert len(frame) == 2 and frame.score.notna().all() and not space["outcome"].failed
    assert {Path(path).name for path in space["written"]} >= {"masks.png", "table.csv"}


def test_the_citation_names_a_paper_for_every_published_method():
    file = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert file["cff-version"] == "1.2.0" and file["authors"] and file["license"] == "MIT"
    for reference in file["references"]:
        assert reference["authors"] and reference["year"] and reference["identifiers"]
    titles = " ".join(reference["title"] for reference in file["references"])
    for words in (
        *("Task Routing", "Switch Diffusion", "Negative Transfer", "Min-SNR", "Perception"),
        *("Uncertainty", "Gradient Surgery", "Bargaining", "Roaming", "Scalable Diffusion"),
        *("Beat GANs", "Implicit Models", "DPM-Solver", "SiT", "Flow Matching"),
    ):
        assert words in titles
