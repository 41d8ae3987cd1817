"""The CKA of the runs that claim 8 compares: measured from their checkpoints, once."""

__all__ = ["measure_cka"]

from collections.abc import Sequence
from pathlib import Path

from analysis.findings.claims import CLAIMS
from analysis.measure.probe import Arrays, measured
from analysis.probes.cka import CKAConfig, measure
from analysis.read.runs import Finished
from dtr_lightning.errors import UserError


def measure_cka(sweep: str, runs: Sequence[Finished]) -> dict[Path, Arrays]:
    """Returns {run's path: CKA at 50 timesteps, on 512 images} for the runs that need it.

    UserError if one cannot be measured, for instance as its checkpoint is gone.
    """
    needed = [
        side
        for claim in CLAIMS
        for comparison in claim.comparisons
        if comparison.measure.family == "CKA"
        for side in (*comparison.plus, *comparison.minus)
        if side.sweep == sweep
    ]
    compared = [run for run in runs if any(run.has(side.options) for side in needed)]
    if gone := [run for run in compared if not run.last.is_file()]:
        raise UserError(f"{gone[0].path} has no checkpoint, which its CKA needs")
    numbers, failed = measured("cka", compared, CKAConfig(), measure)
    if failed:
        raise UserError(failed[0])
    return numbers
