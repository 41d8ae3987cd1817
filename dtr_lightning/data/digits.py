"""The embedded real data set: scikit-learn's 1,797 handwritten digits, 8x8, no download."""

__all__ = ["Digits", "split_for_good"]

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from dtr_lightning.data.base import Data, Split
from dtr_lightning.errors import UserError


def split_for_good(images: Tensor, labels: Tensor) -> dict[Split, TensorDataset]:
    """Returns the splits of images (N, ...), labels (N,): a fixed, stratified fifth is held out.

    Each keeps the order of the source.
    """
    from sklearn.model_selection import train_test_split

    parts = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    train, val = (TensorDataset(images[sorted(part)], labels[sorted(part)]) for part in parts)
    return {"train": train, "val": val}


class Digits(Data):
    """1,797 digits of 1x8x8 pixels in ten classes: 1,437 for training, 360 held out, never flipped.

    The 17 grey levels v of the source become round(255 v / 16). The split is stratified and fixed:
    the shipped features were trained on exactly this training split.

    Args:
        batch_size: images per step, all ranks together.
    """

    in_channels = 1
    image_size = 8
    num_classes = 10
    class_names = tuple("0123456789")
    terms = (
        "digits (E. Alpaydin and C. Kaynak, CC BY 4.0) as scikit-learn ships them (BSD-3-Clause)"
    )

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__(batch_size, flip=False)
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError("the digits need scikit-learn: pip install scikit-learn") from error
        source = load_digits()
        images = torch.from_numpy((source.images * (255 / 16)).round()).to(torch.uint8)[:, None]
        self.splits = split_for_good(images, torch.from_numpy(source.target).long())

    def split(self, name: Split) -> TensorDataset:
        """Returns one split, images uint8 (N, 1, 8, 8) and labels int64 (N,), in source order."""
        return self.splits[name]
