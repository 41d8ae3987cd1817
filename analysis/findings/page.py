"""docs/findings.md: verdicts, effects and figures of the registered claims, from archived runs."""

__all__ = ["README_END", "README_START", "summary", "verdict_table", "write_findings"]

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader

from analysis.drawing.style import Drawing, save
from analysis.findings import figures
from analysis.findings.archive import SUFFIX, Archive
from analysis.findings.claims import CLAIMS, DATA, DIGITS, GAINS, MASKS, WHERE, Claim
from analysis.findings.judge import MISSING, REFUTED, UNDECIDED, VERDICTS, Judged, judge
from analysis.findings.measures import CKA_ALL, EIGHTHS, LOSS, SCORE
from analysis.findings.orders import Cost, Curve, Order, cost, overlap_curve, paper_order
from analysis.tables.text import Text, p_value
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import writing

HERE = Path(__file__).parent
README_START, README_END = "<!-- findings -->", "<!-- /findings -->"
ON_THE_WAY = 300  # samples of a score on the way


@dataclass(frozen=True)
class Findings:
    """All that was found: effects by claim, those of the held-out loss, curves and orders."""

    effects: dict[str, list[Judged]]
    losses: dict[str, list[Judged]]
    eighths: list[Judged]
    gains: dict[str, dict[str, dict[float, Judged]]]
    curve: Curve
    cost: Cost | None
    orders: dict[str, Order | None]

    @classmethod
    def of(cls, archive: Archive) -> "Findings":
        """Returns what the runs of an archive show.

        Each measure is corrected for its own tests; those that only repeat a claim at another size
        or length, or look at a part of the timeline, are corrected for none.
        """
        scored = {
            claim.number: [replace(c, measure=LOSS, within=None) for c in claim.comparisons]
            for claim in CLAIMS
            if all(c.measure is SCORE for c in claim.comparisons)
        }
        alone = {
            name: {
                data.name: {x: judge([c], archive)[0] for x, c in effects.items()}
                for data, effects in parts.items()
            }
            for name, (_, parts) in GAINS.items()
        }
        eighths = [judge([replace(c, measure=m)], archive)[0] for c in WHERE for m in EIGHTHS]
        return cls(
            _by_claim({claim.number: claim.comparisons for claim in CLAIMS}, archive),
            _by_claim(scored, archive),
            eighths,
            alone,
            overlap_curve(archive),
            cost(archive),
            {data.name: paper_order(archive, data) for data in MASKS},
        )

    def verdicts(self, claim: Claim) -> dict[str, str]:
        """Returns {data: verdict} of a claim; several comparisons are counted."""
        if claim.number == "10":
            return {DIGITS.name: self.cost.verdict if self.cost else MISSING}
        if claim.number == "11b":
            return {DIGITS.name: self.curve.verdict}
        found: dict[str, list[str]] = {}
        for each in self.effects[claim.number]:
            found.setdefault(each.comparison.data.name, []).append(each.verdict)
        if claim.number == "11a":  # registered: one difference beyond chance refutes the whole
            return {
                data: REFUTED if REFUTED in verdicts else _counted(verdicts)
                for data, verdicts in found.items()
            }
        return {data: _counted(verdicts) for data, verdicts in found.items()}


def _by_claim(comparisons: Mapping[str, Sequence], archive: Archive) -> dict[str, list[Judged]]:
    flat = [(number, c) for number, each in comparisons.items() for c in each]
    judged = judge([c for _, c in flat], archive)
    found: dict[str, list[Judged]] = {number: [] for number in comparisons}
    for (number, _), each in zip(flat, judged, strict=True):
        found[number].append(each)
    return found


def _counted(verdicts: Sequence[str]) -> str:
    """Returns `undecided`, or `supported 2, undecided 1`."""
    counts = Counter(verdicts)
    if len(counts) == 1:
        return verdicts[0]
    return ", ".join(f"{verdict} {number}" for verdict, number in counts.most_common())


def verdict_table(found: Findings) -> str:
    """Returns the verdict on every claim and data set as a Markdown table."""
    verdicts = [found.verdicts(claim) for claim in CLAIMS]
    columns = {"#": [c.number for c in CLAIMS], "claim": [c.sentence for c in CLAIMS]}
    columns |= {data.name: [each.get(data.name, "") for each in verdicts] for data in DATA}
    return Text(columns, [*columns], "").markdown().strip()


def summary(found: Findings) -> str:
    """Returns the claims by verdict, as a Markdown table of a few lines: each with its data."""
    rows: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for claim in CLAIMS:
        by_verdict: dict[str, list[str]] = {}
        for data, verdict in found.verdicts(claim).items():
            whole = verdict if verdict in rows else UNDECIDED
            counts = f": {verdict}" if verdict not in rows else ""
            by_verdict.setdefault(whole, []).append(f"{data}{counts}")
        for verdict, where in by_verdict.items():
            rows[verdict].append(f"{claim.number} {claim.sentence} ({'; '.join(where)})")
    known = {verdict: claims for verdict, claims in rows.items() if claims and verdict != MISSING}
    lines = [f"| {verdict} | {' <br> '.join(claims)} |" for verdict, claims in known.items()]
    return "\n".join(["| verdict | claims |", "|---|---|", *lines])


def write_findings(
    folder: Path, page: Path, images: Path, readme: Path | None = None
) -> list[Path]:
    """Writes the page from the archives in a folder, its figures, and the README's table.

    The figures' PDFs and numbers stand beside the archives, their PNGs in `images`. Returns the
    paths. UserError if there is no archive.
    """
    with Archive(folder) as archive:
        if not archive.sweeps:
            raise UserError(f"no archive (NAME{SUFFIX}) in {folder}; name the sweeps' directories")
        found = Findings.of(archive)
        written = []
        for name, drawing in _figures(found, archive):
            pdf, png, table = save(drawing, images, name)
            written += [png, *(path.replace(folder / path.name) for path in (pdf, table))]
        text = _page(found, archive, images.relative_to(page.parent).as_posix())
    _replace(page, text)
    if readme is not None:
        before, _, rest = readme.read_text().partition(README_START)
        table = f"{README_START}\n\n{summary(found)}\n\n{README_END}"
        _replace(readme, before + table + rest.partition(README_END)[2])
    return [*written, page, *([readme] if readme else [])]


def _replace(path: Path, text: str) -> None:
    with writing(path) as part:
        part.write_text(text)


def _figures(found: Findings, archive: Archive) -> Iterator[tuple[str, Drawing]]:
    for number, judged in found.effects.items():
        if known := _known(judged):
            yield f"claim_{number}", figures.effects(known)
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
        points = {data: known for data, each in found.gains[name].items() if (known := _both(each))}
        if points:
            yield name, figures.gains(points, label)
    if known := _known(found.eighths):
        yield "eighths", figures.eighths(known)


def _known(judged: Sequence[Judged]) -> list[Judged]:
    return [each for each in judged if math.isfinite(each.effect)]


def _both(effects: Mapping[float, Judged]) -> dict[float, Judged]:
    known = {x: each for x, each in effects.items() if math.isfinite(each.effect)}
    return known if len(known) > 1 else {}


class Section(NamedTuple):
    """What the page shows of a claim: its verdicts, effects, figures, and what they say."""

    number: str
    sentence: str
    verdicts: dict[str, str]
    table: str
    pictures: list[tuple[str, str]]
    words: str


PICTURES = {"4": ["on_the_way"], "8": ["cka"], "9": ["sizes"], "10": ["cost"]}
PICTURES |= {"11b": ["overlap"], "13": ["lengths"]}


def _page(found: Findings, archive: Archive, images: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    words = yaml.safe_load((HERE / "words.yaml").read_text())
    drawn = {name for name, _ in _figures(found, archive)}
    sections = []
    for claim in CLAIMS:
        names = [f"claim_{claim.number}", *PICTURES.get(claim.number, [])]
        pictures = [(name, f"{images}/{name}.png") for name in names if name in drawn]
        table = _effects(found.effects[claim.number], found.losses.get(claim.number, []))
        verdicts = found.verdicts(claim)
        sections.append(
            Section(
                claim.number,
                claim.sentence,
                verdicts,
                table,
                pictures,
                words.get(claim.number, ""),
            )
        )
    compute = {
        name: (len(runs), sum(run.number("seconds") for run in runs) / 3600)
        for name, runs in archive.sweeps.items()
    }
    return environment.get_template("findings.md.j2").render(
        table=verdict_table(found),
        sections=sections,
        words=words,
        found=found,
        compute=compute,
        eighths=f"{images}/eighths.png" if "eighths" in drawn else "",
        registered=(HERE / "registered.md").read_text().strip(),
    )


def _effects(judged: Sequence[Judged], losses: Sequence[Judged]) -> str:
    """Returns the table of a claim: the effect on its measure, and on the held-out loss."""
    if not (rows := _known(judged)):
        return ""
    others = {(e.comparison.data, e.comparison.label): e for e in losses}
    columns = {
        "comparison": [e.comparison.label for e in rows],
        "data": [e.comparison.data.name for e in rows],
        "seeds": [str(e.n) for e in rows],
        "difference in": [f"{'rank of ' * e.ranked}{e.comparison.measure.name}" for e in rows],
        "mean [interval]": [_interval(e) for e in rows],
        "p": [_p(e.p) for e in rows],
        "p, corrected": [_p(e.p_holm) if e.comparison.data.tested else "-" for e in rows],
        "would be seen": [f"{e.detectable:.{_digits(e)}f}" for e in rows],
        "verdict": [e.verdict for e in rows],
    }
    if losses:
        same = [others[e.comparison.data, e.comparison.label] for e in rows]
        columns["held-out loss"] = [_interval(e) for e in same]
    words = ["comparison", "data", "difference in", "verdict"]
    return Text(columns, words, "").markdown().strip()


def _digits(judged: Judged) -> int:
    return 1 if judged.ranked else judged.comparison.measure.digits


def _interval(judged: Judged) -> str:
    if not math.isfinite(judged.effect):
        return "-"
    low, mean, high = (
        f"{value:+z.{_digits(judged)}f}" for value in (judged.low, judged.effect, judged.high)
    )
    return f"{mean} [{low}, {high}]"


def _p(p: float) -> str:
    return p_value(p).rstrip("*")
