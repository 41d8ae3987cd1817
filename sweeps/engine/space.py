"""The axes of a search: choices, ranges, and numbers in rising order."""

__all__ = ["Axis", "Choices", "Range", "Rising", "axes", "starts"]

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import BaseTrial

from dtr_lightning.errors import UserError, choices
from sweeps.engine.values import check_options, is_number, is_word, list_as_json, named, shown


class Axis(ABC):
    """The values that one option may have."""

    @property
    def is_numeric(self) -> bool:
        """Whether Optuna sees it as numbers in intervals, which CMA-ES needs."""
        return True

    @abstractmethod
    def suggest(self, trial: BaseTrial, key: str) -> Any:
        """Returns the option's value that the trial proposes."""

    @abstractmethod
    def params(self, key: str, value: Any) -> dict[str, Any]:
        """Returns Optuna's parameters of a value of the option."""

    @abstractmethod
    def middle(self, key: str) -> dict[str, Any]:
        """Returns Optuna's parameters in the middle of the axis; none where words are chosen."""

    @abstractmethod
    def check(self, value: Any, where: str) -> None:
        """Raises UserError for a value that is not on the axis."""

    @property
    @abstractmethod
    def examples(self) -> list[Any]:
        """All choices, or one value of a range."""


@dataclass(frozen=True)
class Choices(Axis):
    """One of a few words or numbers."""

    values: tuple[Any, ...]

    @property
    def is_numeric(self) -> bool:
        """Whether nothing is left to choose."""
        return len(self.values) == 1

    @property
    def examples(self) -> list[Any]:
        """All values."""
        return list(self.values)

    def suggest(self, trial: BaseTrial, key: str) -> Any:
        """Returns one of the values; lists come as JSON."""
        return trial.suggest_categorical(key, self.values)

    def params(self, key: str, value: Any) -> dict[str, Any]:
        """Returns the value itself."""
        return {key: list_as_json(value)}

    def middle(self, key: str) -> dict[str, Any]:
        """Returns nothing: choices have no middle."""
        return {}

    def check(self, value: Any, where: str) -> None:
        """Raises UserError for another value."""
        if list_as_json(value) not in self.values:
            raise choices(where, named(value), [str(valid) for valid in self.values])


@dataclass(frozen=True)
class Range(Axis):
    """Numbers from low to high, whole ones if both are; in steps, or on a logarithmic scale."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole."""
        return all(isinstance(x, int) for x in (self.low, self.high, self.step or 1))

    @property
    def examples(self) -> list[Any]:
        """The lowest value."""
        return [self.low]

    def suggest(self, trial: BaseTrial, key: str) -> float:
        """Returns a number, rounded to four digits if it is not whole."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(key, int(self.low), int(self.high), step=step, log=self.log)
        value = trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)
        return float(f"{value:.4g}")

    def params(self, key: str, value: Any) -> dict[str, Any]:
        """Returns the value itself."""
        return {key: value}

    def middle(self, key: str) -> dict[str, Any]:
        """Returns the mean of low and high, the geometric one for log."""
        low, high = self.low, self.high
        return {key: math.sqrt(low * high) if self.log else (low + high) / 2}

    def check(self, value: Any, where: str) -> None:
        """Raises UserError for anything but a number of the range."""
        number = is_number(value) and (isinstance(value, int) or not self.whole)
        if not number or not self.low <= value <= self.high or not self._on_grid(value):
            steps = f" in steps of {self.step}" if self.step else ""
            raise UserError(f"{where} is {shown(value)}; valid: {self.low} to {self.high}{steps}")

    @property
    def valid(self) -> bool:
        """Whether low, high, step and log make a range."""
        numbers = all(map(is_number, (self.low, self.high, self.step or 1)))
        if not numbers or not isinstance(self.log, bool) or not self.low < self.high:
            return False
        if self.log:
            return self.low > 0 and self.step is None
        return self.step is None or (self.step > 0 and self._on_grid(self.high))

    def _on_grid(self, value: float) -> bool:
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-6 and steps < 1e6


@dataclass(frozen=True)
class Rising(Axis):
    """0, some numbers in rising order, 1: the knots of a window.

    Optuna proposes u in [0, 1]^inner, with k_i = k_{i-1} + u_i (1 - k_{i-1}): every u gives rising
    numbers, and all rising numbers have a u.
    """

    inner: int

    @property
    def examples(self) -> list[Any]:
        """The numbers of u = 1/2."""
        return [[1 - 0.5**i for i in range(self.inner + 1)] + [1]]

    def suggest(self, trial: BaseTrial, key: str) -> str:
        """Returns the numbers as JSON, rounded to three decimals."""
        knots = [0.0]
        for i in range(self.inner):
            u = trial.suggest_float(f"{key}[{i + 1}]", 0, 1)
            knots.append(knots[-1] + u * (1 - knots[-1]))
        return json.dumps([round(knot, 3) for knot in (*knots, 1.0)])

    def params(self, key: str, value: Sequence[float]) -> dict[str, Any]:
        """Returns the u that gives these numbers."""
        rest = [1 - knot for knot in value]
        return {
            f"{key}[{i}]": 1 - rest[i] / rest[i - 1] if rest[i - 1] else 1.0
            for i in range(1, self.inner + 1)
        }

    def middle(self, key: str) -> dict[str, Any]:
        """Returns u = 1/2."""
        return {f"{key}[{i}]": 0.5 for i in range(1, self.inner + 1)}

    def check(self, value: Any, where: str) -> None:
        """Raises UserError for anything but 0, the inner numbers in rising order, 1."""
        numbers = isinstance(value, list) and all(map(is_number, value))
        if (
            not numbers
            or len(value) != self.inner + 2
            or value != sorted(value)
            or (value[0], value[-1]) != (0, 1)
        ):
            raise UserError(f"{where} is {shown(value)}; valid: 0, {self.inner} in rising order, 1")


def axes(content: Mapping[Any, Any], where: str) -> dict[str, Axis]:
    """Returns the axes of a search by option; UserError for anything else."""
    if not content:
        raise UserError(f"{where}: space has no options, such as {{router: [NoRouting, DTR]}}")
    return {
        key: _axis(value, f"{where}: {named(key)} in space", key) for key, value in content.items()
    }


def _axis(value: Any, where: str, key: Any) -> Axis:
    if not is_word(key) or key == "seed":
        raise UserError(f"{where} must be an option of train.py other than seed")
    if isinstance(value, list) and value:
        values = tuple(list_as_json(x) for x in value)
        if all(isinstance(x, bool) or is_word(x) or is_number(x) for x in values):
            if len({*values}) < len(values):
                raise UserError(f"{where} has a choice twice: {shown(value)}")
            return Choices(values)
    elif isinstance(value, Mapping):
        inner: Any = value.get("rising")
        if value.keys() == {"rising"} and is_number(inner) and inner in range(1, 100):
            return Rising(int(inner))
        if {"low", "high"} <= value.keys() <= {"low", "high", "step", "log"}:
            if (axis := Range(**value)).valid:
                return axis
    raise UserError(
        f"{where} must be a list of choices, {{low: 0.5, high: 8}} with a `step` that divides "
        f"high - low or `log: true` (of positive numbers), or {{rising: 3}}; got {shown(value)}"
    )


def starts(content: list[Any], space: Mapping[str, Axis], where: str) -> list[dict[str, Any]]:
    """Returns the settings that a search tries first, all on its axes."""
    for number, start in enumerate(content, 1):
        check_options(start, f"{where}: entry {number} of start")
        for key, value in start.items():
            if key not in space:
                raise choices(f"key in entry {number} of start of {where}", key, space)
            space[key].check(value, f"{where}: {key} in entry {number} of start")
    return [dict(start) for start in content]
