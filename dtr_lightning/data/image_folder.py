"""Any folder of images, prepared as ADM does: centre crop of the short side, then flips."""

__all__ = ["ImageFolder", "centre_crop", "read_image", "to_rgb"]

import os
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from dtr_lightning.data.base import Data, Split
from dtr_lightning.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")


class ImageFolder(Data):
    """The images below a folder; the class is the first sub-folder, by sorted name.

    Folders without images and hidden files are passed over. Where `root` holds `train` and `val`
    (or `valid`, `validation`, `test`), these are the splits; else `held_out` decides. A file that
    cannot be read raises UserError with its path when its turn comes: a check of a million files at
    the start would take longer than many a run.

    Args:
        root: the folder.
        size: side of the square images in pixels.
        channels: 3 for colour, 1 for grey.
        held_out: share of the images to hold out, at least one; chosen by a hash of their paths.
        class_folders: false reads all images as one class, whatever the folders mean.
        batch_size: images per step, all ranks together.
        flip: whether half of the images are mirrored, left to right.
        workers: processes that read images.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: Literal[1, 3] = 3,
        held_out: float = 0.02,
        class_folders: bool = True,
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
        other = next((n for n in HELD_OUT_FOLDERS if (folder / n).is_dir()), None)
        if other and (folder / "train").is_dir():
            folders = {"train": folder / "train", "held_out": folder / other}
            paths = {name: _scan(part) for name, part in folders.items()}
            known = paths["train"]
        else:
            folders = dict.fromkeys(("train", "held_out"), folder)
            known = _scan(folder)
            paths = dict(zip(folders, _hold_out(known, folder, held_out), strict=True))
        self.class_names = _classes(known, folders["train"]) if class_folders else ()
        number = {name: i for i, name in enumerate(self.class_names)}
        self.files = {}
        for name, part in paths.items():
            classes = [_class_of(path) for path in part] if number else []
            if unknown := sorted(set(classes) - set(number)):
                raise UserError(
                    f"{folders[name]} holds images of {unknown[0] or 'no class'!r}, which "
                    f"{folders['train']} has not; valid: {', '.join(number)}"
                )
            labels = np.array([number[c] for c in classes] or [0] * len(part), dtype=np.int32)
            self.files[name] = _Files(folders[name], part, labels, size, channels)
        self.class_names = self.class_names or ("all",)
        self.num_classes = len(self.class_names)

    def split(self, name: Split) -> Dataset:
        """Returns one split of (uint8 (C, size, size), label), in the order of the sorted paths."""
        return self.files[name]

    def class_counts(self) -> list[int]:
        """Returns how many training images each class has."""
        return np.bincount(self.files["train"].labels, minlength=self.num_classes).tolist()


class _Files(Dataset):
    def __init__(
        self, folder: Path, paths: list[str], labels: np.ndarray, size: int, channels: int
    ) -> None:
        self.folder, self.paths, self.labels = str(folder), paths, labels
        self.size, self.channels = size, channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path = os.path.join(self.folder, self.paths[i])
        return read_image(path, self.size, self.channels), int(self.labels[i])


def read_image(path: str | Path, size: int, channels: int = 3) -> Tensor:
    """Returns an image file as uint8 (channels, size, size); UserError names one it cannot read."""
    try:
        with Image.open(path) as file:
            image = centre_crop(to_rgb(file), size)
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read image {path}: not an image, or damaged") from error
    except Exception as error:  # whatever a decoder raises, the file is what the person must know
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read image {path}: {reason}") from error
    if channels == 1:
        image = image.convert("L")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as 8-bit RGB, upright (EXIF), transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: a plain convert would clip at 255
        levels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Returns the central size x size square after the short side was brought to `size` (ADM).

    Box filters halve both sides while the short one is at least twice `size`; a bicubic resize does
    the rest.
    """
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    if min(width, height) != size:
        scale = size / min(width, height)
        width, height = round(width * scale), round(height * scale)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _scan(folder: Path) -> list[str]:
    """Returns the paths of all images below a folder, relative to it and sorted."""
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist or is no folder")

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list image folder {error.filename}: {error.strerror}") from error

    found = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        prefix = "" if inside == os.curdir else inside + os.sep
        found += [
            prefix + name
            for name in files
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    if not found:
        raise UserError(f"no images in {folder}; valid: {' '.join(EXTENSIONS)}")
    return sorted(found)


def _hold_out(paths: list[str], folder: Path, share: float) -> tuple[list[str], list[str]]:
    """Parts paths into (train, held out): a hash keeps a path's side when others are added."""
    if len(paths) < 2:
        raise UserError(f"{folder} holds one image; give two or more: one is held out")
    count = min(max(1, round(share * len(paths))), len(paths) - 1)
    order = sorted(paths, key=lambda path: blake2b(os.fsencode(path), digest_size=8).digest())
    held_out = set(order[:count])
    return [p for p in paths if p not in held_out], [p for p in paths if p in held_out]


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
