"""Images of torchvision's data sets and of the Hugging Face hub, prepared as those of a folder."""

__all__ = ["hub_images", "torchvision_images", "torchvision_names"]

import inspect
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dtr_lightning.data.base import Data, Split
from dtr_lightning.data.image_files import prepare
from dtr_lightning.data.image_folder import hold_out
from dtr_lightning.errors import UserError, choices
from dtr_lightning.rundir.claims import Claims

HELD_OUT = ("val", "valid", "validation", "test")  # names of such splits; the first one counts


class _Part(NamedTuple):
    """Some items of a data set, and how picture and label are read from one."""

    items: Any
    indices: Sequence[int]
    read: Callable[[Any], tuple[Image.Image, int]]


class _Split(Dataset):
    def __init__(self, part: _Part, size: int, channels: int) -> None:
        self.part, self.size, self.channels = part, size, channels

    def __len__(self) -> int:
        return len(self.part.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image, label = self.part.read(self.part.items[int(self.part.indices[i])])
        return prepare(image, self.size, self.channels), label


class _Listed(Data):
    """Data of two parts of somebody's data sets."""

    def __init__(
        self,
        title: str,
        parts: dict[Split, _Part],
        class_names: Sequence[str],
        size: int | None,
        channels: int,
        workers: int,
    ) -> None:
        super().__init__(1, True, workers)
        if size is None:
            train = parts["train"]
            width, height = train.read(train.items[int(train.indices[0])])[0].size
            if width != height:
                raise UserError(f"the first image of {title} is {width} x {height}; give --size")
            size = width
        self.title, self.in_channels, self.image_size = title, channels, size
        self.class_names = tuple(class_names) or ("all",)
        self.num_classes = len(self.class_names)
        self.parts = {name: _Split(part, size, channels) for name, part in parts.items()}

    def split(self, name: Split) -> Dataset:
        return self.parts[name]

    def digest(self) -> str:
        return sha256(f"{self.title} {super().digest()}".encode()).hexdigest()[:12]


def torchvision_names() -> list[str]:
    """Returns the data sets of torchvision that need nothing but a folder, and hold labels."""
    from torchvision import datasets

    names = []
    for name in datasets.__all__:
        takes = inspect.signature(getattr(datasets, name)).parameters
        needed = [p for p in takes.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if [p.name for p in needed] == ["root"] and name not in ("ImageFolder", "DatasetFolder"):
            names.append(name)
    return names


def torchvision_images(
    name: str,
    root: str,
    size: int | None = None,
    channels: int = 3,
    held_out: float = 0.02,
    workers: int = 0,
) -> Data:
    """Returns a data set of torchvision's; what is not below `root` is downloaded.

    Held out is its validation or test split, or a share of it. UserError for an unknown name, and
    where it can be neither read nor downloaded.
    """
    from torchvision import datasets

    if name not in (valid := torchvision_names()):
        raise choices("data set of torchvision", name, valid)
    cls = getattr(datasets, name)
    takes = inspect.signature(cls).parameters

    def made(**split: Any) -> Any:
        try:
            return cls(root, **split)
        except (RuntimeError, OSError) as error:
            if "download" not in takes:
                raise UserError(f"cannot read {name} in {root}: {_line(error)}") from error
        try:
            Path(root).mkdir(parents=True, exist_ok=True)
            with closing(Claims(Path(root) / ".lock")) as claims:  # all processes come here at once
                claims.take(0, wait=True)
                return cls(root, **split, download=True)
        except (RuntimeError, OSError, ImportError) as error:
            raise UserError(
                f"{name} is not in {root} and cannot be downloaded: {_line(error)}; give the "
                "--root DIR that holds it"
            ) from error

    if "train" in takes:
        sets = [made(train=True), made(train=False)]
    elif "split" in takes:
        sets = [_first(made, ("train", "trainval")), _first(made, HELD_OUT)]
    else:
        sets = [made()]
    labels = [of_set for items in sets if (of_set := _labels(items)) is not None]
    labelled = len(labels) == len(sets)
    classes: Sequence[str] = ()
    if labelled:
        count = max(max(each) for each in labels) + 1
        classes = [str(each) for each in getattr(sets[0], "classes", ())]
        classes = classes if len(classes) >= count else [str(i) for i in range(count)]

    def read(item: Any) -> tuple[Image.Image, int]:
        return item[0], int(item[1]) if labelled else 0

    parts = _parted(sets, read, held_out, name)
    return _Listed(f"torchvision:{name}", parts, classes, size, channels, workers)


def _first(made: Callable[..., Any], names: Sequence[str]) -> Any:
    for name in names:
        try:
            return made(split=name)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            last = error
    raise UserError(f"no split {' or '.join(names)}: {_line(last)}")


def _labels(items: Any) -> list[int] | None:
    """Returns the class of every item; None where they have none, or several."""
    for name in ("targets", "labels", "_labels"):
        given = getattr(items, name, None)
        if given is not None and len(given) == len(items) and np.ndim(given) == 1:
            return [int(each) for each in given]
    targets = [items[0][1]]
    if not isinstance(targets[0], int | np.integer):
        return None
    return [int(items[i][1]) for i in range(len(items))]


def hub_images(
    name: str,
    size: int | None = None,
    channels: int = 3,
    held_out: float = 0.02,
    workers: int = 0,
) -> Data:
    """Returns a data set of the Hugging Face hub, or of a folder in its layout.

    Its first column of images counts, and its first of classes if there is one. UserError where
    `datasets` is not installed or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data sets of the hub need: pip install datasets") from error
    try:
        splits = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load {name}: {_line(error)}") from error
    if "train" not in splits:
        raise UserError(f"{name} has no split train; it has {', '.join(splits)}")
    kinds = splits["train"].features
    pictures = [key for key, kind in kinds.items() if isinstance(kind, datasets.Image)]
    if not pictures:
        raise UserError(f"{name} has no column of images; it has {', '.join(kinds)}")
    label = next((k for k, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)), None)
    classes = kinds[label].names if label else ()

    def read(item: Any) -> tuple[Image.Image, int]:
        return item[pictures[0]], int(item[label]) if label else 0

    other = next((split for split in HELD_OUT if split in splits), None)
    sets = [splits["train"], splits[other]] if other else [splits["train"]]
    parts = _parted(sets, read, held_out, name)
    return _Listed(f"hf:{name}", parts, classes, size, channels, workers)


def _parted(sets: Sequence[Any], read: Any, held_out: float, name: str) -> dict[Split, _Part]:
    """Returns the two splits of one or two data sets; of one, a share is held out by a hash."""
    if len(sets) == 2:
        train, val = (_Part(items, range(len(items)), read) for items in sets)
        return {"train": train, "val": val}
    numbers = [str(i) for i in range(len(sets[0]))]
    indices = (list(map(int, part)) for part in hold_out(numbers, name, held_out))
    train, val = (_Part(sets[0], part, read) for part in indices)
    return {"train": train, "val": val}


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
