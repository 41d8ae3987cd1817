"""Trains the shipped digit classifier: `python -m dtr_lightning.metrics.train_digits [--out DIR]`.

It sees the training split only; the held-out split gives the accuracy in the JSON. A decoder,
thrown away afterwards, must draw the image from the features: a classifier alone forgets all but
the class (9 of 48 directions then hold 98 % of the variance), its distance hardly looks within.
"""

__all__ = ["augment", "train"]

import argparse
import time
from datetime import date
from math import pi
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from dtr_lightning.data import Digits, to_float
from dtr_lightning.metrics.digits import DigitsFeatures, DigitsNet
from dtr_lightning.rundir.run import to_json

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


def augment(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns images (N, 1, 8, 8) turned, scaled and shifted by parts of a pixel, and with noise.

    The clean ones are what the features must let a decoder draw.
    """
    n, side = images.shape[0], images.shape[-1]

    def draw(size: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * size

    angle, scale = draw(RECIPE["rotation_degrees"] * pi / 180), 1 + draw(RECIPE["scale"])
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = draw(RECIPE["shift_pixels"] * 2 / side, 2)
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(n, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # The ground is -1: sample around it, so that what comes in from outside is ground.
    moved = F.grid_sample(images + 1, grid, padding_mode="zeros", align_corners=False) - 1
    noise = torch.randn(moved.shape, generator=generator) * RECIPE["noise"]
    return moved, moved + noise * torch.rand(n, 1, 1, 1, generator=generator)


def train() -> tuple[DigitsNet, float]:
    """Returns the trained classifier and its held-out accuracy; leaves the global RNG alone."""
    data = Digits(RECIPE["batch_size"])
    images, labels = data.split("train").tensors
    images = to_float(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RECIPE["seed"])
        net = DigitsNet()
        decoder = nn.Sequential(nn.Linear(net.num_features, 128), nn.GELU(), nn.Linear(128, 64))
    generator = torch.Generator().manual_seed(RECIPE["seed"])
    weights = [*net.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, RECIPE["lr"], weight_decay=RECIPE["weight_decay"])
    batches = len(labels) // RECIPE["batch_size"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RECIPE["lr"], total_steps=RECIPE["epochs"] * batches
    )
    for _ in range(RECIPE["epochs"]):
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: batches * RECIPE["batch_size"]].view(batches, -1):
            clean, noisy = augment(images[batch], generator)
            features = net(noisy)
            drawing = F.mse_loss(decoder(features).view_as(clean), clean)
            reading = F.cross_entropy(net.logits(features), labels[batch])
            (reading + RECIPE["decoder_weight"] * drawing).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    net.eval()
    with torch.no_grad():
        _standardise(net, images)
        images, labels = data.split("val").tensors
        right = net.logits(net(to_float(images))).argmax(1) == labels
    return net, right.float().mean().item()


def _standardise(net: DigitsNet, images: Tensor) -> None:
    """Fits the last BatchNorm to the plain training images: mean 0, variance 1 per feature."""
    last = net.body[-1]
    shift, scale = last.running_mean.clone(), (last.running_var + last.eps).rsqrt()
    features = net(images) / scale + shift  # as they enter the last BatchNorm
    last.running_mean.copy_(features.mean(0))
    last.running_var.copy_(features.var(0) - last.eps)


def main() -> None:
    """Trains, then writes the weights and their JSON into --out (default: this package)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    own = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=own, help="directory (default: this package)")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    begin = time.perf_counter()
    net, accuracy = train()
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{DigitsFeatures.name}.safetensors").write_bytes(save(net.state_dict()))
    card = {
        "name": DigitsFeatures.name,
        "features": DigitsNet.num_features,
        "trained_on": "the 1,437 training images of dtr_lightning.data.Digits",
        "held_out_images": 360,
        "held_out_accuracy": round(accuracy, 6),
        "recipe": RECIPE,
        "command": "python -m dtr_lightning.metrics.train_digits",
        "seconds": round(time.perf_counter() - begin, 1),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
    }
    (out / f"{DigitsFeatures.name}.json").write_text(to_json(card, 2) + "\n")
    print(f"held-out accuracy {accuracy:.4f}, written to {out}")


if __name__ == "__main__":
    main()
