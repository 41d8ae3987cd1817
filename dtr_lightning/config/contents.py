"""What the files hold that a config names: their content belongs to a run, their place does not.

An argument of a constructor that is annotated as a pathlib.Path names a file or, of a data set, the
folder of its images. The source of a person's own class counts too.
"""

__all__ = ["contents", "with_absolute_paths"]

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path
from typing import Any

from dtr_lightning.config.registry import instantiate, path_options, source_file
from dtr_lightning.data import Data
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.weights_file import weights_file

Config = dict[str, Any]
# a store knows by their digests which autoencoder and text encoder it was made with
PLACES = ("data.vae", "data.clip")


def with_absolute_paths(config: Config, axes: dict[str, type]) -> Config:
    """Returns a config whose paths are absolute, so that it holds in any working directory.

    What may be a name on a hub as well stays as it is unless it is there.
    """
    config = dict(config)
    for axis, option, path in _paths(config, axes):
        if f"{axis}.{option}" in PLACES and not os.path.isdir(os.path.expanduser(path)):
            continue
        arguments = config[axis]["init_args"] | {option: os.path.abspath(os.path.expanduser(path))}
        config[axis] = config[axis] | {"init_args": arguments}
    if "init" in config:
        config["init"] = os.path.abspath(os.path.expanduser(config["init"]))
    return config


def contents(
    config: Config,
    axes: dict[str, type],
    data: Data | None = None,
    digests: dict[str, str] | None = None,
) -> dict[str, str]:
    """Returns {dotted option: digest} of the files, images and own classes that a config names.

    `axes` gives the base class of every axis. data: the data set, where it is made already.
    digests: of images, which a caller with many configs keeps. What is not there is left out:
    whoever needs it says so. UserError for what cannot be read.
    """
    digest_by_option, digests = {}, {} if digests is None else digests
    for axis, option, path in _paths(config, axes):
        key = f"{axis}.{option}"
        if key in PLACES or not Path(path).exists():
            continue
        if axis != "data" or Path(path).is_file():
            digest_by_option[key] = _file(Path(path))
            continue
        choice = json.dumps(config["data"], sort_keys=True)
        if choice not in digests:
            digests[choice] = (data or instantiate(Data, config["data"])).digest()
        digest_by_option[key] = digests[choice]
    for axis in axes:
        if axis in config and (file := source_file(config[axis]["class_path"])):
            digest_by_option[f"{axis}.source"] = _file(file)
    if "init" in config and Path(config["init"]).exists():
        digest_by_option["init"] = _file(weights_file(config["init"]))
    return digest_by_option


def _paths(config: Config, axes: dict[str, type]) -> Iterator[tuple[str, str, str]]:
    for axis, base in axes.items():
        if axis in config:
            given = config[axis].get("init_args") or {}
            for option in sorted(path_options(base, config[axis]["class_path"]) & given.keys()):
                if given[option] is not None:
                    yield axis, option, str(given[option])


def _file(path: Path) -> str:
    try:
        state = path.stat()
        return _digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


@lru_cache  # weights are gigabytes, and the points of a sweep share them
def _digest(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:12]
