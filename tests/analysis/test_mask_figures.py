"""Masks, overlaps and dedicated channels of the routers among runs."""

import numpy as np
import pytest

from analysis.drawing.mask_tables import FORMULAS, mask_tables
from analysis.figures import (
    dedicated,
    masks,
    overlap,
)
from analysis.read.settings import ALPHA
from dtr_lightning.routing import DTR, MaxRoaming
from dtr_lightning.routing.masks import dtr, ercdt
from tests.analysis.synthetic_runs import (
    DTR4,
    FOUR,
    finished,
    make_run,
    make_sweep,
)


def test_masks_without_any_are_those_of_the_paper(tmp_path):
    make_run(tmp_path / "plain")
    shown, note = mask_tables(finished(tmp_path))
    assert [masks.label for masks in shown] == [*FORMULAS] and note == ""
    assert shown[3].table.equal(dtr(1000, 64, 4.0, 0.8))


def test_masks_are_those_of_the_runs_own_routers(tmp_path):
    make_sweep(tmp_path, [*FOUR, ("ERCDT", {"clusters": 8})], seeds=(1, 2))
    make_run(tmp_path / "roaming", "MaxRoaming", {"beta": 0.8}, seed=1)
    make_run(tmp_path / "unknown", "NoSuchRouter")
    shown, note = mask_tables(finished(tmp_path))
    tables = {masks.name: masks.table for masks in shown}
    assert len(shown) == 6 and "left out NoSuchRouter" in note and "\n" not in note
    assert tables[f"DTR {ALPHA}=1 β=0.8"].equal(dtr(1000, 64, 1.0, 0.8))
    router = MaxRoaming(0.8, seed=1, steps=1200)
    router.bind(1000, [64, 64], 64)
    assert tables["MaxRoaming β=0.8, step 0"].equal(router.table(0))
    router.advance(1200, None)
    assert tables["MaxRoaming β=0.8, step 1,200"].equal(router.table(0))

    numbers = masks.draw(finished(tmp_path)).numbers
    assert numbers[numbers.router == "RTR"].seed.tolist() == [1]
    rows = numbers[numbers.router == "ERCDT"]
    rebuilt = np.zeros((1000, 64), bool)
    for row in rows.itertuples():
        for part in row.read.split():
            first, last = map(int, part.split("-"))
            rebuilt[row.task_first : row.task_last + 1, first : last + 1] = True
    assert (rebuilt == ercdt(1000, 64).numpy()).all() and len(rows) == 8


def test_overlap_is_the_windows_and_of_random_masks_the_expectation(tmp_path):
    numbers = overlap.draw(finished(make_sweep(tmp_path, FOUR))).numbers
    window = numbers[(numbers.router == "DTR") & (numbers.alpha == 4)]
    start = dtr(1000, 64, 4.0, 0.8).int().argmax(1).numpy()
    shift = np.abs(start[window.task] - start[window.other_task])
    assert window.overlap.to_numpy() == pytest.approx((51 - shift) / 64)
    pairs = np.abs(start[:, None] - start)[~np.eye(1000, dtype=bool)]
    assert window["mean"].iloc[0] == pytest.approx((51 - pairs.mean()) / 64)
    random = numbers[numbers.router == "RTR"].iloc[0]
    assert random.expected_random == pytest.approx((51 / 64) ** 2)
    assert random["mean"] == pytest.approx(random.expected_random, abs=2e-3)


def test_dedicated_counts_are_the_shifts_of_the_window(tmp_path):
    points = [("DTR", DTR4), ("RTR", {"beta": 0.8}), ("ERCDT", {"clusters": 5})]
    for i, (router, args) in enumerate(points):
        model = {"class_path": "DiT_B", "init_args": {}}
        make_run(tmp_path / f"{i}", router, args, model=model)
    numbers = dedicated.draw(finished(tmp_path)).numbers
    window = numbers[numbers.router == "DTR"]
    start = dtr(1000, 768, 4.0, 0.8).int().argmax(1).numpy()
    ends = start[99::100]
    assert window.switched_on.tolist() == [0, *np.diff(ends)]
    assert window.switched_off.tolist() == [0, *np.diff(start[::100])]
    assert window.only.tolist() == [0] * 9 + [ends[-1] - ends[-2]]
    half = int((start[-1] - start[800:]).max())  # over 100 of the tasks that read them are last
    assert window.own.iloc[-1] == pytest.approx(half, abs=1) and window.own.iloc[:-1].sum() == 0
    random = numbers[numbers.router == "RTR"]
    assert not random[["switched_on", "own", "only"]].to_numpy().any()
    explicit = numbers[numbers.router == "ERCDT"]  # five clusters are two tenths each
    segments = [77, 77, 76, 77, 77]
    assert explicit.switched_on.tolist() == [0, 0, 77, 0, 76, 0, 77, 0, 77, 0]
    assert explicit.switched_off.tolist()[2::2] == segments[:4] and explicit.only.sum() == 0


class Flipping(DTR):
    """DTR whose channels are turned round by the end of training."""

    def advance(self, step, embed):
        self.tables.copy_(self.mask(self.widths[0], 0).flip(1))


def test_masks_of_ones_own_router_that_change_are_shown_at_both_ends(tmp_path):
    make_run(tmp_path / "own", f"{__name__}.Flipping", {"alpha": 4.0, "beta": 0.8})
    shown, _ = mask_tables(finished(tmp_path))
    tables = {masks.moment: masks.table for masks in shown}
    assert tables["step 0"].equal(dtr(1000, 64, 4.0, 0.8))
    assert tables["step 1,200"].equal(dtr(1000, 64, 4.0, 0.8).flip(1))
