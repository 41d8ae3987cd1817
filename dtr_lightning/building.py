"""From a choice, a name and its arguments, to the object: classes are found by what they extend."""

__all__ = ["build", "options", "valid_choices"]

import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any


def valid_choices(base: type) -> dict[str, type]:
    """Returns the classes that can be chosen on an axis by their name."""
    found: dict[str, type] = {}
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass):
            found[subclass.__name__] = subclass
        found |= valid_choices(subclass)
    return dict(sorted(found.items()))


def build(base: type, choice: Mapping[str, Any], **linked: Any) -> Any:
    """Returns the object of a choice {class_path, init_args}, with the linked ones it takes."""
    linked = {k: value for k, value in linked.items() if k in options(base, choice["class_path"])}
    return _find(base, choice["class_path"])(**(choice.get("init_args") or {}), **linked)


def options(base: type, path: str) -> set[str]:
    """Returns the names of a class's arguments, and of its bases' where it has **kwargs."""
    return _arguments(_find(base, path))


@cache
def _arguments(cls: type) -> set[str]:
    names: set[str] = set()
    for own in cls.__mro__:
        takes = inspect.signature(own.__init__).parameters
        names |= takes.keys()
        if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            break
    return names


def _find(base: type, path: str) -> type:
    if "." not in path:
        return valid_choices(base)[path]
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
