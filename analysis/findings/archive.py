"""The runs behind the findings, small enough for the repository: one file per sweep.

An archive has of each finished run what figures and tables read: config, record of how it was
computed, scalars and results; of some also the CKA of its average weights, which needs the network.
"""

__all__ = ["Archive", "cka_of", "pack"]

import io
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml

from analysis.findings.registered import Registered, names
from analysis.read.runs import Finished, read
from dtr_lightning.errors import UserError, choices
from dtr_lightning.rundir.atomic import writing
from dtr_lightning.rundir.run import find_runs, to_json
from dtr_lightning.rundir.yaml_values import DUMPER

SUFFIX = ".tar.xz"
ELSEWHERE = ("command", "host", "pid", "traceback")  # of meta.json: where the run happened to be
CKA = "cka.npz"


def pack(
    sweep: str, runs: Sequence[Finished], folder: Path, cka: Mapping[Path, Mapping[str, Any]]
) -> Path:
    """Writes folder/SWEEP.tar.xz of finished runs; returns its path.

    cka: {run's path: arrays} of the runs whose CKA is kept. The same runs give the same bytes.
    """
    path = folder / f"{sweep}{SUFFIX}"
    folder.mkdir(parents=True, exist_ok=True)
    with writing(path) as part, tarfile.open(part, "w:xz", format=tarfile.PAX_FORMAT) as tar:
        for run in sorted(runs, key=lambda run: run.path.name):
            for file, content in _files(run, cka.get(run.path)):
                entry = tarfile.TarInfo(f"{run.path.name}/{file}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def _files(run: Finished, cka: Mapping[str, Any] | None) -> Iterable[tuple[str, bytes]]:
    config = run.config
    for option, value in (config["data"].get("init_args") or {}).items():
        if isinstance(value, str) and PurePath(value).is_absolute():
            config["data"]["init_args"][option] = PurePath(value).name
    meta = {key: value for key, value in run.meta.items() if key not in ELSEWHERE}
    yield run.config_file.name, yaml.dump(config, Dumper=DUMPER, sort_keys=False).encode()
    yield run.meta_file.name, to_json(meta).encode()
    yield run.metrics_file.name, run.metrics_file.read_bytes()
    yield run.results_file.name, run.results_file.read_bytes()
    if cka is not None:
        arrays, upper = io.BytesIO(), np.triu_indices(len(cka["t"]))
        values = cka["unbiased"][:, *upper].astype(np.float32)
        np.savez(arrays, t=cka["t"], blocks=cka["blocks"], images=cka["images"], cka=values)
        yield CKA, arrays.getvalue()


class Archive:
    """The archived runs of a folder, by sweep; they are unpacked while it is open.

    UserError for an archive of a sweep that is not registered, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {path.name.removesuffix(SUFFIX): path for path in folder.glob(f"*{SUFFIX}")}
        if unknown := sorted(self.files.keys() - {*names()}):
            raise choices(f"archive in {folder}", unknown[0], names())
        self.sweeps: dict[str, list[Finished]] = {}

    def __enter__(self) -> "Archive":
        self.place = tempfile.TemporaryDirectory()
        try:
            for name, file in sorted(self.files.items()):
                self.sweeps[name] = _unpack(file, Path(self.place.name) / name)
        except BaseException:
            self.place.cleanup()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.place.cleanup()

    def check(self) -> None:
        """Raises UserError if an archive is not its registered sweep, whole."""
        for name, runs in self.sweeps.items():
            registered = Registered.of(name)
            try:
                done = registered.count(runs)
            except UserError as error:
                line = str(error).replace(f"{self.place.name}/", "")
                raise UserError(f"{self.files[name]}: {line}") from error
            if done < registered.runs:
                raise UserError(f"{self.files[name]} has {done} of {registered.runs} runs")

    def runs(self, sweep: str, options: dict[str, Any]) -> dict[int, Finished]:
        """Returns {seed: run} of the runs of a sweep that have these options; empty for none.

        A choice is named without its module. ValueError if the options leave a choice open.
        """
        matching = [run for run in self.sweeps.get(sweep, []) if run.has(options)]
        if len({run.hash_without("seed") for run in matching}) > 1:
            raise ValueError(f"{sweep} has several settings with {options}")
        return {run.seed: run for run in sorted(matching, key=lambda run: run.seed)}


def _unpack(file: Path, at: Path) -> list[Finished]:
    try:
        with tarfile.open(file) as tar:
            tar.extractall(at, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"{file} is damaged; archive its sweep again") from error
    reading = read(find_runs([at]))
    if (lines := reading.damaged + reading.unfinished) or not reading.finished:
        line = "; ".join(lines).replace(f"{at}/", "") or "holds no runs"
        raise UserError(f"{file}: {line}")
    return reading.finished


def cka_of(run: Finished) -> dict[str, np.ndarray] | None:
    """Returns t (m,), block names and CKA float64 [blocks, m, m] of an archived run, or None.

    UserError if its file is damaged.
    """
    if not (file := run.path / CKA).is_file():
        return None
    try:
        with np.load(file) as arrays:
            t, blocks, values = arrays["t"], arrays["blocks"], arrays["cka"].astype(float)
        table = np.empty((len(blocks), len(t), len(t)))
        i, j = np.triu_indices(len(t))
        table[:, i, j] = table[:, j, i] = values
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{run.path.parent.name}: {run.path.name}/{CKA} is damaged") from error
    return {"t": t, "blocks": blocks, "cka": table}
