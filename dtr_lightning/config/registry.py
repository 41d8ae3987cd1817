"""From a choice, a name and its arguments, to the object: classes are found by what they extend."""

__all__ = [
    "class_of",
    "instantiate",
    "options",
    "path_options",
    "required_options",
    "source_file",
    "valid_choices",
]

import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pkgutil import iter_modules
from traceback import extract_tb
from typing import Any, TypeVar, get_args, get_type_hints

from dtr_lightning.errors import UserError, known_failure

T = TypeVar("T")
# methods that a person's own class may still have under their old names
RENAMED = {"build": "bind", "spread": "timesteps_at", "factors": "loss_conversion"}


def valid_choices(base: type[T]) -> dict[str, type[T]]:
    """Returns the classes that can be chosen on an axis by their name: none that is private.

    Those of all files of the base's room, and of what else was imported.
    """
    _import_room(base.__module__.rpartition(".")[0])
    classes: dict[str, type[T]] = {}
    for subclass in base.__subclasses__():
        if not inspect.isabstract(subclass) and subclass.__name__[0] != "_":
            classes[subclass.__name__] = subclass
        classes |= valid_choices(subclass)
    return dict(sorted(classes.items()))


@cache
def _import_room(name: str) -> None:
    """Imports every file of one of our rooms; of other packages none."""
    if name.startswith("dtr_lightning."):
        for file in iter_modules(importlib.import_module(name).__path__):
            importlib.import_module(f"{name}.{file.name}")


def instantiate(base: type[T], choice: Mapping[str, Any], **linked: Any) -> T:
    """Returns the object of a choice {class_path, init_args}, with the linked ones it takes.

    What the constructor of a person's own class raises becomes a UserError that names the place.
    """
    path = choice["class_path"]
    linked = {k: value for k, value in linked.items() if k in options(base, path)}
    try:
        return class_of(base, path)(**(choice.get("init_args") or {}), **linked)
    except UserError:
        raise
    except Exception as error:
        if (file := source_file(path)) is None or known_failure(error):
            raise
        lines = [at.lineno for at in extract_tb(error.__traceback__) if at.filename == str(file)]
        place = f" ({file}, line {lines[-1]})" if lines else ""
        raise UserError(f"{path} cannot be made: {type(error).__name__}: {error}{place}") from error


def options(base: type, path: str) -> set[str]:
    """Returns the names of a class's arguments, and of its bases' where it has **kwargs."""
    return set(_parameters(base, path))


@cache
def path_options(base: type, path: str) -> set[str]:
    """Returns the names of a class's arguments that are annotated as a pathlib.Path."""
    paths: set[str] = set()
    for own in class_of(base, path).__mro__:
        init = vars(own).get("__init__")
        hints = get_type_hints(init) if init else {}
        paths |= {name for name, hint in hints.items() if Path in (hint, *get_args(hint))}
    return paths


def required_options(base: type, path: str) -> set[str]:
    """Returns the names of a class's arguments that have no default."""
    return {name for name, p in _parameters(base, path).items() if p.default is p.empty}


def source_file(path: str) -> Path | None:
    """Returns the file that defines the class of an import path; None for a class of ours."""
    module = path.rpartition(".")[0]
    if not module or module.split(".")[0] == "dtr_lightning":
        return None
    file = importlib.import_module(module).__file__
    return Path(file) if file else None


@cache
def _parameters(base: type, path: str) -> dict[str, inspect.Parameter]:
    """Returns a class's arguments by name, with those of its bases where it has **kwargs."""
    named: dict[str, inspect.Parameter] = {}
    mro = class_of(base, path).__mro__
    for own in [each for each in mro if "__init__" in vars(each)]:
        takes = dict(inspect.signature(vars(own)["__init__"]).parameters)
        named = takes | named
        if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            break
    return named


def class_of(base: type[T], path: str) -> type[T]:
    """Returns the class of a choice, by its name or import path.

    UserError for an own class with a method under a name that it had before.
    """
    if "." not in path:
        return valid_choices(base)[path]
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    for before, now in RENAMED.items():
        if before in vars(cls) and hasattr(base, now) and not hasattr(base, before):
            raise UserError(f"{path}: {base.__name__}.{before} is called {now} now; rename yours")
    return cls
