"""ADM's .npz files: images as arr_0, uint8 (N, H, W, C), and statistics of Inception's features.

Images are read and written in batches: 50,000 of 256x256 pixels would fill 10 GB of memory.
"""

__all__ = ["STATISTICS", "Archive", "write_archive"]

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import replacing

IMAGES = "arr_0"
STATISTICS = {"mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023)}
FORM = "arr_0, uint8 (N, H, W, C) with C = 1 or 3"


class Archive:
    """A .npz of ADM: its images, as `n` of `shape` (C, H, W), and statistics, if it has them.

    The constructor reads headers only. UserError for a file that is none, has neither, or has
    arrays of another dtype or shape; damage inside is told when it is read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist; valid: an .npz file with {FORM}")
        with self._open() as file:
            infos = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
            crcs = sorted((name, info.CRC) for name, info in infos.items())
            self.n, self.shape = 0, (0, 0, 0)
            if IMAGES in infos:
                self._read_header(file)
        self.digest = f"{zlib.crc32(repr(crcs).encode()):08x}"
        self.statistics_keys = [key for key in STATISTICS if key in infos]
        for mean, cov in (("mu", "sigma"), ("mu_s", "sigma_s")):
            if (mean in infos) != (cov in infos):
                raise UserError(f"{path} has one of {mean} and {cov}; valid: both or neither")
        if IMAGES not in infos and "mu" not in infos:
            names = ", ".join(infos) or "nothing"
            raise UserError(f"{path} holds {names}; valid: {FORM}, or statistics mu, sigma")

    def batches(self, size: int, limit: int | None = None) -> Iterator[Tensor]:
        """Yields the images, or the first `limit`, as uint8 (n, C, H, W), n up to `size`."""
        channels, height, width = self.shape
        remaining = self.n if limit is None else min(limit, self.n)
        with self._open() as file, file.open(f"{IMAGES}.npy") as array:
            _header(array)
            while remaining:
                n = min(size, remaining)
                content = array.read(n * height * width * channels)
                if len(content) < n * height * width * channels:
                    raise UserError(f"{self.path} is damaged: {IMAGES} ends early")
                images = np.frombuffer(bytearray(content), dtype=np.uint8)
                images = torch.from_numpy(images).view(n, height, width, channels)
                yield images.permute(0, 3, 1, 2)
                remaining -= n

    def statistics(self) -> dict[str, Tensor]:
        """Returns what is stored of mu (2048,), sigma, mu_s (2023,) and sigma_s, float64."""
        statistics = {}
        with self._open(), np.load(self.path, allow_pickle=False) as arrays:
            for key in self.statistics_keys:
                array = arrays[key]
                if array.shape != STATISTICS[key] or array.dtype.kind != "f":
                    raise UserError(
                        f"{self.path}: {key} is {array.dtype} {array.shape}; "
                        f"valid: floating point {STATISTICS[key]}"
                    )
                if not np.isfinite(array).all():
                    raise UserError(f"{self.path}: {key} has values that are not finite")
                statistics[key] = torch.from_numpy(array.astype(np.float64))
        return statistics

    def _read_header(self, file: zipfile.ZipFile) -> None:
        with file.open(f"{IMAGES}.npy") as array:
            shape, fortran, dtype = _header(array)
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or fortran:
            order = ", in Fortran order" if fortran else ""
            raise UserError(f"{self.path}: {IMAGES} is {dtype} {shape}{order}; valid: {FORM}")
        if shape[0] < 2:
            raise UserError(f"{self.path}: {IMAGES} holds {shape[0]} images; give at least 2")
        self.n, self.shape = shape[0], (shape[3], shape[1], shape[2])

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as file:
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} is no .npz file, or damaged: {reason}") from error


def _header(array: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, whether in Fortran order, and dtype; the array's bytes come next."""
    version = npy.read_magic(array)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(array)


@contextmanager
def write_archive(path: str) -> Iterator["Writer"]:
    """Opens a .npz to write; it appears at the path when all is written, or not at all."""
    with (
        replacing(path) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as file,
    ):
        yield Writer(file)


class Writer:
    """Writes the arrays of a .npz one after the other, images as they come."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file

    def images(self, batches: Iterable[Tensor], n: int) -> None:
        """Writes n images, uint8 batches (m, C, H, W), as arr_0 (n, H, W, C)."""
        with self.file.open(f"{IMAGES}.npy", "w", force_zip64=True) as array:
            written = 0
            for batch in batches:
                pixels = batch.permute(0, 2, 3, 1).contiguous().cpu().numpy()
                if not written:
                    shape = (n, *pixels.shape[1:])
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    npy.write_array_header_1_0(array, header)
                array.write(pixels.data)
                written += len(pixels)
        assert written == n

    def arrays(self, arrays: Mapping[str, Tensor]) -> None:
        """Writes tensors by their names."""
        for name, tensor in arrays.items():
            with self.file.open(f"{name}.npy", "w", force_zip64=True) as array:
                npy.write_array(array, tensor.cpu().numpy(), allow_pickle=False)
