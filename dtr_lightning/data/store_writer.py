"""Writes a store block by block, by any number of processes, each of which may die at any time.

Block i is of rank i mod world. A block counts when its rows are on the disk and a file in `blocks/`
says so, with their digest and that of what they are made of; whoever finds all of these completes
the manifest. No process waits for the blocks of another, none writes those that another writes, and
what was written by how many of them shows nowhere.

A block is encoded as a whole: the last bits of a row may depend on those beside it. So where images
have changed, the blocks that hold the same ones as before stay, and all others are written again.
"""

__all__ = ["PART", "Part", "Report", "Source", "write_store"]

import errno
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dtr_lightning.data.store import MANIFEST, SPLITS, TOKENS, Array, Manifest, read_begun
from dtr_lightning.errors import Stopped, Unreadable, UserError
from dtr_lightning.rundir.atomic import leftovers, replacing, write_text
from dtr_lightning.rundir.claims import Claims

LOCK = ".lock"  # of claims: to begin or complete the store, and on every block
STORE, FIRST = 0, 1
PART = 64  # images that are encoded and written at a time
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What may differ when a store goes on.
PLACES = ("source", "vae_path", "clip_path", "complete", "content")
# What may differ too once an image could not be read, as people then mend their folder.
IMAGES = ("train", "val", "class_names", "source_digest", "captions", "captions_digest")
UNREADABLE = "unreadable"  # beside the markers of blocks until the end: a file of the source was

Report = Callable[[str, int, int], None]  # of "images" or "captions": how many of how many


class Part(NamedTuple):
    """Rows of a store: what is stored (n, ...), the same of mirrored images, labels int64 (n,).

    Of captions there are the tokens (n, L_text, C_text) alone.
    """

    stored: np.ndarray
    flipped: np.ndarray | None = None
    labels: np.ndarray | None = None


class Block(NamedTuple):
    """Rows [start, stop) of a split, or of captions."""

    number: int
    split: str
    start: int
    stop: int

    def parts(self) -> list[range]:
        """Returns its parts."""
        starts = range(self.start, self.stop, PART)
        return [range(start, min(start + PART, self.stop)) for start in starts]


class Source(ABC):
    """What a store is made of."""

    manifest: Manifest  # of the store, not complete

    @abstractmethod
    def parts(self, split: str, indices: list[Tensor]) -> Iterator[Part]:
        """Yields the rows of these images, or captions, (n,) each, a part after the other."""

    def files(self) -> dict[str, bytes]:
        """Returns what further files hold, by their names."""
        return {}

    def made_of(self, block: Block) -> str:
        """Returns a digest of the images or captions of a block; here, of those of all blocks."""
        whole = (self.manifest.source_digest, self.manifest.captions_digest)
        return sha256(" ".join(whole).encode()).hexdigest()[:12]


def write_store(
    folder: Path,
    source: Source,
    rank: int = 0,
    world: int = 1,
    report: Report = lambda what, done, total: None,
    stop: Event | None = None,
) -> Manifest:
    """Writes this rank's blocks that are not there yet, and returns the manifest.

    It is complete if the blocks of all ranks are there. UserError where the folder holds another
    store or other files, where another process writes the same blocks, or the disk is full: the
    same command then goes on. Where an image was unreadable, it goes on with the images as they are
    then, replaced, removed or added. Stopped when `stop` was set.
    """
    if (begun := read_begun(folder)) is not None and begun.complete:
        return _begin(folder, source)  # which may be on a disk that nobody writes to
    with _room(folder), _claims(folder) as claims:
        with _alone(claims):
            manifest = _begin(folder, source, claims, slice(rank, None, world))
            if manifest.complete:
                return manifest
            blocks = list(_blocks(manifest))
            mine = blocks[rank::world]
            waiting = [block for block in mine if not _marker(folder, block).exists()]
            if not all(claims.take(FIRST + block.number) for block in waiting):
                raise _busy(folder)
        for what, splits in (("images", SPLITS), ("captions", (TOKENS,))):
            total, left = (
                sum(block.stop - block.start for block in part if block.split in splits)
                for part in (mine, waiting)
            )
            if total:
                report(what, total - left, total)
            for split in splits:
                if not (todo := [block for block in waiting if block.split == split]):
                    continue
                try:
                    for count in _write_blocks(folder, manifest, source, split, todo, stop):
                        left -= count
                        report(what, total - left, total)
                except Unreadable as error:
                    write_text(folder / "blocks" / UNREADABLE, str(error))
                    raise
                except FileNotFoundError:  # without locks another may complete the store meanwhile
                    if claims.works or not (now := read_begun(folder)) or not now.complete:
                        raise
                    return now
        with _alone(claims):
            return _complete(folder, manifest, blocks)


@contextmanager
def _claims(folder: Path) -> Iterator[Claims]:
    """Yields the claims on a store; UserError where the folder holds other files."""
    if read_begun(folder) is None and folder.exists():
        others = folder.is_dir() and {*folder.iterdir()} - {*leftovers(folder), folder / LOCK}
        if others or not folder.is_dir():
            raise UserError(f"{folder} is there already and no store; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    claims = Claims(folder / LOCK)
    try:
        yield claims
    finally:
        claims.close()


@contextmanager
def _alone(claims: Claims) -> Iterator[None]:
    """Waits until no other process begins or completes the store."""
    claims.take(STORE, wait=True)
    try:
        yield
    finally:
        claims.free(STORE)


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Makes a disk that is full a mistake of one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"no room in {folder}: {error.strerror}; make room, and the same command goes on"
        ) from error


def _busy(folder: Path) -> UserError:
    return UserError(
        f"{folder} is being written by another process: leave it to that one, whose end the same "
        "command finds, or share the work with --rank R --world N"
    )


def _begin(
    folder: Path, source: Source, claims: Claims | None = None, share: slice = slice(None)
) -> Manifest:
    """Returns the manifest of the store that is begun, or was before by the same command."""
    manifest = source.manifest
    begun = read_begun(folder)
    if begun and claims and (folder / "blocks" / UNREADABLE).exists():
        begun = _mend(folder, begun, source, claims, share)
    if begun is None:
        write_text(folder / MANIFEST, manifest.text())
    elif replace(begun, **_of(manifest, PLACES)) != manifest:
        old, new = vars(begun), vars(manifest)
        key = next(key for key in old if key not in PLACES and old[key] != new[key])
        raise UserError(
            f"{folder} is a store of another {key.replace('_', ' ')}: {_short(old[key])}, not "
            f"{_short(new[key])}; choose another --out"
        )
    else:
        manifest = begun
    if not manifest.complete:
        marked = any(_marker(folder, block).exists() for block in _blocks(manifest))
        for array in manifest.arrays:
            _allocate(folder / array.file, array, marked)
        for name, data in source.files().items():
            if not (folder / name).exists():
                with replacing(folder / name) as part:
                    part.write_bytes(data)
        (folder / "blocks").mkdir(exist_ok=True)
    return manifest


def _mend(folder: Path, begun: Manifest, source: Source, claims: Claims, share: slice) -> Manifest:
    """Returns the manifest with which a begun store goes on, having taken back outdated blocks.

    Where no image was added or removed, those of this `share` alone are looked at. UserError where
    another process writes what is taken back.
    """
    manifest = source.manifest
    same = replace(begun, **_of(manifest, PLACES)) == manifest
    if not same and replace(begun, **_of(manifest, (*PLACES[1:], *IMAGES))) != manifest:
        return begun  # of another command
    old, new = list(_blocks(begun)), list(_blocks(manifest))
    places = {(block.split, block.start, block.stop): block for block in new}
    outdated, kept = [], 0
    for block in old[share] if same else old:
        if not (marker := _marker(folder, block)).exists():
            continue
        now = places.get((block.split, block.start, block.stop))
        if now and marker.read_text().partition(" ")[2] == source.made_of(now):
            kept += 1
        else:
            outdated.append(block)
    if same and not outdated:
        return begun
    taken = [FIRST + block.number for block in (outdated if same else old)]
    if not all(claims.take(part) for part in taken):
        raise _busy(folder)
    logging.getLogger(__name__).warning(
        "note: images of %s have changed since one could not be read: %d of its blocks stay, %d "
        "are encoded again",
        *(folder, kept, len(outdated)),
    )
    for block in outdated:
        _marker(folder, block).unlink()
    if not same:
        for name in source.files():
            (folder / name).unlink(missing_ok=True)
        for array in manifest.arrays:  # rows stay where they are: a header is as long for any N
            if (folder / array.file).exists():
                _resize(folder / array.file, array)
        write_text(folder / MANIFEST, manifest.text())
    for part in taken:
        claims.free(part)
    return begun if same else manifest


def _of(manifest: Manifest, keys: Sequence[str]) -> dict[str, Any]:
    return {key: getattr(manifest, key) for key in keys}


def _short(value: Any) -> str:
    return str(value) if len(str(value)) < 60 else f"{str(value)[:57]}..."


def _blocks(manifest: Manifest) -> Iterator[Block]:
    number = 0
    for split, size in manifest.rows.items():
        for start in range(0, size, manifest.block):
            yield Block(number, split, start, min(start + manifest.block, size))
            number += 1


def _marker(folder: Path, block: Block) -> Path:
    """Returns the file that says that a block is there, by the rows that it is."""
    return folder / "blocks" / f"{block.split}-{block.start:09d}-{block.stop:09d}"


def _header(array: Array) -> bytes:
    file = BytesIO()
    facts = {"descr": array.dtype, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def _length(array: Array) -> int:
    return len(_header(array)) + np.dtype(array.dtype).itemsize * int(np.prod(array.shape))


def _allocate(path: Path, array: Array, marked: bool) -> None:
    """Gives a file its header and length, where nothing was written to it yet."""
    length = _length(array)
    size = path.stat().st_size if path.exists() else 0
    if size == length:
        return
    if marked:
        raise UserError(
            f"{path} has {size:,} bytes; expected {length:,}: remove the store and make it anew"
        )
    _resize(path, array)


def _resize(path: Path, array: Array) -> None:
    """Gives a file its header and length, whatever rows it holds."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _write(file, 0, _header(array))
        os.ftruncate(file, _length(array))
        os.fsync(file)
    finally:
        os.close(file)


def _write(file: int, offset: int, data: bytes | memoryview) -> None:
    """Writes all bytes at an offset; by a memory map a full disk would kill the process."""
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def _write_blocks(
    folder: Path,
    manifest: Manifest,
    source: Source,
    split: str,
    blocks: list[Block],
    stop: Event | None,
) -> Iterator[int]:
    """Writes blocks of one split, or of captions, and yields how many rows were added."""
    arrays = [array for array in manifest.arrays if array.file.startswith(split)]
    plan = [(block, part) for block in blocks for part in block.parts()]
    indices = [torch.arange(part.start, part.stop) for _, part in plan]
    hashed = sha256()
    with ExitStack() as stack:
        files = []
        for array in arrays:
            file = os.open(folder / array.file, os.O_RDWR)
            stack.callback(os.close, file)
            files.append((file, len(_header(array))))
        for (block, part), rows in zip(plan, source.parts(split, indices), strict=True):
            given = [each for each in rows if each is not None]
            for (file, offset), array, each in zip(files, arrays, given, strict=True):
                values = np.ascontiguousarray(each, array.dtype)
                assert values.shape == (len(part), *array.shape[1:])
                data = values.reshape(-1).view(np.uint8).data
                _write(file, offset + part.start * (values.nbytes // len(part)), data)
                hashed.update(data)
            if part.stop == block.stop:
                for file, _ in files:
                    os.fsync(file)
                write_text(_marker(folder, block), f"{hashed.hexdigest()} {source.made_of(block)}")
                hashed = sha256()
            yield len(part)
            if stop is not None and stop.is_set():
                raise Stopped


def _complete(folder: Path, manifest: Manifest, blocks: list[Block]) -> Manifest:
    """Returns the complete manifest, having written it, if all blocks are there."""
    try:
        digests = [_marker(folder, block).read_text().split()[0] for block in blocks]
    except FileNotFoundError:  # of other ranks, unless one of them has just completed it
        return read_begun(folder) or manifest
    content = sha256("".join(digests).encode()).hexdigest()[:12]
    manifest = replace(manifest, complete=True, content=content)
    write_text(folder / MANIFEST, manifest.text())
    with suppress(OSError):
        shutil.rmtree(folder / "blocks")
        for part in leftovers(folder):
            part.unlink()
    return manifest
