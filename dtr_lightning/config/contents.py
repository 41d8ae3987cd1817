"""What the files hold that a config names: their content belongs to a run, their place does not.

An argument of a constructor that is annotated as a pathlib.Path names a file or, of a data set, the
folder of its images. The source of a person's own class counts too.
"""

__all__ = ["contents", "with_absolute_paths"]

import json
import os
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path
from typing import Any

from dtr_lightning.config.registry import instantiate, path_options, source_file
from dtr_lightning.data import Data
from dtr_lightning.errors import UserError

Config = dict[str, Any]
VAE = "data.vae"  # a store knows by its digest which autoencoder its latents are of


def with_absolute_paths(config: Config, axes: dict[str, type]) -> Config:
    """Returns a config whose paths are absolute, so that it holds in any working directory.

    What may be a name on a hub as well stays as it is unless it is there.
    """
    config = dict(config)
    for axis, option, path in _paths(config, axes):
        if f"{axis}.{option}" == VAE and not os.path.isdir(os.path.expanduser(path)):
            continue
        arguments = config[axis]["init_args"] | {option: os.path.abspath(os.path.expanduser(path))}
        config[axis] = config[axis] | {"init_args": arguments}
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
    found, digests = {}, {} if digests is None else digests
    for axis, option, path in _paths(config, axes):
        key = f"{axis}.{option}"
        if key == VAE or not Path(path).exists():
            continue
        if axis != "data" or Path(path).is_file():
            found[key] = _file(Path(path))
            continue
        choice = json.dumps(config["data"], sort_keys=True)
        if choice not in digests:
            digests[choice] = (data or instantiate(Data, config["data"])).digest()
        found[key] = digests[choice]
    for axis in axes:
        if axis in config and (file := source_file(config[axis]["class_path"])):
            found[f"{axis}.source"] = _file(file)
    return found


def _paths(config: Config, axes: dict[str, type]) -> Iterator[tuple[str, str, str]]:
    for axis, base in axes.items():
        if axis in config:
            given = config[axis].get("init_args") or {}
            for option in sorted(path_options(base, config[axis]["class_path"]) & given.keys()):
                if given[option] is not None:
                    yield axis, option, str(given[option])


def _file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
