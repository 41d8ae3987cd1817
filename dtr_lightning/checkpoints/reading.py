"""Reading a checkpoint of anybody: tensors and plain values; nothing in a file is ever executed.

`torch.load(weights_only=True)` builds nothing but tensors and containers. What official checkpoints
hold beside them (the options of their training, scalars of NumPy) becomes inert stand-ins. Any
other name is refused, with what the file would have called.
"""

__all__ = ["File", "plain", "read"]

import contextlib
import json
import pickletools
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.weights_file import OF_DIFFUSERS, weights_file

# Classes that hold options or numbers: their names may stand in a file, they are never imported.
HARMLESS = (
    "argparse.Namespace",
    "collections.defaultdict",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Bytes", "Enum", "Float")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Integer", "InterpolationResult", "Path")),
    "omegaconf.nodes.StringNode",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "types.SimpleNamespace",
    "typing.Any",
    *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{what}"
        for core in ("core", "_core")
        for what in ("scalar", "_reconstruct")
    ),
)
PLAIN = ("torch._utils._rebuild", "torch.storage", "torch.FloatStorage", "collections.Ordered")
REFUSED = re.compile(r"GLOBAL ([\w.]+)")
SAFETENSORS_HEADER = 100_000_000  # bytes; the format's own limit


class Inert:
    """Stands for an object of another package: keeps what a file gives it, and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __new__(cls, *arguments: Any) -> "Inert":
        """Takes any arguments, as the class that it stands for may."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Keeps the attributes that a file gives it; any other state as it is."""
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            self.__dict__.update(state)
        else:
            self.arguments = (state,)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value


@dataclass
class File:
    """What a file holds: a mapping of names, and the text that its format has beside it."""

    path: Path
    content: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)  # diffusers' config.json
    metadata: dict[str, str] = field(default_factory=dict)  # the header of a safetensors


def read(path: str | Path) -> File:
    """Returns what a checkpoint holds; UserError, of one line, for a file that is none.

    Tensors are on the CPU, mapped from the file where its format allows it.
    """
    path = weights_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not size:
        raise UserError(f"{path} is empty")
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header < SAFETENSORS_HEADER:
        content = _read_safetensors(path)
    else:
        content = File(path, _read_torch(path, start))
    if path.name in OF_DIFFUSERS:
        content.config = _read_config(path.parent / "config.json")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: diffusers' weights need it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it holds no object")
    return config


def _read_safetensors(path: Path) -> File:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return File(path, tensors, metadata=file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_torch(path: Path, start: bytes) -> dict[str, Any]:
    if zipped := start[:4] == b"PK\x03\x04":
        names = _names(path)
        if foreign := sorted(set(names) - set(HARMLESS)):
            raise _code(path, foreign)
    else:
        names = list(HARMLESS)
    try:
        with safe_globals([(_stand_in(), name) for name in names]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises half a dozen types for a bad file
        with path.open("rb") as file:
            foreign = [] if zipped else _called(file)
        if refused := REFUSED.search(str(error)):
            foreign = foreign or [refused[1]]
        if foreign:
            raise _code(path, foreign) from error
        raise _unreadable(path) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not the weights of a network")
    return content


def _names(path: Path) -> list[str]:
    """Returns the names in a zipped checkpoint that torch does not know, by reading it alone."""
    try:
        return get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        if not zipfile.is_zipfile(path):
            raise _unreadable(path) from error
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if not pickles:
                raise UserError(f"{path} is a zip file, but no checkpoint of torch") from error
            with archive.open(pickles[0]) as file:
                if foreign := _called(file):
                    raise _code(path, foreign) from error
        raise _unreadable(path) from error


def _called(file: IO[bytes]) -> list[str]:
    """Returns the names, but harmless ones, in a pickle of any protocol, as far as it is one."""
    names, texts = set(), []
    with contextlib.suppress(Exception):  # whatever a damaged file brings: it only names
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                names.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    return sorted(name for name in names - set(HARMLESS) if not name.startswith(PLAIN))


def _stand_in() -> type:
    """Returns a class of its own for one name: torch tells allowed classes apart by identity."""
    return type("Inert", (Inert,), {})


def _code(path: Path, names: list[str]) -> UserError:
    others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return UserError(
        f"{path} is no plain checkpoint, and was not loaded: it would call {names[0][:120]}{others}"
        "; ask its author for a state_dict or a .safetensors"
    )


def _unreadable(path: Path, reason: object = "") -> UserError:
    text = f"{path} is truncated, damaged or no checkpoint (of torch or safetensors)"
    return UserError(f"{text}: {str(reason).splitlines()[0][:120]}" if str(reason) else text)


def plain(value: Any) -> Any:
    """Returns the options in a stand-in (argparse's, omegaconf's) as dictionaries and plain values.

    What is neither is None.
    """
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if not isinstance(value, Inert):
        return value if isinstance(value, bool | int | float | str | None) else None
    held = vars(value)
    for key in ("_content", "_val"):  # omegaconf's containers, and its values
        if key in held:
            return plain(held[key])
    return {key: plain(inner) for key, inner in held.items() if key != "arguments"}
