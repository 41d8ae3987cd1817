"""Laws of image folders: layout gives labels and splits, every mode reads, a bad file is named."""

from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image

from dtr_lightning.data import ImageFolder
from dtr_lightning.data.image_folder import centre_crop, read_image, to_rgb
from dtr_lightning.errors import UserError


def write(path, value=0, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def instantiate(root, **options):
    return ImageFolder(str(root), 4, **{"held_out": 0.25, "batch_size": 1, "workers": 0} | options)


def pairs(data):
    return {
        name: [(int(image[0, 0, 0]), label) for image, label in data.split(name)]
        for name in ("train", "val")
    }


def test_labels_are_the_sorted_class_names(tmp_path):
    for i, name in enumerate(["zebra", "Ant", "bee/deep/deeper"]):
        for j in range(8):
            write(tmp_path / name / f"{j}.{['png', 'PNG', 'bmp', 'webp'][j % 4]}", 60 * i + j)
    write(tmp_path / "zebra" / ".hidden.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "Ant" / "notes.txt").write_text("no image")
    data = instantiate(tmp_path)
    assert data.class_names == ("Ant", "bee", "zebra") and data.num_classes == 3
    both = pairs(data)
    assert len(both["val"]) == 6 and len(both["train"]) == 18
    for value, label in both["train"] + both["val"]:
        assert label == {0: 2, 1: 0, 2: 1}[value // 60]
    plain = instantiate(tmp_path, class_folders=False)
    assert plain.num_classes == 1 and {label for _, label in pairs(plain)["train"]} == {0}


def test_a_flat_folder_is_unconditional_and_its_split_survives_additions(tmp_path):
    for j in range(40):
        write(tmp_path / f"{j}.png", j)
    before = pairs(instantiate(tmp_path))
    assert instantiate(tmp_path).num_classes == 1
    assert {label for _, label in before["train"] + before["val"]} == {0}
    assert sorted(v for v, _ in before["train"] + before["val"]) == list(range(40))
    for j in range(40, 44):
        write(tmp_path / f"{j}.png", j)
    after = {v for v, _ in pairs(instantiate(tmp_path))["val"]}
    assert len(after & {v for v, _ in before["val"]}) >= 8


def test_train_and_test_folders_are_the_splits(tmp_path):
    for i, name in enumerate(["a", "b"]):
        write(tmp_path / "train" / name / "x.png", i)
        write(tmp_path / "test" / name / "x.png", 10 + i)
    data = instantiate(tmp_path)
    assert data.class_names == ("a", "b")
    assert pairs(data) == {"train": [(0, 0), (1, 1)], "val": [(10, 0), (11, 1)]}
    write(tmp_path / "test" / "c" / "x.png")
    with pytest.raises(UserError, match=r"'c'.*valid: a, b"):
        instantiate(tmp_path)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        instantiate(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images"):
        instantiate(tmp_path)
    write(tmp_path / "a.png")
    with pytest.raises(UserError, match="two or more"):
        instantiate(tmp_path)
    write(tmp_path / "class" / "b.png")
    with pytest.raises(UserError, match="beside and inside"):
        instantiate(tmp_path)
    for options in ({"held_out": 0.0}, {"held_out": 1.0}, {"workers": -1}):
        with pytest.raises(UserError, match="not valid"):
            instantiate(tmp_path, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(tmp_path, workers):
    rng = np.random.default_rng(0)
    for j in range(6):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{j}.jpg")
    data = instantiate(tmp_path, workers=workers)
    bad = tmp_path / data.files["train"].paths[2]
    bad.write_bytes(bad.read_bytes()[:1500])
    with pytest.raises(UserError) as caught:
        for _ in data.image_batches("train"):
            pass
    assert str(bad) in str(caught.value) and "truncated" in str(caught.value)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert not active_children()  # a worker that outlived its reader would keep us from exiting


def test_all_unreadable_images_are_named_together(tmp_path):
    for i in range(40):
        write(tmp_path / f"{i:02}.png", i)
    bad = [tmp_path / f"{i:02}.png" for i in range(1, 40, 6)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:40])
    data = instantiate(tmp_path, held_out=0.5)
    with pytest.raises(UserError) as caught:
        [*data.image_batches("val")]
    names = ", ".join(map(str, bad[:5]))
    said = f"cannot read 7 images: {names} and 2 more; replace or remove them"
    assert str(caught.value) == said
    data.patience = 0.0
    with pytest.raises(UserError, match=r"^cannot read image .*png: "):
        [*data.image_batches("train")]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_damaged_files_are_user_errors(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read image .*x\.png"):
        read_image(path, 4)
    with pytest.raises(UserError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png", 4)


def test_the_crop_is_adms():
    ramp = np.tile(np.arange(8, dtype=np.uint8) * 16, (4, 1))  # 8 wide, 4 high
    # Halved once to 4x2 by boxes: columns (0, 1) -> 8, (2, 3) -> 40, (4, 5) -> 72, (6, 7) -> 104.
    assert np.array(centre_crop(Image.fromarray(ramp), 2)).tolist() == [[40, 72]] * 2
    assert np.array(centre_crop(Image.fromarray(ramp.T.copy()), 2)).tolist() == [[40, 40], [72, 72]]
    # Short side right already: no resize; (7 - 4) // 2 = 1 column is cut on the left.
    wide = np.array(centre_crop(Image.fromarray(ramp[:, :7].copy()), 4))
    assert wide.tolist() == [[16, 32, 48, 64]] * 4
    # 7 < 2 * 4: bicubic only, which keeps a linear ramp's centre value (x = 3.5 -> 3.5 / 7 * 4).
    square = np.tile(np.linspace(20, 200, 7).round().astype(np.uint8), (7, 1))
    left, right = np.array(centre_crop(Image.fromarray(square), 4)).astype(int)[0, 1:3]
    assert abs((left + right) / 2 - 110) <= 1


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (31, 8), (16, 16), (33, 65), (9, 100)])
def test_any_size_gives_a_square(size):
    image = centre_crop(Image.new("RGB", size, (10, 200, 30)), 8)
    assert image.size == (8, 8)
    assert (np.array(image) == (10, 200, 30)).all()


def test_every_mode_becomes_rgb(tmp_path):
    grey = np.full((4, 4), 200, np.uint8)
    deep = Image.fromarray(np.full((4, 4), 200 * 257, np.uint16))
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    palette = Image.fromarray(np.stack([grey] * 3, -1)).quantize(4)
    cases = {
        "grey": (Image.fromarray(grey), 200),
        "binary": (Image.fromarray(grey > 0), 255),
        "palette": (palette, 200),
        "sixteen": (deep, 200),
        "clear": (clear, 255),
        "half": (Image.new("LA", (4, 4), (0, 128)), 127),
    }
    for name, (image, value) in cases.items():
        image.save(tmp_path / f"{name}.png")
        pixels = read_image(tmp_path / f"{name}.png", 4)
        assert pixels.shape == (3, 4, 4) and pixels.dtype == torch.uint8
        assert pixels.unique().tolist() == [value], name
        assert torch.equal(read_image(tmp_path / f"{name}.png", 4, 1), pixels[:1])
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red = read_image(tmp_path / "print.jpg", 4).float().mean((1, 2))
    assert red[0] > 240 and red[1] < 15 and red[2] < 15


def test_an_image_is_turned_upright(tmp_path):
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as file:
        turned = to_rgb(file)
    assert turned.size == (2, 4) and turned.getpixel((1, 0)) == (255, 0, 0)
