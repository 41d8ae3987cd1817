"""The registered claims of docs/findings.md: what is compared, and which way it points.

An effect is, seed by seed, the sum of the runs in `plus` less the sum of those in `minus`: a
difference of two settings has one of each, a difference of differences two.
"""

__all__ = [
    *("CLAIMS", "CORES", "CURVE", "DATA", "DIGITS", "EXPLORED", "GAINS", "LATENTS", "MASKS"),
    *("PIXELS", "WHERE", "Claim", "Comparison", "Data", "Runs"),
]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from analysis.findings.measures import (
    CKA_ALL,
    CKA_DIAGONAL,
    CKA_HIGH,
    SCORE,
    STEPS,
    Measure,
)


class Data(NamedTuple):
    """A data set: the level of its intervals, and whether p decides too (five seeds forbid it)."""

    name: str
    level: float
    tested: bool
    seeds: int


DIGITS = Data("digits", 0.95, True, 10)
PIXELS = Data("MNIST, pixels", 0.99, False, 5)
LATENTS = Data("MNIST, latents", 0.99, False, 5)
DATA = (DIGITS, PIXELS, LATENTS)


class Runs(NamedTuple):
    """The runs of a sweep that have these options, one per seed."""

    sweep: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """An effect on one data set; `direction` is the sign that the claim gives it.

    within: if set, the claim is that the effect lies between -within and within.
    first_seed: seeds below it are left out, as a search has seen them.
    """

    data: Data
    label: str
    plus: tuple[Runs, ...]
    minus: tuple[Runs, ...]
    direction: int
    measure: Measure = SCORE
    within: float | None = None
    first_seed: int = 0

    @property
    def seeds(self) -> range:
        """The registered seeds: no others are judged."""
        return range(self.first_seed, self.first_seed + self.data.seeds)


@dataclass(frozen=True)
class Claim:
    """A numbered sentence and what decides it: comparisons, or none for an order or a cost."""

    number: str
    sentence: str
    comparisons: Sequence[Comparison]


def _masks(sweep: str, **sizes: Any) -> dict[str, Runs]:
    """Returns the runs of each router in a sweep; sizes select a network."""
    options = {
        "none": {"router": "NoRouting"},
        "R-TR": {"router": "RTR"},
        "DTR": {"router": "DTR"},
        "MaxRoaming": {"router": "MaxRoaming"},
        "ERCDT": {"router": "ERCDT"},
        "CDTR": {"router": "CDTR"},
    }
    plain = {"loss_weight": "Constant", "gradients": "Joint"}
    four = {"router.alpha": 4.0}
    return {
        name: Runs(sweep, own | plain | (four if name == "DTR" else {}) | sizes)
        for name, own in options.items()
    }


D = _masks("digits_masks")
D["R-TR"] = Runs("digits_masks", D["R-TR"].options | {"router.shared": False})
P = _masks("mnist_masks") | {
    name: runs
    for name, runs in _masks("mnist_alternatives").items()
    if name in ("MaxRoaming", "ERCDT", "CDTR")
}
L = {size: _masks("mnist_latents", **{"model.hidden_size": size}) for size in (48, 96)}


def _core(core: float | None, per_block: bool = False) -> Runs:
    sweep = "digits_masks" if core is None else "digits_overlap"
    core_option = {} if core is None else {"router.core": core}
    return Runs(sweep, {"router": "SharedCore", "router.per_block": per_block} | core_option)


def _control(router: str) -> Runs:
    return _core(None) if router == "SharedCore" else Runs("digits_masks", {"router": router})


# Claim 11: the settings of the curve of score over overlap, and those of one line on it.
CORES = {f"core {core:g}": _core(core) for core in (0.2, 0.4, 0.55, 0.65, 0.8)}
CORES["SharedCore"] = _core(None)
CURVE = CORES | {
    "R-TR": D["R-TR"],
    "R-TR, shared": Runs("digits_masks", {"router": "RTR", "router.shared": True}),
    "DTR": D["DTR"],
    "DTR, alpha 1": Runs("digits_masks", {"router": "DTR", "router.alpha": 1.0}),
    "SharedCore, per block": _core(None, per_block=True),
    **{name: D[name] for name in ("CDTR", "ERCDT", "MaxRoaming", "none")},
    **{
        name: Runs("digits_masks", {"router": name})
        for name in ("WeightsOnly", "TimeShuffledDTR", "BlockPermutedDTR")
    },
}
MASKS = {DIGITS: D, PIXELS: P}


def _against(
    data: Data, label: str, plus: Runs, minus: Runs, direction: int, **more: Any
) -> Comparison:
    return Comparison(data, label, (plus,), (minus,), direction, **more)


def _weights(data: Data, sweep: str, **option: str) -> Comparison:
    name = next(iter(option.values()))
    label = {"MinSNR": "Min-SNR", "UW": "ANT-UW", "NashMTL": "Nash-MTL"}.get(name, name)
    mine, plain = (Runs(sweep, {"router": router, **option}) for router in ("DTR", "NoRouting"))
    return _against(data, f"{label}: DTR - none", mine, plain, -1)


def _size(size: int, router: str) -> Runs:
    if size == 64:
        return D["DTR" if router == "DTR" else "none"]
    return Runs("digits_sizes", {"router": router, "model.hidden_size": size, "experts": 1})


def _experts(number: int) -> Runs:
    return Runs("digits_sizes", {"experts": number})


def _long(router: str) -> Runs:
    return Runs("digits_longer", {"router": router})


LATENT_SIZES = [
    Comparison(
        LATENTS,
        "(DTR - none at 96) - (DTR - none at 48)",
        (L[96]["DTR"], L[48]["none"]),
        (L[96]["none"], L[48]["DTR"]),
        -1,
    )
]

CLAIMS = (
    Claim(
        "1",
        "R-TR is worse than no routing",
        [
            _against(DIGITS, "R-TR - none", D["R-TR"], D["none"], +1),
            _against(PIXELS, "R-TR - none", P["R-TR"], P["none"], +1),
            _against(LATENTS, "R-TR - none", L[96]["R-TR"], L[96]["none"], +1),
        ],
    ),
    Claim(
        "2",
        "DTR is better than no routing",
        [
            _against(DIGITS, "DTR - none", D["DTR"], D["none"], -1),
            _against(PIXELS, "DTR - none", P["DTR"], P["none"], -1),
            _against(LATENTS, "DTR - none", L[96]["DTR"], L[96]["none"], -1),
        ],
    ),
    Claim(
        "3",
        "alpha = 4 is better than alpha = 1",
        [
            _against(
                data,
                "DTR, alpha 4 - alpha 1",
                runs["DTR"],
                Runs(runs["DTR"].sweep, runs["DTR"].options | {"router.alpha": 1.0}),
                -1,
            )
            for data, runs in ((DIGITS, D), (PIXELS, P))
        ],
    ),
    Claim(
        "4",
        "DTR reaches the baseline's final score earlier",
        [_against(DIGITS, "DTR - none", D["DTR"], D["none"], -1, measure=STEPS)],
    ),
    Claim(
        "5",
        "DTR adds to loss weights and gradient rules",
        [
            _weights(DIGITS, "digits_weights", loss_weight="MinSNR"),
            _weights(DIGITS, "digits_weights", loss_weight="P2"),
            _weights(DIGITS, "digits_weights", loss_weight="UW"),
            _weights(DIGITS, "digits_weights", gradients="PCGrad"),
            _weights(DIGITS, "digits_weights", gradients="NashMTL"),
            _weights(PIXELS, "mnist_min_snr", loss_weight="MinSNR"),
            _weights(PIXELS, "mnist_p2", loss_weight="P2"),
        ],
    ),
    Claim(
        "6",
        "DTR beats CDTR, ERCDT and MaxRoaming",
        [
            _against(data, f"DTR - {name}", runs["DTR"], runs[name], -1)
            for data, runs in ((DIGITS, D), (PIXELS, P))
            for name in ("CDTR", "ERCDT", "MaxRoaming")
        ],
    ),
    Claim(
        "7",
        "One DTR network beats n experts at equal compute",
        [
            _against(DIGITS, "DTR - 2 experts", D["DTR"], _experts(2), -1),
            _against(DIGITS, "DTR - 4 experts", D["DTR"], _experts(4), -1),
        ],
    ),
    Claim(
        "8",
        "R-TR raises CKA, DTR lowers it at high t, late blocks show a diagonal",
        [
            _against(DIGITS, "R-TR - none", D["R-TR"], D["none"], +1, measure=CKA_ALL),
            _against(DIGITS, "DTR - none", D["DTR"], D["none"], -1, measure=CKA_HIGH),
            _against(DIGITS, "DTR - none", D["DTR"], D["none"], +1, measure=CKA_DIAGONAL),
        ],
    ),
    Claim(
        "9",
        "Larger networks gain more from DTR",
        [
            Comparison(
                DIGITS,
                "(DTR - none at 96) - (DTR - none at 32)",
                (_size(96, "DTR"), _size(32, "NoRouting")),
                (_size(96, "NoRouting"), _size(32, "DTR")),
                -1,
            ),
            *LATENT_SIZES,
        ],
    ),
    Claim("10", "It costs nothing", []),
    Claim(
        "11a",
        "How many channels two tasks share is the whole explanation",
        [
            _against(DIGITS, f"{name} - DTR", _control(name), D["DTR"], 0, within=0.2)
            for name in ("SharedCore", "TimeShuffledDTR", "BlockPermutedDTR")
        ],
    ),
    Claim("11b", "The score falls as tasks share more channels", []),
    Claim(
        "12",
        "A searched window beats DTR's",
        [
            _against(
                DIGITS,
                "searched window - DTR",
                Runs("digits_window_test", {"router": "FreeWindow"}),
                Runs("digits_window_test", {"router": "DTR"}),
                -1,
                first_seed=10,
            )
        ],
    ),
    Claim(
        "13",
        "The gain depends on the length of training",
        [
            Comparison(
                DIGITS,
                "(DTR - none at 4,000) - (DTR - none at 1,000)",
                (_long("DTR"), D["none"]),
                (_long("NoRouting"), D["DTR"]),
                0,
            )
        ],
    ),
)

# The gain of DTR over a size and over a length: {figure: (axis, {data: {x: comparison}})}.
GAINS = {
    "sizes": (
        "channels",
        {
            DIGITS: {
                size: _against(
                    DIGITS, "DTR - none", _size(size, "DTR"), _size(size, "NoRouting"), -1
                )
                for size in (32, 64, 96)
            },
            LATENTS: {
                size: _against(LATENTS, "DTR - none", runs["DTR"], runs["none"], -1)
                for size, runs in L.items()
            },
        },
    ),
    "lengths": (
        "training steps",
        {
            DIGITS: {
                1000: _against(DIGITS, "DTR - none", D["DTR"], D["none"], -1),
                4000: _against(DIGITS, "DTR - none", _long("DTR"), _long("NoRouting"), -1),
            }
        },
    ),
}
# Looked at after the runs, beside a claim: not registered, corrected for nothing.
EXPLORED = {
    "9": [
        replace(comparison, label=f"DTR - none, {size} channels")
        for effects in GAINS["sizes"][1].values()
        for size, comparison in effects.items()
    ],
    "13": [
        _against(DIGITS, f"{name} - none, {steps:,} steps", routed, plain, direction)
        for name, router, direction in (("DTR", "DTR", -1), ("R-TR", "RTR", +1))
        for steps, routed, plain in (
            (1000, D[name], D["none"]),
            (4000, _long(router), _long("NoRouting")),
        )
    ],
}
# The comparisons whose held-out loss is shown per eighth of the timeline.
WHERE = [c for claim in CLAIMS[:2] for c in claim.comparisons]
