"""Captions as people have them: COCO's captions_*.json, or a table of file names."""

__all__ = ["captions_of", "read_captions"]

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dtr_lightning.data.base import Data
from dtr_lightning.data.image_folder import ImageFolder
from dtr_lightning.data.scan import few
from dtr_lightning.errors import UserError, is_utf8

FORMATS = (
    "COCO's captions_*.json, a JSON object {file name: [captions]}, or a .jsonl of such objects"
)


def captions_of(data: Data, files: Sequence[str | Path]) -> list[list[str]]:
    """Returns the captions of every image of a folder: training images, then held-out ones.

    A file name is that of one image, or the end of its path. UserError where an image has no
    caption, or captions no image.
    """
    if not isinstance(data, ImageFolder):
        raise UserError(f"captions are of a folder of images; {data.name} has no file names")
    paths = [
        os.path.join(part.folder, path)
        for part in (data.files["train"], data.files["val"])
        for path in part.paths
    ]
    named = defaultdict(list)
    for i, path in enumerate(paths):
        named[os.path.basename(path)].append(i)
    captions: list[list[str]] = [[] for _ in paths]
    missing = []
    for name, texts in read_captions(files).items():
        end = os.path.join(os.sep, *Path(name).parts)
        matching = [i for i in named[os.path.basename(name)] if paths[i].endswith(end)]
        if len(matching) > 1:
            raise UserError(
                f"captions of {name}: {len(matching)} images of {data.root} are called so; give "
                "their paths, as folder/name"
            )
        if not matching:
            missing.append(name)
        else:
            captions[matching[0]] += texts
    where = ", ".join(map(str, files))
    if missing:
        raise UserError(
            f"{where} has captions of {len(missing):,} images that {data.root} has not: "
            f"{few(missing)}; add these images, or leave out their captions"
        )
    if bare := [os.path.basename(paths[i]) for i, texts in enumerate(captions) if not texts]:
        raise UserError(
            f"{len(bare):,} images of {data.root} have no caption in {where}: {few(bare)}; add "
            "captions, or take these images away"
        )
    return captions


def read_captions(files: Sequence[str | Path]) -> dict[str, list[str]]:
    """Returns the captions by file name, in the order of the files.

    White space in a caption becomes one blank. A name that is there more than once, in one object
    or in several, has all its captions. UserError for what is not of one of the formats.
    """
    captions: dict[str, list[str]] = {}
    for file in map(Path, files):
        for name, texts in _pairs(file):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{file}: the captions of {name} are no list of texts")
            texts = [" ".join(text.split()) for text in texts]
            for number, text in enumerate(texts, 1):
                if not text:
                    raise UserError(f"{file}: caption {number} of {name} is empty")
                if not is_utf8(text):
                    raise UserError(
                        f"{file}: caption {number} of {name} is no text: {text[:60]!a} has half of "
                        "a character"
                    )
            captions.setdefault(name, []).extend(texts)
    return captions


def _pairs(file: Path) -> Iterator[tuple[str, Any]]:
    text = _text(file)
    if file.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield from _object(line, f"{file}, line {number}").items()
        return
    content = _object(text, str(file))
    yield from _coco(file, content) if "annotations" in content else content.items()


def _text(file: Path) -> str:
    try:
        return file.expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not in UTF-8: byte {error.start:,}; convert it") from error
    except OSError as error:
        raise UserError(f"cannot read captions {file}: {error.strerror}") from error


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_joined)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; valid: {FORMATS}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}; valid: {FORMATS}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no JSON object; valid: {FORMATS}")
    return content


def _joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object; lists of a name that is there twice become one, nothing is lost."""
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    content = {}
    for name, value in pairs:
        if name in content and not (isinstance(content[name], list) and isinstance(value, list)):
            raise UserError(f"{name} is there twice, and its values are no lists to be joined")
        content[name] = content[name] + value if name in content else value
    return content


def _coco(file: Path, content: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yields the captions of every image of COCO's file, in the order of its annotations."""
    captions: dict[Any, list[str]] = {}
    try:
        names: dict[Any, str] = {}
        for image in content["images"]:
            name = image["file_name"]
            if not isinstance(name, str):
                raise TypeError(f"file_name {name!r:.40} is no text")
            if names.setdefault(image["id"], name) != name:
                raise UserError(
                    f"{file}: the images {names[image['id']]} and {name} have one id, "
                    f"{image['id']}; give each its own"
                )
        for each in content["annotations"]:
            captions.setdefault(each["image_id"], []).append(each["caption"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no file of COCO's captions: its images need id and file_name, its "
            f"annotations image_id and caption ({error})"
        ) from error
    if unknown := captions.keys() - names.keys():
        raise UserError(f"{file} has captions of an image {min(unknown, key=str)} that it has not")
    yield from ((names[i], texts) for i, texts in captions.items())
