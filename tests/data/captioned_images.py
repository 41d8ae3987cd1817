"""Small images with captions of our own, in folders of splits, and a store of them."""

import json

import numpy as np
from PIL import Image

from dtr_lightning.data import VAE, ImageFolder
from dtr_lightning.data.caption_files import captions_of
from dtr_lightning.data.clip import CLIPText
from dtr_lightning.data.encoding import EncodedCaptions, EncodedImages

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 220)}
TRAIN, VAL = 26, 6


def captioned_images(top):
    """Writes images of one colour below top/images, and top/captions.json as COCO's; returns it.

    Image i of a split has 1 + i mod 3 captions.
    """
    images, annotations = [], []
    for split, count in (("train", TRAIN), ("val", VAL)):
        (top / "images" / split).mkdir(parents=True)
        for i in range(count):
            name, (colour, value) = f"{split}_{i:04d}.png", [*COLOURS.items()][i % 3]
            pixels = np.full((8, 8, 3), value, np.uint8)
            pixels[i % 8] = i * 7
            Image.fromarray(pixels).save(top / "images" / split / name)
            images.append({"id": len(images) + 100, "file_name": name})
            wordings = (f"a {colour} picture", f"number  {i} in {colour}\n", f"{split} {colour}")
            for wording in wordings[: 1 + i % 3]:
                annotations.append({"image_id": images[-1]["id"], "caption": wording, "id": 0})
    content = {"images": images[::-1], "annotations": annotations}
    (top / "captions.json").write_text(json.dumps(content))
    return top / "captions.json"


def source(top, vae, clip, block=20, threads=1):
    """Returns the images and captions of `captioned_images`, to be stored."""
    data = ImageFolder(top / "images", 8, workers=0)
    texts = captions_of(data, [top / "captions.json"])
    captions = EncodedCaptions(texts, CLIPText(clip))
    return EncodedImages(data, VAE(vae), block=block, threads=threads, captions=captions)
