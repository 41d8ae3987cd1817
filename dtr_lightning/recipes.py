"""Recipes: YAML files of options, each of which may name another one as its base."""

__all__ = ["expand", "parts"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dtr_lightning.errors import UserError
from dtr_lightning.run import LOADER

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


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
            for content in _chain(Path(file), ()):
                expanded.append(f"--config={yaml.safe_dump(content)}")
        else:
            expanded.append(argument)
    return expanded, files


def parts(file: Path) -> dict[str, list[str]]:
    """Returns what a recipe and its bases say of each group of options, as texts, bases first."""
    found: dict[str, list[str]] = {}
    for content in _chain(file, ()):
        for key, value in content.items():
            text = yaml.dump({key: value}, Dumper=DUMPER)
            found.setdefault(str(key).partition(".")[0], []).append(text)
    return found


def _chain(file: Path, seen: tuple[Path, ...]) -> list[dict[str, Any]]:
    if file.resolve() in seen:
        raise UserError(f"config file {file} is its own base")
    content = _read(file)
    base = content.pop("base", None)
    if base is None:
        return [content]
    if not isinstance(base, str):
        raise UserError(f"{file}: base is to be the path of another recipe, not {base!r}")
    earlier = _chain(file.parent / base, (*seen, file.resolve()))
    return [*earlier, content] if content else earlier


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(), Loader=LOADER)
    except OSError as error:
        raise UserError(f"config file {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold options as `key: value`")
    return content
