"""Recipes: YAML files of options, each of which may name another one as its base."""

__all__ = ["expand", "parts"]

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.yaml_values import DUMPER, TEXT_LOADER


def expand(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments with every `--config FILE` as text, bases first, and those files.

    `base: FILE` in a recipe is a path relative to it; later keys override those of the base.
    UserError names a file that cannot be read or is no mapping in YAML.
    """
    expanded, files = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config" or argument.startswith("--config="):
            file = argument.removeprefix("--config=") if "=" in argument else next(rest, None)
            if file is None:
                raise UserError("--config needs the path of a YAML file")
            files.append(file)
            for path, text in _chain(Path(file), ()):
                options = yaml.dump(_options(path, text), Dumper=DUMPER)
                expanded.append(f"--config={options}")
        else:
            expanded.append(argument)
    return expanded, files


def parts(file: Path) -> dict[str, list[str]]:
    """Returns what a recipe and its bases say of each group of options, as texts, bases first."""
    names: dict[str, list[str]] = {}
    for path, text in _chain(file, ()):
        for group, own in _by_option(path, text):
            names.setdefault(group, []).append(own)
    return names


def _chain(file: Path, seen: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """Returns a recipe and its bases as (file, text), bases first."""
    if file.resolve() in seen:
        raise UserError(f"config file {file} is its own base")
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"config file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _not_yaml(file, error) from error
    base = _content(file, text).get("base")
    if base is None:
        return [(file, text)]
    if not isinstance(base, str):
        raise UserError(f"{file}: base is to be the path of another recipe, not {base!r}")
    earlier = _chain(file.parent / base, (*seen, file.resolve()))
    return [*earlier, (file, text)] if _options(file, text) else earlier


# The points of a sweep read the same few texts again and again.
@lru_cache
def _content(file: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=TEXT_LOADER)
    except RecursionError:
        raise UserError(f"{file} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not is a ValueError
        raise _not_yaml(file, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold options as `key: value`")
    return content


def _options(file: Path, text: str) -> dict[str, Any]:
    return {key: value for key, value in _content(file, text).items() if key != "base"}


@lru_cache
def _by_option(file: Path, text: str) -> list[tuple[str, str]]:
    """Returns (group, text) of every option of a recipe."""
    options = _options(file, text).items()
    return [
        (str(key).partition(".")[0], yaml.dump({key: value}, Dumper=DUMPER))
        for key, value in options
    ]


def _not_yaml(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}")
