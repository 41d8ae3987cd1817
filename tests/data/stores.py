"""Small stores for the tests: a source of random rows, and stores of the digits."""

import numpy as np
import torch

from dtr_lightning.data.store import Manifest
from dtr_lightning.data.store_writer import Part, Source

NAMES = ("a", "b", "c")


class RandomRows(Source):
    """Random latents, or pixels, that are a function of their index; `before` sees each part."""

    def __init__(self, train=200, val=30, codec="VAE", before=lambda split, part: None, **facts):
        latents = {"vae": "0123456789ab", "vae_path": "/nowhere"} if codec == "VAE" else {}
        facts = {"mirrored": True, "class_names": NAMES, **latents, **facts}
        self.before = before
        self.manifest = Manifest(
            codec=codec,
            shape=(2, 4, 4),
            image_shape=(2, 4, 4) if codec == "Pixels" else (3, 32, 32),
            train=train,
            val=val,
            block=70,  # not a multiple of a part
            **facts,
        )

    def parts(self, split, indices):
        for part in indices:
            self.before(split, part)
            rows = self.rows(split, part.tolist())
            both = self.manifest.mirrored and self.manifest.codec == "VAE" and split == "train"
            yield Part(rows, -rows if both else None, part.numpy() % 3)

    def rows(self, split, indices):
        """Returns what is stored (n, ...) of some images."""
        array = next(a for a in self.manifest.arrays if a.file == f"{split}.npy")
        made = []
        for i in indices:
            rng = np.random.default_rng((i, split == "val"))
            values = rng.standard_normal(array.shape[1:])
            if self.manifest.codec == "Pixels":
                values = rng.integers(0, 256, array.shape[1:])
            made.append(values.astype(array.dtype))
        return np.stack(made)


def contents(folder):
    """Returns the bytes of every file below a folder, but for locks and what scores keep there."""
    besides = (".lock", "reference-")
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(besides))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def bits(tensor):
    """Returns a tensor's bits, so that NaN equals NaN."""
    return tensor.contiguous().view(torch.uint8)
