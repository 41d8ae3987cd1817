"""Which images lie below a folder, each once wherever links lead, and what is passed over."""

__all__ = ["Paths", "Scan", "few", "repeated", "scan"]

import heapq
import os
import stat
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dtr_lightning.data.image_files import extensions
from dtr_lightning.errors import UserError

# Folders that file systems, network drives and archives make by themselves, thumbnails among them.
SYSTEM = {"$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "lost+found"}
SHOWN = 5  # names or kinds of files in a message


class Paths(Sequence[str]):
    """Paths in one buffer: processes share it, where a million strings would be copied by use."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.text = os.fsencode("".join(paths))
        self.stops = np.zeros(len(paths) + 1, dtype=np.int64)
        lengths = (len(os.fsencode(path)) for path in paths)
        self.stops[1:] = np.fromiter(lengths, np.int64, len(paths)).cumsum()

    def __len__(self) -> int:
        return len(self.stops) - 1

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # no slices are taken
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return os.fsdecode(self.text[self.stops[i] : self.stops[i + 1]])


class Scan(NamedTuple):
    """What lies below a folder, by paths relative to it.

    `paths` are the images, sorted; `files` (N,) a number for each, different unless two may be one
    file; `folders` how many lie in each folder itself, its own name being ""; `passed` counts what
    is no image, by kind.
    """

    paths: list[str]
    files: np.ndarray
    folders: dict[str, int]
    passed: Counter[str]

    def passed_over(self) -> str:
        """Returns what was passed over in words, such as `88 .txt, 2 hidden`."""
        return few([_counted(*kind) for kind in self.passed.most_common()])


def scan(folder: str | Path) -> Scan:
    """Lists the images below a folder; UserError where it or a folder in it cannot be listed.

    A folder is listed once, under its own place before any link to it; a link to a folder around
    itself, or around the scanned one, is passed over. Hidden files are passed over.
    """
    root = os.fspath(folder)
    if not os.path.isdir(root):
        raise UserError(f"image folder {folder} does not exist or is no folder")
    known = extensions()
    paths: list[str] = []
    files = array("q")
    folders: dict[str, int] = {}
    passed: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting, links = [""], []
    while waiting or links:
        inside = waiting.pop() if waiting else heapq.heappop(links)
        place = os.path.join(root, inside)
        if os.path.islink(place) and inside and _around(place, root):
            passed["looping link"] += 1
            continue
        try:
            own = os.stat(place)
            folders[inside], before = 0, len(paths)
            if (own.st_dev, own.st_ino) in seen:
                passed["repeated folder"] += 1
                continue
            seen.add((own.st_dev, own.st_ino))
            prefix = os.path.join(inside, "")
            with os.scandir(place) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == "." or name in SYSTEM:
                        passed["hidden"] += 1
                        continue
                    if entry.is_symlink():
                        try:
                            target = entry.stat()
                        except OSError:
                            passed["broken link"] += 1
                            continue
                        if stat.S_ISDIR(target.st_mode):
                            heapq.heappush(links, prefix + name)
                            continue
                        number, regular = target.st_ino, stat.S_ISREG(target.st_mode)
                        device = target.st_dev
                    elif entry.is_dir():
                        waiting.append(prefix + name)
                        continue
                    else:
                        number, regular, device = entry.inode(), entry.is_file(), own.st_dev
                    dot = name.rfind(".")
                    extension = name[dot:].lower() if dot > 0 else ""
                    if not regular:
                        passed["special file"] += 1
                    elif extension in known:
                        paths.append(prefix + name)
                        files.append(hash((device, number)))
                    else:
                        passed[_kind(extension)] += 1
            folders[inside] = len(paths) - before
        except OSError as error:
            raise UserError(f"cannot list image folder {place}: {error.strerror}") from error
    names = np.array(paths, dtype=object)
    order = names.argsort()
    return Scan(names[order].tolist(), np.array(files)[order], folders, passed)


def _around(link: str, root: str) -> bool:
    """Returns whether a link leads to a folder that holds it, or that holds the scanned one."""
    target = os.path.join(os.path.realpath(link), "")
    holders = (os.path.dirname(link), root)
    return any(os.path.join(os.path.realpath(h), "").startswith(target) for h in holders)


def repeated(folder: str | Path, paths: Sequence[str], files: np.ndarray) -> set[int]:
    """Returns the positions of images that are another name of a file that counts already.

    Of hard links and links to one file counts the one that is no link, else the first by its path.
    """
    root = os.path.realpath(folder)
    _, inverse, counts = np.unique(files, return_inverse=True, return_counts=True)
    names: dict[object, list[tuple[bool, int]]] = defaultdict(list)
    for i in np.flatnonzero(counts[inverse] > 1).tolist():
        place = os.path.join(root, paths[i])
        real, own = os.path.realpath(place), os.stat(place)
        # some file systems number no files: those with one name are told apart by that
        identity = (own.st_dev, own.st_ino) if own.st_nlink > 1 else real
        names[identity].append((real != place, i))
    return {i for same in names.values() for _, i in sorted(same)[1:]}


def few(names: Sequence[str]) -> str:
    """Returns the first names and how many more there are; one that no line can show is quoted."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:SHOWN]]
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + more


def _kind(extension: str) -> str:
    if len(extension) < 2:
        return "without extension"
    return extension if extension[1:].isalnum() and len(extension) <= 10 else "of other kinds"


def _counted(kind: str, count: int) -> str:
    plural = "s" if count > 1 and kind.endswith(("link", "file", "folder", "image")) else ""
    return f"{count:,} {kind}{plural}"
