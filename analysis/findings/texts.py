"""The tables of docs/findings.md, as Markdown, and that of the README."""

__all__ = ["effects_table", "explored_table", "known", "notes", "said", "summary", "verdict_table"]

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from analysis.findings.archive import Archive
from analysis.findings.claims import CLAIMS, DATA, Claim
from analysis.findings.found import Findings
from analysis.findings.judge import MISSING, REFUTED, SUPPORTED, UNDECIDED, VERDICTS, Judged
from analysis.tables.text import Text, p_value
from dtr_lightning.experiment.notes import notes_of

ALONE = {data.name for data in DATA if not data.tested}  # decided by the interval alone


def said(data: str, verdict: str) -> str:
    """Returns a verdict, and that it is of the interval alone where it is."""
    decided = SUPPORTED in verdict or REFUTED in verdict
    return f"{verdict} by the interval alone" if decided and data in ALONE else verdict


def verdict_table(found: Findings) -> str:
    """Returns the verdict on every claim and data set as a Markdown table."""
    verdicts = [found.verdicts(claim) for claim in CLAIMS]
    columns = {"#": [c.number for c in CLAIMS], "claim": [c.sentence for c in CLAIMS]}
    for data in DATA:
        names = [each.get(data.name, "") for each in verdicts]
        columns[data.name] = [said(data.name, verdict) for verdict in names]
    return Text(columns, [*columns], "").markdown().strip()


def summary(found: Findings) -> str:
    """Returns the claims by verdict, as a Markdown table of a few lines: each with its data.

    What was not run yet is left out.
    """
    rows: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS if verdict != MISSING}
    for claim in CLAIMS:
        by_verdict: dict[str, list[str]] = {}
        for data, verdict in found.verdicts(claim).items():
            counts = f": {verdict}" if verdict not in VERDICTS else ""
            whole = UNDECIDED if counts else verdict
            alone = said(data, verdict).removeprefix(verdict)
            by_verdict.setdefault(whole, []).append(f"{data}{counts}{alone}")
        for verdict in rows.keys() & by_verdict.keys():
            where = "; ".join(by_verdict[verdict])
            rows[verdict].append(f"{claim.number} {claim.sentence} ({where})")
    lines = [
        f"| {verdict} | {' <br> '.join(claims)} |" for verdict, claims in rows.items() if claims
    ]
    return "\n".join(["| verdict | claims |", "|---|---|", *lines])


def effects_table(judged: Sequence[Judged], losses: Sequence[Judged]) -> str:
    """Returns the table of a claim: the effect on its measure, and on the held-out loss."""
    if not (rows := known(judged)):
        return ""
    others = {(e.comparison.data, e.comparison.label): e for e in losses}
    columns = {
        "comparison": [e.comparison.label for e in rows],
        "data": [e.comparison.data.name for e in rows],
        "seeds": [str(e.n) for e in rows],
        "difference in": [f"{'rank of ' * e.ranked}{e.comparison.measure.name}" for e in rows],
        "mean [interval]": [_interval(e) for e in rows],
        "p": [_p(e.p) for e in rows],
        "p, corrected": [_corrected(e) for e in rows],
        "seen": [f"{e.detectable:.{_digits(e)}f}" for e in rows],
        "verdict": [said(e.comparison.data.name, e.verdict) for e in rows],
    }
    if losses:
        same = [others[e.comparison.data, e.comparison.label] for e in rows]
        columns["held-out loss"] = [_interval(e) for e in same]
        columns["its p, corrected"] = [_corrected(e) for e in same]
    words = ["comparison", "data", "difference in", "verdict"]
    return Text(columns, words, "").markdown().strip()


def explored_table(judged: Sequence[Judged]) -> str:
    """Returns a table of effects without verdicts; empty if none is known."""
    if not (rows := known(judged)):
        return ""
    columns = {
        "comparison": [e.comparison.label for e in rows],
        "data": [e.comparison.data.name for e in rows],
        "seeds": [str(e.n) for e in rows],
        "difference in score [interval]": [_interval(e) for e in rows],
        "p": [_p(e.p) for e in rows],
    }
    return Text(columns, ["comparison", "data"], "").markdown().strip()


def notes(claim: Claim, archive: Archive) -> Iterator[str]:
    """Yields what makes scores of a claim's runs unreliable, a sentence each, and of how many."""
    for comparison in claim.comparisons:
        runs = [
            run
            for sweep, options in (*comparison.plus, *comparison.minus)
            for seed, run in archive.runs(sweep, options).items()
            if seed in comparison.seeds
        ]
        counts = Counter(sentence for run in runs for sentence in notes_of(run.results).values())
        for sentence, count in counts.items():
            where = f"{comparison.label}, {comparison.data.name}"
            yield f"{where}, {count} of {len(runs)} runs: {sentence}."


def known(judged: Sequence[Judged]) -> list[Judged]:
    """Returns those that have an effect."""
    return [each for each in judged if math.isfinite(each.effect)]


def _digits(judged: Judged) -> int:
    return 1 if judged.ranked else judged.comparison.measure.digits


def _interval(judged: Judged) -> str:
    if not math.isfinite(judged.effect):
        return "-"
    low, mean, high = (
        f"{value:+z.{_digits(judged)}f}" for value in (judged.low, judged.effect, judged.high)
    )
    return f"{mean} [{low}, {high}]"


def _corrected(judged: Judged) -> str:
    return _p(judged.p_holm) if judged.comparison.data.tested else "-"


def _p(p: float) -> str:
    return p_value(p).rstrip("*")
