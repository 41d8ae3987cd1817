"""Latents that other programs have stored, as moments: mean, then log variance.

Mean and deviation cannot be told from mean and log variance by their shape: a person says which
program it was. Nothing is unpickled.
"""

__all__ = ["LAYOUTS", "Imported", "Layout"]

import io
import json
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dtr_lightning.data.codec import LOG_VARIANCE, VAE
from dtr_lightning.data.encoding import BLOCK
from dtr_lightning.data.image_folder import hold_out
from dtr_lightning.data.store import Manifest
from dtr_lightning.data.store_writer import Part, Source
from dtr_lightning.errors import UserError

SCALE = 0.18215  # of Stable Diffusion's autoencoder
NUMBERED = re.compile(r"\d+")
DRAWN = "the posterior was drawn once, so that --data.posterior changes nothing"

Moments = np.ndarray  # float32 (2C, h, w)


class Layout(ABC):
    """What a program has stored in a folder: names of images, labels, and how one is read.

    A constructor sets `train`, and `val` where the program holds images out; `labels` by name, {}
    where there are no classes; and `class_names`. UserError where the folder is another's.
    """

    mirrored = False  # whether mirrored images are stored too
    input_range = (-1.0, 1.0)
    scale: float | None = None  # of the latents; None: the autoencoder's own
    note = ""  # what a person should know of it

    train: list[str]
    val: list[str] | None = None
    labels: dict[str, int]
    class_names: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        self.folder, self.labels = folder, {}

    @abstractmethod
    def read(self, name: str) -> tuple[Moments, Moments | None]:
        """Returns the moments of an image, and of the mirrored one if that is stored."""

    def refuse(self, expected: str) -> UserError:
        """Returns the error for a folder that is not of this layout."""
        title = next(name for name, layout in LAYOUTS.items() if layout is type(self))
        return UserError(f"{self.folder} is not as {title} writes it: {expected}")


def _array(file: Any, what: object, key: str | None = None) -> np.ndarray:
    """Returns an array of a .npy or .npz file as float32; UserError for anything else."""
    try:
        content = np.load(file, allow_pickle=False)
        return np.asarray(content if key is None else content[key], dtype=np.float32)
    except OSError as error:
        raise UserError(f"cannot read {what}: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            raise UserError(
                f"{what} is a pickle of objects, which could run code and is not read; encode the "
                "images themselves: make_latents.py IMAGES --vae DIR --out STORE"
            ) from error
        raise UserError(f"{what} holds no array{f' {key}' if key else ''}, or is cut") from error


def _drawn(z: np.ndarray) -> Moments:
    """Returns moments whose mean is a latent (C, h, w) that was drawn, with no deviation."""
    return np.concatenate([z, np.full_like(z, LOG_VARIANCE[0])])


def _numbered(folder: Path) -> list[str]:
    """Returns the names of the files N.npy of a folder, by number."""
    names = (path.stem for path in folder.glob("*.npy") if NUMBERED.fullmatch(path.stem))
    return sorted(names, key=int)


class FastDiT(Layout):
    """fast-DiT, extract_features.py: NAME_features/I.npy (1, 4, h, w), NAME_labels/I.npy (1,)."""

    note = f"fast-DiT froze the mirroring of every image, and {DRAWN}"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        features = sorted(folder.glob("*_features"))
        if len(features) != 1:
            raise self.refuse("one folder NAME_features beside one NAME_labels is expected")
        self.features = features[0]
        self.where = folder / (features[0].name.removesuffix("_features") + "_labels")
        self.train = _numbered(self.features)
        if self.train != _numbered(self.where):
            raise self.refuse(f"{self.features.name} and {self.where.name} hold other numbers")
        files = ((name, self.where / f"{name}.npy") for name in self.train)
        self.labels = {name: int(_array(file, file).reshape(())) for name, file in files}

    def read(self, name: str) -> tuple[Moments, None]:
        """Returns the drawn latent, brought back from the scale that it is stored in."""
        file = self.features / f"{name}.npy"
        z = _array(file, file)
        if z.ndim != 4 or len(z) != 1:
            raise UserError(f"{file} holds {z.shape}; fast-DiT's are (1, C, h, w)")
        return _drawn(z[0] / SCALE), None


class EDM2(Layout):
    """EDM2, dataset_tool.py encode: FOLDER/img-mean-std-N.npy, dataset.json; also as a zip."""

    input_range = (0.0, 1.0)
    note = (
        "EDM2 encodes from [0, 1]: the store says so and is decoded accordingly, but these are not "
        "the latents that networks of DiT's kind were trained on"
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.top = folder
        if folder.resolve().name == "vae-sd":
            raise self.refuse(f"a folder vae-sd is REPA's; give {folder.parent} --from repa")
        if (folder / "vae-sd").is_dir():
            raise self.refuse("a folder vae-sd is REPA's; give --from repa")
        self._list()

    def _list(self) -> None:
        self.zip = None
        if self.top.is_file():
            try:
                self.zip = zipfile.ZipFile(self.top)
            except (OSError, zipfile.BadZipFile) as error:
                raise self.refuse(f"{error}") from error
            files = self.zip.namelist()
        else:
            files = [str(path.relative_to(self.top)) for path in self.top.rglob("img-*.npy")]
        self.train = sorted(n for n in files if Path(n).name.startswith("img-mean-std-"))
        if not self.train:
            raise self.refuse("files FOLDER/img-mean-std-N.npy are expected")
        try:
            labels = json.loads(self._bytes("dataset.json"))["labels"]
            self.labels = {name: int(label) for name, label in labels or ()}
        except FileNotFoundError:
            self.labels = {}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self.refuse(f"its dataset.json is damaged: {error}") from error
        if self.labels and (missing := set(self.train) - self.labels.keys()):
            raise self.refuse(f"its dataset.json has no label of {min(missing)}")

    def _bytes(self, name: str) -> bytes:
        if self.zip is None:
            return (self.top / name).read_bytes()
        try:
            return self.zip.read(name)
        except KeyError as error:
            raise FileNotFoundError(name) from error

    def read(self, name: str) -> tuple[Moments, None]:
        """Returns mean and log variance of a stored mean and deviation."""
        values = _array(io.BytesIO(self._bytes(name)), self.top / name)
        mean, deviation = np.split(values, 2)
        if (deviation < 0).any():
            raise UserError(
                f"{self.top / name} holds negative deviations: these are log variances, "
                "which another program wrote"
            )
        low = np.exp(np.float32(LOG_VARIANCE[0] / 2))
        return np.concatenate([mean, 2 * np.log(np.maximum(deviation, low))]), None


class REPA(EDM2):
    """REPA, preprocessing: as EDM2 in a folder `vae-sd` beside `images`, encoded from [-1, 1]."""

    input_range = (-1.0, 1.0)
    note = ""

    def __init__(self, folder: Path) -> None:
        Layout.__init__(self, folder)
        self.top = folder / "vae-sd"
        if not self.top.is_dir():
            raise self.refuse(
                "a folder vae-sd is expected; EDM2's files have the same names but were encoded "
                "from [0, 1]: give --from edm2 for those"
            )
        self._list()


class LightningDiT(Layout):
    """LightningDiT, extract_features.py: latents_rankR_shardS.safetensors, both flips."""

    mirrored = True
    note = f"LightningDiT: {DRAWN}; latents_stats.pt is not read, the scale is the autoencoder's"

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        super().__init__(folder)
        files = sorted(folder.glob("latents_rank*_shard*.safetensors"))
        if not files:
            raise self.refuse("files latents_rankR_shardS.safetensors are expected")
        self.train, self.shards = [], {}
        for file in files:
            try:
                shard = safe_open(file, framework="np")
                if missing := {"latents", "latents_flip", "labels"} - set(shard.keys()):
                    raise self.refuse(f"{file.name} has no {', '.join(sorted(missing))}")
                labels = shard.get_tensor("labels").reshape(-1)
            except (OSError, SafetensorError) as error:
                raise UserError(f"cannot read {file}: {error}") from error
            self.shards[file.stem] = shard
            for row, label in enumerate(labels.tolist()):
                self.train.append(f"{file.stem}/{row}")
                self.labels[self.train[-1]] = int(label)

    def read(self, name: str) -> tuple[Moments, Moments]:
        """Returns the drawn latents of an image and of the mirrored one."""
        stem, row = name.split("/")
        both = (
            self.shards[stem].get_slice(key)[int(row) : int(row) + 1][0]
            for key in ("latents", "latents_flip")
        )
        plain, flipped = (_drawn(np.asarray(each, dtype=np.float32)) for each in both)
        return plain, flipped


class UViT(Layout):
    """U-ViT's features of COCO: train/I.npy, val/I.npy, moments; its ImageNet's are a pickle."""

    note = "U-ViT stores no mirrored images; the captions I_K.npy are left out"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if _numbered(folder):
            first = folder / f"{_numbered(folder)[0]}.npy"
            _array(first, first)  # says that it is a pickle
        self.train = [f"train/{name}" for name in _numbered(folder / "train")]
        self.val = [f"val/{name}" for name in _numbered(folder / "val")]
        if not (self.train and self.val):
            raise self.refuse("folders train and val of files I.npy are expected")

    def read(self, name: str) -> tuple[Moments, None]:
        """Returns the stored moments."""
        file = self.folder / f"{name}.npy"
        return _array(file, file), None


class MAR(Layout):
    """MAR, main_cache.py: CLASS/FILE.npz with `moments` and `moments_flip` of its KL-16."""

    mirrored = True
    scale = 0.2325

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.train = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.npz"))
        if not self.train:
            raise self.refuse("files CLASS/FILE.npz are expected")
        self.class_names = sorted({Path(name).parent.name for name in self.train})
        number = {name: i for i, name in enumerate(self.class_names)}
        self.labels = {name: number[Path(name).parent.name] for name in self.train}

    def read(self, name: str) -> tuple[Moments, Moments]:
        """Returns the stored moments of an image and of the mirrored one."""
        file = self.folder / name
        return _array(file, file, "moments"), _array(file, file, "moments_flip")


LAYOUTS: dict[str, type[Layout]] = {
    "fast-dit": FastDiT,
    "edm2": EDM2,
    "repa": REPA,
    "lightning-dit": LightningDiT,
    "u-vit": UViT,
    "mar": MAR,
}


class Imported(Source):
    """The latents of a layout, of a VAE, as a store holds them.

    A share `held_out` is held out by a hash of the names where the program has not done that.
    """

    def __init__(
        self, layout: Layout, vae: VAE, held_out: float = 0.02, block: int = BLOCK
    ) -> None:
        if not layout.train:
            raise layout.refuse("it holds no images")
        self.layout, self.title = layout, type(layout).__name__
        train, val = layout.train, layout.val
        if val is None:
            train, val = hold_out(train, layout.folder, held_out)
        self.names = {"train": train, "val": val}
        self.first, self.shape = train[0], layout.read(train[0])[0].shape
        if len(self.shape) != 3 or self.shape[0] % 2:
            raise UserError(f"{self.first} holds {self.shape}; expected moments (2C, h, w)")
        shape = (self.shape[0] // 2, *self.shape[1:])
        names = list(layout.class_names)
        if layout.labels and not names:
            names = [str(label) for label in range(max(layout.labels.values()) + 1)]
        listed = sha256()
        for name in (*train, "", *val):
            listed.update(os.fsencode(f"{name} {layout.labels.get(name, 0)}\n"))
        self.manifest = Manifest(
            codec="VAE",
            shape=shape,
            image_shape=vae.image_shape(shape),
            train=len(train),
            val=len(val),
            mirrored=layout.mirrored,
            class_names=tuple(names or ["all"]),
            block=block,
            preparation=f"by {self.title}",
            source=str(layout.folder.resolve()),
            source_digest=listed.hexdigest()[:12],
            vae=vae.digest,
            vae_path=vae.path,
            scale=vae.scale if layout.scale is None else layout.scale,
            shift=vae.shift,
            input_range=layout.input_range,
        )

    def parts(self, split: str, indices: list[Tensor]) -> Iterator[Part]:
        """Yields moments float16 of these images; UserError names what is no latent."""
        for part in indices:
            names = [self.names[split][i] for i in part.tolist()]
            plain, mirrored = zip(*map(self._read, names), strict=True)
            both = self.layout.mirrored and split == "train"
            labels = np.array([self.layout.labels.get(name, 0) for name in names])
            yield Part(np.stack(plain), np.stack(mirrored) if both else None, labels)

    def _read(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        moments: list[np.ndarray | None] = []
        for values in self.layout.read(name):
            if values is None:
                moments.append(None)
                continue
            if values.shape != self.shape:
                raise UserError(f"{name} holds {values.shape}, {self.first} {self.shape}")
            half = values.astype(np.float16)
            if not np.isfinite(half).all():
                raise UserError(f"{name} holds values that are not finite in float16")
            moments.append(half)
        plain, mirrored = moments
        assert plain is not None  # only the mirrored one may be missing
        return plain, mirrored
