"""Captions from files: COCO's and tables of names give the same; what is amiss is one line."""

import json

import pytest

from dtr_lightning.data import Digits, ImageFolder
from dtr_lightning.data.caption_files import captions_of, read_captions
from dtr_lightning.errors import UserError
from tests.data.captioned_images import TRAIN, VAL, captioned_images


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    captioned_images(folder)
    return folder


@pytest.fixture(scope="module")
def data(top):
    return ImageFolder(top / "images", 8, workers=0)


def test_captions_go_to_the_images_that_they_name(top, data):
    captions = captions_of(data, [top / "captions.json"])
    assert len(captions) == TRAIN + VAL
    assert captions[4] == ["a green picture", "number 4 in green"]
    assert captions[TRAIN + 2] == ["a blue picture", "number 2 in blue", "val blue"]


@pytest.mark.parametrize("kind", ["json", "jsonl", "paths", "two files"])
def test_a_table_of_names_gives_the_same(top, data, tmp_path, kind):
    expected = captions_of(data, [top / "captions.json"])
    table = read_captions([top / "captions.json"])
    if kind == "paths":
        table = {f"{name.split('_')[0]}/{name}": texts for name, texts in table.items()}
    files = [tmp_path / f"captions.{'jsonl' if kind == 'jsonl' else 'json'}"]
    if kind == "jsonl":
        files[0].write_text("".join(json.dumps({k: v}) + "\n" for k, v in table.items()))
    elif kind == "two files":
        files.append(tmp_path / "more.json")
        for file, half in zip(files, (0, 1), strict=True):
            part = {k: v for i, (k, v) in enumerate(table.items()) if i % 2 == half}
            file.write_text(json.dumps(part))
    else:
        files[0].write_text(json.dumps(table))
    assert captions_of(data, files) == expected


def test_names_that_are_in_several_folders_need_their_paths(tmp_path):
    from PIL import Image

    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for name in ("1.png", "2.png"):
            Image.new("RGB", (8, 8), (ord(folder), 0, int(name[0]))).save(
                tmp_path / "images" / folder / name
            )
    data = ImageFolder(tmp_path / "images", 8, held_out=0.25, workers=0)
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({f"{f}/{n}.png": [f"{f} {n}"] for f in "ab" for n in "12"}))
    given = [text for (text,) in captions_of(data, [file])]
    paths = [*data.files["train"].paths, *data.files["val"].paths]
    assert given == [f"{path[0]} {path[2]}" for path in paths]
    file.write_text(json.dumps({"1.png": ["x"]}))
    with pytest.raises(UserError, match=r"captions of 1\.png: 2 images of .* give their paths"):
        captions_of(data, [file])


def test_data_without_file_names_take_no_captions(top):
    with pytest.raises(UserError, match="Digits has no file names"):
        captions_of(Digits(), [top / "captions.json"])


def table(*left_out, **more):
    names = [f"train_{i:04d}.png" for i in range(TRAIN)] + [f"val_{i:04d}.png" for i in range(VAL)]
    return {name: ["x"] for name in names if name not in left_out} | more


COCO = {"images": [{"id": 1, "file_name": "a.png"}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(**{"x.png": ["a"], "y.png": ["b"]}), "captions of 2 images that .* not: x.png, y"),
        (table("val_0003.png"), r"1 images of .* have no caption in .*: val_0003\.png; add"),
        (table(**{"val_0003.png": []}), r"1 images of .* have no caption"),
        (table(**{"val_0003.png": "a text"}), r"captions of val_0003\.png are no list of texts"),
        (table(**{"val_0003.png": [3]}), "are no list of texts"),
        (table(**{"val_0003.png": ["a", " "]}), r"caption 2 of val_0003\.png is empty"),
        ([1], r"holds no JSON object; valid: COCO's captions_\*\.json, a JSON object"),
        ("{", "is no JSON: .*; valid: COCO's"),
        (b"\xff\xfe{", "is not in UTF-8: byte 0"),
        ({"annotations": []}, "needs? .*'images'"),
        (COCO | {"annotations": [{"image_id": 1, "bbox": []}]}, r"no file of COCO's .*'caption'"),
        (COCO | {"annotations": [{"image_id": 7, "caption": "a"}]}, "an image 7 that it has not"),
        ({"images": [{"id": 1, "file_name": 5}], "annotations": []}, "file_name 5 is no text"),
        ({"images": [{"id": [1], "file_name": "a"}], "annotations": []}, "no file of COCO's"),
        (
            {"images": [{"id": 1, "file_name": n} for n in "ab"], "annotations": []},
            "the images a and b have one id, 1",
        ),
        ("[" * 100_000, r"mine\.json is nested too deeply; valid: COCO's"),
        ('{"a.png": ' * 5000, "is nested too deeply"),
        ('{"a.png": ["x\\ud800"]}', r"caption 1 of a\.png is no text: 'x\\ud800' has half"),
        ('{"a.png": ["x"], "a.png": "y"}', r"mine\.json: a\.png is there twice, .* no lists"),
        ("", "is no JSON"),
        ("1" * 5000, "is no JSON"),
        ('{"": ["x"]}', "captions of 1 images that"),
        ('{"\\udcff.png": ["x"]}', "captions of 1 images that"),
        (None, "cannot read captions .*: No such file"),
    ],
)
def test_a_mistake_is_one_line(data, tmp_path, content, message):
    file = tmp_path / "mine.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        captions_of(data, [file])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["one object", "lines", "files", "annotations"])
def test_an_image_that_is_named_more_than_once_has_all_its_captions(tmp_path, kind):
    """However often and wherever: nothing is lost, and the order is that of the files."""
    first, second = '"a.png": ["x", "y"]', '"a.png": ["z"]'
    files = [tmp_path / "one.json", tmp_path / "two.jsonl"]
    texts = {
        "one object": (f'{{{first}, "b.png": ["w"], {second}}}', ""),
        "lines": ("{}", f"{{{first}}}\n{{{second}}}\n"),
        "files": (f"{{{first}}}", f"{{{second}}}"),
        "annotations": (
            '{"images": [{"id": 1, "file_name": "a.png"}], '
            '"annotations": [{"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": "y"}], '
            '"annotations": [{"image_id": 1, "caption": "z"}]}',
            "",
        ),
    }[kind]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    assert read_captions(files)["a.png"] == ["x", "y", "z"]


def test_a_line_of_a_table_that_is_damaged_is_named(data, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"a.png": ["x"]}\n{"b.png"')
    with pytest.raises(UserError, match=r"mine\.jsonl, line 2 is no JSON"):
        captions_of(data, [tmp_path / "mine.jsonl"])
