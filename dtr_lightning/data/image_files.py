"""One image file of any format as pixels, prepared as ADM does: centre crop of the short side."""

__all__ = ["centre_crop", "extensions", "prepare", "read_image", "to_rgb"]

import contextlib
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from dtr_lightning.errors import Unreadable

# What Pillow only names, or has other programs draw: what is read must not depend on the machine.
NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
LARGEST = 2 * 89_478_485  # pixels that are decoded: as many as Pillow allows by itself
LONGEST = 16  # sides; of a longer image only the centre is resized

Image.MAX_IMAGE_PIXELS = None  # read_image has the limit: a JPEG need not be decoded in full
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes; prompts and workflows of image generators are long
PngImagePlugin.MAX_TEXT_MEMORY = 2**28


@cache
def extensions() -> dict[str, str]:
    """Returns the format of every extension that is read, such as {".jpg": "JPEG", ...}."""
    return {
        extension: name
        for extension, name in Image.registered_extensions().items()
        if name == "MPO" or (name in Image.OPEN and name not in NO_PIXELS)
    }


@cache
def _formats() -> list[str]:
    names = {*extensions().values()}
    return [name for name in Image.ID if name in names]


def read_image(path: str | Path, size: int, channels: int = 3) -> Tensor:
    """Returns an image file as uint8 (channels, size, size), of several frames the first.

    Unreadable names a file that cannot be read.
    """
    try:
        with Image.open(path, formats=_formats()) as file:
            _bound(file, size)
            return prepare(file, size, channels)
    except UnidentifiedImageError as error:
        raise Unreadable(
            f"cannot read image {path}: not an image that Pillow reads, or damaged"
        ) from error
    except Exception as error:  # whatever a decoder raises, the file is what the person must know
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"cannot read image {path}: {reason}") from error


def prepare(image: Image.Image, size: int, channels: int = 3) -> Tensor:
    """Returns an image of any mode and size as uint8 (channels, size, size)."""
    image = centre_crop(_eight_bits(image), size)  # grey is less to resize than RGB
    pixels = torch.from_numpy(np.array(image.convert("L" if channels == 1 else "RGB")))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _bound(file: Image.Image, size: int) -> None:
    """Has a JPEG of more than LARGEST pixels decoded at 1/2 to 1/8; ValueError for all others."""
    width, height = file.size
    if width * height > LARGEST and not file.info.get("progressive"):
        scale = 2 * size / min(width, height)
        file.draft(None, (round(width * scale), round(height * scale)))
    if file.width * file.height > LARGEST:
        raise ValueError(
            f"{width} x {height} pixels are more than {LARGEST:,}, the most that are decoded "
            "(of a JPEG that is not progressive: 64 times as many); make it smaller"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as 8-bit RGB, upright (EXIF), transparency on white.

    Levels of 16 bits are divided by 257; floats are shares where none is above 1, else levels to
    255. The image itself may be turned. ValueError for levels beyond 16 bits or 255.
    """
    return _eight_bits(image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns what `to_rgb` does, grey images of mode L."""
    if (transparent := _transparent(image)) is not None:
        image.info["transparency"] = transparent
    image.load()
    with contextlib.suppress(Exception):  # a damaged block of EXIF says nothing: the pixels stay
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image)
        image = Image.fromarray(_scaled(levels))
        if transparent is not None:
            opaque = np.where(levels == transparent, 0, 255).astype(np.uint8)
            image.putalpha(Image.fromarray(opaque))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _transparent(image: Image.Image) -> int | tuple[int, ...] | bytes | None:
    """Returns the transparent colour of an image that is not loaded yet, in levels of its mode.

    Pillow gives that of a PNG as it is stored, but widens 2 and 4 bits to 8 and cuts 16 to 8.
    """
    colour = image.info.get("transparency")
    stored = str(tile[0][3]) if (tile := getattr(image, "tile", None)) else ""
    if image.mode == "L" and isinstance(colour, int):
        return colour * {"L;2": 85, "L;4": 17}.get(stored, 1)
    if stored == "RGB;16B" and isinstance(colour, tuple):
        return tuple(level >> 8 for level in colour)
    return colour


def _scaled(levels: np.ndarray) -> np.ndarray:
    low, high = levels.min(), levels.max()
    if levels.dtype.kind == "f":
        most, scale = 255, 255 if high <= 1 else 1
        unit = "floats"
    else:
        most, scale, unit = 65535, 1 / 257, "levels"
    if not 0 <= low <= high <= most:
        raise ValueError(f"{unit} from {low} to {high}; valid: 0 to {most}. Store it as 8 bits")
    scaled = np.multiply(levels, scale, dtype=np.float32)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Returns the central size x size square after the short side was brought to `size` (ADM).

    Box filters halve both sides while the short one is at least twice `size`; a bicubic resize does
    the rest. Of an image whose long side would become more than LONGEST times `size`, only the
    square is resized: the same pixels, up to the rounding between the two directions.
    """
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    if min(width, height) != size:
        scale = size / min(width, height)
        width, height = round(width * scale), round(height * scale)
        if max(width, height) > LONGEST * size:
            return _resized_centre(image, width, height, size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _resized_centre(image: Image.Image, width: int, height: int, size: int) -> Image.Image:
    """Returns the central square of an image as if it had been resized to width x height."""
    edges, starts, stops, full_height = [], [], [], image.height
    for old, new in zip(image.size, (width, height), strict=True):
        scale, first = old / new, (new - size) // 2
        low, high = first * scale, min((first + size) * scale, old)
        reach = 2 * max(scale, 1) + 1  # of the bicubic filter
        starts.append(max(0, math.floor(low - reach)))
        stops.append(min(old, math.ceil(high + reach)))
        edges.append((low - starts[-1], high - starts[-1]))
    (left, right), (top, bottom) = edges
    image = image.crop((starts[0], starts[1], stops[0], stops[1]))
    bicubic = Image.Resampling.BICUBIC
    if width < height < full_height:  # the direction that Pillow begins with
        image = image.resize((image.width, size), bicubic, (0, top, image.width, bottom))
        return image.resize((size, size), bicubic, (left, 0, right, size))
    image = image.resize((size, image.height), bicubic, (left, 0, right, image.height))
    return image.resize((size, size), bicubic, (0, top, size, bottom))
