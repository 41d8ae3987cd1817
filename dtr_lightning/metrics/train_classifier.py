"""Trains a shipped classifier: `python -m dtr_lightning.metrics.train_classifier digits | mnist`.

It sees the training split only; the held-out split gives the accuracy in the JSON. A decoder,
thrown away afterwards, must draw the image from the features: a classifier alone forgets all but
the class (9 of 48 directions then hold 98 % of the variance), its distance hardly looks within.
"""

__all__ = ["augment", "train"]

import sys
from collections.abc import Callable
from datetime import date
from math import pi
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from dtr_lightning.cli.commands import Options, command, stop_on_signals
from dtr_lightning.cli.progress_bar import Bar
from dtr_lightning.data import MNIST, Data, Digits, to_float
from dtr_lightning.data.base import Split
from dtr_lightning.metrics.classifiers import (
    ClassifierFeatures,
    ClassifierNet,
    DigitsFeatures,
    MNISTFeatures,
)
from dtr_lightning.rundir.atomic import replacing
from dtr_lightning.rundir.resumable import Part, Resumable
from dtr_lightning.rundir.run import write_json

Progress = Callable[[int, int, str], None]
RECIPE = {
    "seed": 0,
    "epochs": 80,
    "batch_size": 64,
    "optimizer": "AdamW",
    "lr": 5e-3,
    "weight_decay": 0.05,
    "schedule": "one cycle",
    "decoder_weight": 2.0,
    "shift_pixels": 0.7,
    "rotation_degrees": 10.0,
    "scale": 0.1,
    "noise": 0.08,
}
CLASSIFIERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {  # features, data, recipe
    "digits": (DigitsFeatures, Digits, RECIPE),
    "mnist": (MNISTFeatures, MNIST, RECIPE | {"epochs": 20, "shift_pixels": 2.0}),
}


def augment(
    images: Tensor, generator: torch.Generator, recipe: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Returns images (N, 1, H, H) turned, scaled and shifted by parts of a pixel, and with noise.

    The clean ones are what the features must let a decoder draw.
    """
    n, side = images.shape[0], images.shape[-1]

    def draw(size: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * size

    angle, scale = draw(recipe["rotation_degrees"] * pi / 180), 1 + draw(recipe["scale"])
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = draw(recipe["shift_pixels"] * 2 / side, 2)
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(n, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # The ground is -1: sample around it, so that what comes in from outside is ground.
    moved = F.grid_sample(images + 1, grid, padding_mode="zeros", align_corners=False) - 1
    noise = torch.randn(moved.shape, generator=generator) * recipe["noise"]
    return moved, moved + noise * torch.rand(n, 1, 1, 1, generator=generator)


def train(
    features: type[ClassifierFeatures], data: Data, progress: Progress, state: Resumable
) -> tuple[ClassifierNet, float]:
    """Returns the trained classifier and its held-out accuracy; leaves the global RNG alone.

    It goes on from `state`, which has the recipe.
    """
    recipe = state.recipe
    images, labels = data.split("train").tensors
    images = to_float(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe["seed"])
        net = features.untrained()
        size, pixels = features.num_features, images[0].numel()
        decoder = nn.Sequential(nn.Linear(size, 128), nn.GELU(), nn.Linear(128, pixels))
    generator = torch.Generator().manual_seed(recipe["seed"])
    weights = [*net.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, recipe["lr"], weight_decay=recipe["weight_decay"])
    batches = len(labels) // recipe["batch_size"]
    steps = recipe["epochs"] * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["lr"], total_steps=steps)
    parts: dict[str, Part] = {
        "net": net,
        "decoder": decoder,
        "optimizer": optimizer,
        "schedule": schedule,
    }
    for step in state.steps(steps, generator, parts):
        if step % batches == 0:
            state.order = torch.randperm(len(labels), generator=generator)
        first = step % batches * recipe["batch_size"]
        batch = state.order[first : first + recipe["batch_size"]]
        clean, noisy = augment(images[batch], generator, recipe)
        rows = net(noisy)
        drawing = F.mse_loss(decoder(rows).view_as(clean), clean)
        reading = F.cross_entropy(net.logits(rows), labels[batch])
        (reading + recipe["decoder_weight"] * drawing).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress(step + 1, steps, "training")
    net.eval()
    with torch.no_grad():
        _standardise(net, images)
        images, labels = data.split("val").tensors
        right = net.logits(net(to_float(images))).argmax(1) == labels
    return net, right.float().mean().item()


def _standardise(net: ClassifierNet, images: Tensor) -> None:
    """Fits the last BatchNorm to the plain training images: mean 0, variance 1 per feature."""
    last = net.body[-1]
    shift, scale = last.running_mean.clone(), (last.running_var + last.eps).rsqrt()
    features = net(images) / scale + shift  # as they enter the last BatchNorm
    last.running_mean.copy_(features.mean(0))
    last.running_var.copy_(features.var(0) - last.eps)


@command
def main() -> None:
    """Trains, then writes the weights and their JSON into --out (default: this package).

    Stopped, the same command goes on.
    """
    parser = Options(__doc__)
    parser.add_argument("classifier", choices=CLASSIFIERS, help="whose images it reads")
    own = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=own, help="directory (default: this package)")
    options = parser.parse_args()
    features, data, recipe = CLASSIFIERS[options.classifier]
    data = data(recipe["batch_size"])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    file = options.out / f"{features.name}.training.pt"
    state = Resumable(file, recipe, stop_on_signals())
    with Bar("training") as bar:
        net, accuracy = train(features, data, bar, state)
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(options.out / f"{features.name}.safetensors") as part:
        part.write_bytes(save(net.state_dict()))
    train_n, val_n = (len(data.split(name)) for name in get_args(Split))
    card = {
        "name": features.name,
        "features": features.num_features,
        "trained_on": f"the {train_n:,} training images of dtr_lightning.data.{data.name}",
        "held_out_images": val_n,
        "held_out_accuracy": round(accuracy, 6),
        "recipe": recipe,
        "command": f"python -m dtr_lightning.metrics.train_classifier {options.classifier}",
        "cpu_seconds": round(state.cpu_seconds(), 1),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "license": f"MIT, as the package; trained on {data.terms}",
    }
    write_json(options.out / f"{features.name}.json", card, 2)
    state.end()
    print(f"held-out accuracy {accuracy:.4f}, written to {options.out}")


if __name__ == "__main__":
    sys.exit(main())
