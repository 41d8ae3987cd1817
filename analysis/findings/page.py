"""docs/findings.md: verdicts, effects and figures of the registered claims, from archived runs."""

__all__ = ["README_END", "README_START", "words_for", "write_findings"]

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader

from analysis.drawing.style import Drawing, save
from analysis.findings import figures
from analysis.findings.archive import SUFFIX, Archive
from analysis.findings.claims import CLAIMS, DIGITS, GAINS, MASKS, Claim
from analysis.findings.cost import BENCHMARK
from analysis.findings.found import Findings
from analysis.findings.judge import Judged
from analysis.findings.measures import CKA_ALL
from analysis.findings.texts import (
    effects_table,
    explored_table,
    known,
    notes,
    said,
    summary,
    verdict_table,
)
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import writing

HERE = Path(__file__).parent
README_START, README_END = "<!-- findings -->", "<!-- /findings -->"
ON_THE_WAY = 300  # samples of a score on the way
# Figures beside those of a claim's effects: {name: what is to be seen}.
PICTURES = {
    "4": {"on_the_way": "score over training steps of no routing, R-TR and DTR"},
    "8": {"cka": "CKA of all pairs of timesteps, a row per router and a column per block"},
    "9": {"sizes": "score of DTR less that of no routing, over the channels of the network"},
    "10": {"cost": "steps per second of DTR over those of no routing, round by round"},
    "11b": {"overlap": "score over the share of channels that two tasks both read"},
    "13": {"lengths": "score of DTR less that of no routing, over the training steps"},
}
EFFECTS = "the difference of every seed, their mean and its interval"


def write_findings(
    archive: Archive, page: Path, images: Path, readme: Path | None = None
) -> list[Path]:
    """Writes the page from an open archive, its figures, and the README's table.

    The figures' PDFs and numbers stand beside the archives, their PNGs in `images`; figures that
    are no longer drawn are deleted. Returns the paths. UserError if there is no run.
    """
    folder = archive.folder
    if not archive.sweeps:
        raise UserError(f"no archive (NAME{SUFFIX}) in {folder}; name the sweeps' directories")
    found = Findings.of(archive)
    drawn = dict(_figures(found, archive))
    text = _page(found, archive, drawn, images.relative_to(page.parent).as_posix())
    images.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory(dir=folder) as apart:  # all figures are replaced, or none
        saved = [save(drawing, Path(apart), name) for name, drawing in drawn.items()]
        for path in (each for three in saved for each in three):
            place = images if path.suffix == ".png" else folder
            written.append(path.replace(place / path.name))
    for name in _names() - drawn.keys():
        for path in (images / f"{name}.png", folder / f"{name}.pdf", folder / f"{name}.csv"):
            path.unlink(missing_ok=True)
    _replace(page, text)
    if readme is not None:
        before, _, rest = readme.read_text().partition(README_START)
        table = f"{README_START}\n\n{summary(found)}\n\n{README_END}"
        _replace(readme, before + table + rest.partition(README_END)[2])
    return [*written, page, *([readme] if readme else [])]


def _replace(path: Path, text: str) -> None:
    with writing(path) as part:
        part.write_text(text)


def _names() -> set[str]:
    """Returns the names of all figures that the page may have."""
    others = {name for pictures in PICTURES.values() for name in pictures}
    return {"eighths", *others, *(f"claim_{claim.number}" for claim in CLAIMS)}


def _figures(found: Findings, archive: Archive) -> Iterator[tuple[str, Drawing]]:
    for number, judged in found.effects.items():
        if there := known(judged):
            yield f"claim_{number}", figures.effects(there)
    runs = {name: archive.runs(*MASKS[DIGITS][name]) for name in ("none", "R-TR", "DTR")}
    if all(runs.values()):
        yield "on_the_way", figures.on_the_way(runs, ON_THE_WAY)
        members = {name: [*own.values()] for name, own in runs.items()}
        if all(CKA_ALL.of(run, ()) is not None for own in members.values() for run in own):
            yield "cka", figures.cka_matrices(members)
    if len(found.curve.points) > 1:
        yield "overlap", figures.overlap(found.curve)
    if found.cost:
        yield "cost", figures.ratios(found.cost)
    for name, (label, _) in GAINS.items():
        points = {data: both for data, each in found.gains[name].items() if (both := _both(each))}
        if points:
            yield name, figures.gains(points, label)
    if there := known(found.eighths):
        yield "eighths", figures.eighths(there)


def _both(effects: Mapping[float, Judged]) -> dict[float, Judged]:
    there = {x: each for x, each in effects.items() if math.isfinite(each.effect)}
    return there if len(there) > 1 else {}


class Section(NamedTuple):
    """What the page shows of a claim: its verdicts, effects, figures, and what they say.

    pictures: (path, what is to be seen); notes: what makes its scores unreliable; explored: effects
    that were not registered.
    """

    number: str
    sentence: str
    verdicts: str
    table: str
    notes: list[str]
    explored: str
    pictures: list[tuple[str, str]]
    words: str


def _section(
    claim: Claim, found: Findings, archive: Archive, pictures: Mapping[str, str], words: Any
) -> Section:
    verdicts = found.verdicts(claim)
    shown = {f"claim_{claim.number}": f"{claim.sentence}: {EFFECTS}"}
    shown |= PICTURES.get(claim.number, {})
    return Section(
        claim.number,
        claim.sentence,
        "; ".join(f"{data}: {said(data, verdict)}" for data, verdict in verdicts.items()),
        effects_table(found.effects[claim.number], found.losses.get(claim.number, [])),
        [*notes(claim, archive)],
        explored_table(found.explored.get(claim.number, [])),
        [(pictures[name], alt) for name, alt in shown.items() if name in pictures],
        words_for(words, verdicts),
    )


def words_for(words: Mapping[str, Any] | None, verdicts: Mapping[str, str]) -> str:
    """Returns the sentences on a claim if its verdicts are still those they were written for."""
    return words["text"] if words and words["verdicts"] == verdicts else ""


def _page(found: Findings, archive: Archive, drawn: Mapping[str, Drawing], images: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    words = yaml.safe_load((HERE / "words.yaml").read_text())
    pictures = {name: f"{images}/{name}.png" for name in drawn}
    claims = words["claims"]
    compute = {
        name: (len(runs), sum(run.number("seconds") for run in runs) / 3600)
        for name, runs in archive.sweeps.items()
    }
    return environment.get_template("findings.md.j2").render(
        table=verdict_table(found),
        sections=[_section(c, found, archive, pictures, claims.get(c.number)) for c in CLAIMS],
        words=words,
        found=found,
        compute=compute,
        benchmark=BENCHMARK,
        eighths=pictures.get("eighths", ""),
        registered=(HERE / "registered.md").read_text().strip(),
    )
