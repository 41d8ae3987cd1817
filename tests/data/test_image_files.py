"""Laws of image files: every format and depth reads as it looks, at a cost that the size bounds."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dtr_lightning.data import image_files
from dtr_lightning.data.image_files import centre_crop, extensions, read_image
from dtr_lightning.errors import UserError

SAVED = {e: f for e, f in extensions().items() if f in Image.SAVE and f not in ("MSP", "XBM")}


def png(path, depth, colour, rows, *chunks):
    """Writes a PNG of `rows` of raw bytes, 4 pixels wide, with further chunks."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 4, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def grey(path, **options):
    """Returns the first row of an image that is grey."""
    pixels = read_image(path, 4, **options)
    assert (pixels == pixels[:1]).all()
    return pixels[0, 0].tolist()


@pytest.mark.parametrize("extension", SAVED)
def test_every_format_that_pillow_writes_is_read(tmp_path, extension):
    ramp = np.tile(np.arange(8, dtype=np.uint8) * 32, (8, 1))
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp], -1))
    mode = "P" if SAVED[extension] == "BLP" else "RGB"
    image.convert(mode).save(tmp_path / f"x{extension}")
    found, wanted = read_image(tmp_path / f"x{extension}", 8), np.array(image).transpose(2, 0, 1)
    # .icns holds its own sizes, palettes and lossy formats are near
    assert abs(found.float().mean((1, 2)) - wanted.mean((1, 2))).max() < 6
    assert np.corrcoef(found.flatten(), wanted.flatten())[0, 1] > 0.95


def test_what_has_no_pixels_of_its_own_is_no_image():
    assert {".tif", ".gif", ".webp", ".jp2", ".mpo"} <= extensions().keys()
    assert extensions().keys().isdisjoint({".pdf", ".eps", ".ps", ".mpg", ".h5", ".wmf", ".txt"})


def test_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for name in ("x.gif", "x.tif", "x.webp", "x.png"):
        options = {"lossless": True} if name == "x.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert read_image(tmp_path / name, 4)[:, 0, 0].tolist() == [255, 0, 0], name


def test_the_content_and_not_the_extension_says_what_it_is(tmp_path):
    Image.new("L", (4, 4), 200).save(tmp_path / "x.bmp")
    (tmp_path / "x.bmp").rename(tmp_path / "x.png")
    assert grey(tmp_path / "x.png") == [200] * 4
    (tmp_path / "y.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    with pytest.raises(UserError, match="not an image"):
        read_image(tmp_path / "y.png", 4)


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent", "wanted"),
    [
        (16, 0, struct.pack(">4H", 257, 257 * 200, 258, 65535), [257], [255, 200, 1, 255]),
        (8, 0, bytes([1, 200, 1, 9]), [1], [255, 200, 255, 9]),
        (4, 0, bytes([0x3F, 0x3A]), [3], [255, 255, 255, 170]),
        (2, 0, bytes([0b01110110]), [1], [255, 255, 255, 170]),
        (1, 0, bytes([0b01100000]), [1], [0, 255, 255, 0]),
        (16, 2, struct.pack(">12H", *[500] * 3, *[51400] * 3, *[900] * 3, *[0] * 3), [500] * 3,
         [255, 200, 3, 0]),
        (8, 2, bytes([1] * 3 + [200] * 3 + [2] * 3 + [0] * 3), [1] * 3, [255, 200, 2, 0]),
        (16, 4, struct.pack(">8H", 0, 0, 51400, 65535, 0, 65535, 0, 0), None, [255, 200, 0, 255]),
    ],
)  # fmt: skip
def test_a_transparent_colour_is_white_at_every_depth(
    tmp_path, depth, colour, row, transparent, wanted
):
    chunks = [(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))] if transparent else []
    png(tmp_path / "x.png", depth, colour, [row] * 4, *chunks)
    assert grey(tmp_path / "x.png") == wanted
    assert grey(tmp_path / "x.png", channels=1) == wanted


@pytest.mark.parametrize(
    ("levels", "wanted"),
    [
        (np.float32([0, 0.5, 0.2, 1]), [0, 128, 51, 255]),
        (np.float32([0, 100, 200, 255]), [0, 100, 200, 255]),
        (np.uint16([0, 257, 51400, 65535]), [0, 1, 200, 255]),
        (np.int32([0, 257, 51400, 65535]), [0, 1, 200, 255]),
        (np.int32([0, 1, 2, 65536]), "levels from 0 to 65536; valid: 0 to 65535"),
        (np.int32([-1, 1, 2, 3]), "levels from -1 to 3"),
        (np.float32([0, 1, 2, 256]), "floats from 0.0 to 256.0; valid: 0 to 255"),
        (np.float32([0, np.nan, 0, 0]), "floats from nan to nan"),
    ],
)
def test_deep_levels_are_scaled_or_refused_but_never_clipped(tmp_path, levels, wanted):
    Image.fromarray(np.tile(levels, (4, 1))).save(tmp_path / "x.tif")
    if isinstance(wanted, list):
        assert grey(tmp_path / "x.tif") == wanted
        return
    with pytest.raises(UserError, match=wanted):
        read_image(tmp_path / "x.tif", 4)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"tEXt", b"k\0" + b"x" * 3_000_000),
        (b"iCCP", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        (b"iCCP", b"k\0\0junk"),
        (b"eXIf", b"junkjunk"),
    ],
)
def test_what_else_a_file_says_does_not_matter(tmp_path, chunk):
    png(tmp_path / "x.png", 8, 0, [bytes([1, 2, 3, 4])] * 4, chunk)
    assert grey(tmp_path / "x.png") == [1, 2, 3, 4]


@pytest.mark.parametrize("sides", [(3, 2000), (2000, 3), (30, 900), (900, 30), (1, 400), (17, 289)])
@pytest.mark.parametrize("size", [1, 8, 23])
def test_of_a_long_image_only_the_square_is_resized(monkeypatch, sides, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
    image, resize, largest = Image.fromarray(pixels), Image.Image.resize, []

    def noted(self, size, *options):
        largest.append(size[0] * size[1])
        return resize(self, size, *options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    square = np.array(centre_crop(image, size)).astype(int)
    assert max(largest, default=0) <= max(sides[0] * sides[1], 16 * size**2)
    monkeypatch.setattr(image_files, "LONGEST", 10**9)
    assert abs(np.array(centre_crop(image, size)) - square).max() <= 1


def test_a_huge_jpeg_is_decoded_small_and_other_huge_images_are_refused(tmp_path, monkeypatch):
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    for name, options in (("x.jpg", {}), ("p.jpg", {"progressive": True}), ("x.png", {})):
        ramp.save(tmp_path / name, **options)
    whole = read_image(tmp_path / "x.jpg", 4)
    monkeypatch.setattr(image_files, "LARGEST", 64 * 63)
    assert (read_image(tmp_path / "x.jpg", 4).int() - whole).abs().max() <= 4
    for name in ("p.jpg", "x.png"):
        with pytest.raises(UserError, match=r"64 x 64 pixels are more than 4,032"):
            read_image(tmp_path / name, 4)


def test_grey_and_colour_of_a_grey_image_agree(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (19, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "colour.png")
    colour = read_image(tmp_path / "colour.png", 7)
    assert torch.equal(read_image(tmp_path / "grey.png", 7), colour)
    assert torch.equal(read_image(tmp_path / "grey.png", 7, 1), colour[:1])
    assert torch.equal(read_image(tmp_path / "colour.png", 7, 1), colour[:1])
