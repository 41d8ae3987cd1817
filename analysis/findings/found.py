"""All that the archived runs show: an effect per comparison, a verdict per claim and data set."""

__all__ = ["Findings"]

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.findings.archive import Archive
from analysis.findings.claims import CLAIMS, DIGITS, EXPLORED, GAINS, MASKS, WHERE, Claim
from analysis.findings.cost import Cost, read_cost
from analysis.findings.judge import MISSING, REFUTED, Judged, judge
from analysis.findings.measures import EIGHTHS, LOSS, SCORE
from analysis.findings.orders import Curve, Order, Searched, overlap_curve, paper_order, searched


@dataclass(frozen=True)
class Findings:
    """All that was found: effects by claim, those of the held-out loss, curves and orders."""

    effects: dict[str, list[Judged]]
    losses: dict[str, list[Judged]]
    eighths: list[Judged]
    gains: dict[str, dict[str, dict[float, Judged]]]
    curve: Curve
    cost: Cost | None
    explored: dict[str, list[Judged]]
    orders: dict[str, Order | None]
    searched: Searched | None

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
        alone: dict[str, dict[str, dict[float, Judged]]] = {
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
            read_cost(archive.folder),
            {number: [judge([c], archive)[0] for c in each] for number, each in EXPLORED.items()},
            {data.name: paper_order(archive, data) for data in MASKS},
            searched(archive),
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
