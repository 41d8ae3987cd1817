"""Laws of claim 10: whose steps are compared, and what is no record of them."""

import json

import pytest

from analysis.findings.cost import read_cost
from dtr_lightning.errors import UserError


def row(name, ratios, config="digits", mode="eager fp32", **more):
    return {"config": config, "mode": mode, "name": name, "ratios": ratios} | more


NONE = row("ours none", [2.0, 4.0, 1.0] * 5, parameters=10, memory=100)
DTR = row("ours DTR", [2.0, 4.4, 0.9] * 5, parameters=10, memory=104)
OTHERS = [
    row("official DTR", [1.0, 1.0, 1.0]),
    row("ours DTR", [9.0, 9.0, 9.0], config="tiny"),
    row("ours DTR", [7.0, 7.0, 7.0], mode="compiled fp32"),
]


def record(folder, rows):
    (folder / "step.json").write_text(
        json.dumps({"machine": "two cores", "device": "cpu", "rows": rows})
    )


def test_dtr_is_compared_with_no_routing_in_the_same_round(tmp_path):
    assert read_cost(tmp_path) is None
    record(tmp_path, [*OTHERS, NONE, DTR])
    cost = read_cost(tmp_path)
    assert cost.ratios == pytest.approx([1.0, 1.1, 0.9] * 5)
    assert cost.ratio == pytest.approx((1.1 * 0.9) ** (1 / 3))
    assert (cost.parameters, cost.memory) == ((10, 10), (100, 104))
    assert cost.low < 1 - 0.02 and cost.verdict == "undecided"


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [([1.0, 1.001, 0.999], "supported"), ([0.9, 0.901, 0.899], "refuted")],
)
def test_the_interval_decides(tmp_path, ratios, verdict):
    record(tmp_path, [NONE | {"ratios": [1.0] * 15}, DTR | {"ratios": ratios * 5}])
    assert read_cost(tmp_path).verdict == verdict


BAD = [1.0, [], [1.0], [float("nan")] * 15, [0.0] * 15, ["1"] * 15, [[1.0]] * 15, [1.0] * 14]


@pytest.mark.parametrize(
    "rows",
    [
        *([], [NONE], [DTR], [*OTHERS, DTR], "{"),
        *([NONE, DTR | {"ratios": bad}] for bad in BAD),
        *([NONE, DTR | {"memory": bad}] for bad in (None, "x")),
    ],
)
def test_what_is_no_such_record_is_one_line(tmp_path, rows):
    record(tmp_path, rows)
    with pytest.raises(UserError, match=r"step.json is not a record of .python benchmarks/step.py"):
        read_cost(tmp_path)
    (tmp_path / "step.json").write_text("{")
    with pytest.raises(UserError, match="is not a record"):
        read_cost(tmp_path)
