"""Any folder of images, prepared as ADM does: centre crop of the short side, then flips."""

__all__ = ["ImageFolder", "centre_crop", "hold_out", "read_image", "to_rgb"]

import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from dtr_lightning.data.base import Data, Split
from dtr_lightning.data.image_files import centre_crop, read_image, to_rgb
from dtr_lightning.data.scan import Paths, Scan, few, repeated, scan
from dtr_lightning.data.splits import Splits, find_splits
from dtr_lightning.errors import Unreadable, UserError

TOGETHER = 64  # files that are looked through before the time is


class ImageFolder(Data):
    """The images below a folder; the class is the first sub-folder, by sorted name.

    Where `root` holds folders of splits (`train` with `val` or, without it, `test`; in any case,
    and under other usual names), these are the splits; else `held_out` decides. Every format that
    Pillow opens is read; of several frames the first. An image counts once, whatever links lead to
    it; `describe` tells what was passed over. A file that cannot be read raises UserError when its
    turn comes: a check of a million files at the start would take longer than many a run. It names
    the others that half a minute finds.

    Args:
        root: the folder.
        size: side of the square images in pixels.
        channels: 3 for colour, 1 for grey.
        held_out: share of the images to hold out, at least one; chosen by a hash of their paths.
        class_folders: false reads all images as one class, whatever the folders mean.
        split_folders: false reads folders named train, val or test as any other.
        batch_size: images per step, all ranks together.
        flip: whether half of the images are mirrored, left to right.
        workers: processes that read images.
    """

    patience: float = 30.0  # seconds to look for further unreadable files; a store needs them all

    def __init__(
        self,
        root: str | Path,
        size: int,
        channels: Literal[1, 3] = 3,
        held_out: float = 0.02,
        class_folders: bool = True,
        split_folders: bool = True,
        batch_size: int = 256,
        flip: bool = True,
        workers: int = 2,
    ) -> None:
        super().__init__(batch_size, flip, workers)
        if size < 1:
            raise UserError(f"image size {size} is not valid; give 1 or more pixels")
        if not 0 < held_out < 1:
            raise UserError(f"held-out share {held_out} is not valid; give one between 0 and 1")
        self.root, self.size, self.channels = root, size, channels
        self.held_out, self.class_folders = held_out, class_folders
        self.in_channels, self.image_size = channels, size
        folder = Path(root).expanduser()
        scanned = scan(folder)
        if not scanned.paths:
            passed = f" (passed over: {scanned.passed_over()})" if scanned.passed else ""
            raise UserError(f"no images in {folder}{passed}; valid: every format that Pillow reads")
        splits = find_splits(folder, scanned) if split_folders else Splits("")
        train = folder / splits.train
        if splits.held_out is None:
            (known,) = _select(folder, scanned, splits.train)
            paths = dict(zip(("train", "val"), hold_out(known, train, held_out), strict=True))
            folders = dict.fromkeys(paths, train)
        else:
            known, others = _select(folder, scanned, splits.train, splits.held_out)
            paths = {"train": known, "val": others}
            folders = {"train": train, "val": folder / splits.held_out}
        self.class_names = _classes(known, train) if class_folders else ()
        number = {name: i for i, name in enumerate(self.class_names)}
        self.files = {}
        for name, part in paths.items():
            labels = np.zeros(len(part), dtype=np.int32)
            if number:
                if unknown := sorted({_class_of(path) for path in part} - set(number)):
                    raise _unknown_class(unknown, folders[name], train, self.class_names)
                labels[:] = np.fromiter((number[_class_of(path)] for path in part), np.int32)
            self.files[name] = _Files(folders[name], Paths(part), labels, size, channels)
        from_folder = f"from {splits.held_out}/" if splits.held_out else "by a hash of their paths"
        self.source = f" ({from_folder})"
        self.left_out = "".join(f"; {part}" for part in self._left_out(scanned, splits))
        self.class_names = self.class_names or ("all",)
        self.num_classes = len(self.class_names)

    def digest(self) -> str:
        """Returns a digest of classes and of the images' paths in either split."""
        listed = sha256(super().digest().encode())
        for files in self.files.values():
            for path in files.paths:
                listed.update(os.fsencode(path) + b"\0")
        return listed.hexdigest()[:12]

    def digest_of(self, name: Split, rows: range) -> str:
        """Returns a digest of paths, classes, sizes and times of some images."""
        files, listed = self.files[name], sha256()
        for i in rows:
            path = os.path.join(files.folder, files.paths[i])
            try:
                own = os.stat(path)
                state = f"{files.labels[i]} {own.st_size} {own.st_mtime_ns}"
            except OSError:  # removed meanwhile
                state = "none"
            listed.update(os.fsencode(files.paths[i]) + f"\0{state}\0".encode())
        return listed.hexdigest()[:12]

    def split(self, name: Split) -> Dataset:
        """Returns one split of (uint8 (C, size, size), label), in the order of the sorted paths."""
        return self.files[name]

    def class_counts(self) -> list[int]:
        """Returns how many training images each class has."""
        return np.bincount(self.files["train"].labels, minlength=self.num_classes).tolist()

    def explain(self, error: UserError) -> UserError:
        """Returns the error that names all unreadable files, as far as `patience` goes."""
        if not isinstance(error, Unreadable):
            return error
        parts = [(files, i) for files in self.files.values() for i in range(len(files))]
        end, done, broken = time.monotonic() + self.patience, 0, []
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            while done < len(parts) and time.monotonic() < end:
                looked = parts[done : done + TOGETHER]
                paths = pool.map(lambda part: part[0].unreadable(part[1]), looked)
                broken += [path for path in paths if path is not None]
                done += len(looked)
        if len(broken) < 2:
            return error
        seen = "" if done == len(parts) else f" (found among {done:,} of {len(parts):,})"
        return Unreadable(
            f"cannot read {len(broken):,} images{seen}: {few(sorted(broken))}; "
            "replace or remove them"
        )

    def _left_out(self, scanned: Scan, splits: Splits) -> list[str]:
        """Returns what there is besides the images that are read, for `describe`."""
        passed = (
            f"passed over: {scanned.passed_over()}" if scanned.passed else "nothing passed over"
        )
        parts = [passed]
        if splits.unread:
            parts.append(f"not read: {few(splits.unread)}")
        if self.class_names:
            held_out = set(self.files["val"].labels.tolist())
            absent = [name for i, name in enumerate(self.class_names) if i not in held_out]
            start = os.path.join(splits.train, "")
            inside = {f.removeprefix(start) for f in scanned.folders if f.startswith(start)} - {""}
            empty = sorted({f for f in inside if os.sep not in f} - set(self.class_names))
            if absent:
                parts.append(f"none held out of: {few(absent)}")
            if empty:
                parts.append(f"without images: {few(empty)}")
        return parts


class _Files(Dataset):
    def __init__(
        self, folder: Path, paths: Sequence[str], labels: np.ndarray, size: int, channels: int
    ) -> None:
        self.folder, self.paths, self.labels = str(folder), paths, labels
        self.size, self.channels = size, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path = os.path.join(self.folder, self.paths[i])
        return read_image(path, self.size, self.channels), int(self.labels[i])

    def unreadable(self, i: int) -> str | None:
        """Returns the path of an image that cannot be read; None for all others."""
        try:
            self[i]
        except Unreadable:
            return os.path.join(self.folder, self.paths[i])
        return None


def _select(folder: Path, scanned: Scan, *splits: str) -> list[list[str]]:
    """Returns the images of some splits, by paths relative to each; one that is in both once.

    What is repeated is counted with what was passed over. UserError for a split with none left.
    """
    spans = []
    for split in splits:
        first, last = (
            (split + os.sep, split + chr(ord(os.sep) + 1)) if split else ("", chr(0x10FFFF))
        )
        spans.append(range(bisect_left(scanned.paths, first), bisect_left(scanned.paths, last)))
    places = [i for span in spans for i in span]
    again = repeated(folder, [scanned.paths[i] for i in places], scanned.files[places])
    again = {places[i] for i in again}
    if again:
        scanned.passed["repeated image"] += len(again)
    parts = []
    for split, span in zip(splits, spans, strict=True):
        start = len(os.path.join(split, ""))
        parts.append([scanned.paths[i][start:] for i in span if i not in again])
        if not parts[-1]:
            raise UserError(f"{folder / split} holds no images that {folder / splits[0]} has not")
    return parts


def hold_out(paths: list[str], folder: str | Path, share: float) -> tuple[list[str], list[str]]:
    """Parts paths into (train, held out): a hash keeps a path's side when others are added."""
    if len(paths) < 2:
        raise UserError(f"{folder} holds one image; give two or more: one is held out")
    count = min(max(1, round(share * len(paths))), len(paths) - 1)
    order = sorted(paths, key=lambda path: blake2b(os.fsencode(path), digest_size=8).digest())
    held_out = set(order[:count])
    return [p for p in paths if p not in held_out], [p for p in paths if p in held_out]


def _unknown_class(
    unknown: list[str], held_out: Path, train: Path, classes: Sequence[str]
) -> UserError:
    """Returns the error for held-out images of classes that are not trained on."""
    name, same = unknown[0], {c.casefold(): c for c in classes}
    if not name:
        return UserError(
            f"{held_out} holds images outside of class folders, and {train} has {len(classes):,} "
            f"classes; sort them into such folders, or give --data.root {train} to hold out a "
            "share of its images, or --data.class_folders false to train without classes"
        )
    if other := same.get(name.casefold()):
        return UserError(f"{held_out} has a class {name!r}, {train} {other!r}; give both one name")
    more = f" and {len(unknown) - 1:,} more classes" if len(unknown) > 1 else ""
    return UserError(
        f"{held_out} holds images of {name!r}{more}, which {train} has not; valid: {few(classes)}"
    )


def _class_of(path: str) -> str:
    return path.split(os.sep, 1)[0] if os.sep in path else ""


def _classes(paths: list[str], folder: Path) -> tuple[str, ...]:
    """Returns the sorted names of the class folders, () where there are none."""
    names = sorted({_class_of(path) for path in paths})
    if names == [""]:
        return ()
    if names[0] == "":
        raise UserError(
            f"{folder} holds images both beside and inside class folders; move the former into a "
            "folder of their own, or give class_folders: false"
        )
    return tuple(names)
