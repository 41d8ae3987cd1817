"""Trains the shipped autoencoder of MNIST: `python -m dtr_lightning.data.train_vae [--out DIR]`.

It sees the training split only; the held-out split gives the PSNR in the JSON. The loss is LDM's
(Rombach et al. 2022, Appendix G) without its discriminator: a squared error, since that is what
PSNR measures, and a small KL. Needs requirements-scale.txt.
"""

__all__ = ["psnr", "train"]

import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dtr_lightning.cli.commands import Options, command, stop_on_signals
from dtr_lightning.cli.progress_bar import Bar
from dtr_lightning.data import MNIST, to_float, to_uint8
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.resumable import Resumable
from dtr_lightning.rundir.run import write_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

RECIPE: dict[str, Any] = {
    "seed": 0,
    "epochs": 24,
    "batch_size": 64,
    "optimizer": "AdamW",
    "lr": 4e-3,
    "weight_decay": 0.0,
    "schedule": "one cycle",
    "kl_weight": 2e-4,
    "shift_pixels": 2,
}
LAYOUT = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 32,
    "force_upcast": False,
}
FOLDER = Path(__file__).parent / "mnist_vae"


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images (N, C, H, W), each moved by up to `shift_pixels`; what leaves comes back."""
    far = RECIPE["shift_pixels"]
    moves = torch.randint(-far, far + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([x.roll(move, (1, 2)) for x, move in zip(images, moves, strict=True)])


def psnr(vae: "AutoencoderKL", images: Tensor) -> float:
    """Returns the PSNR in dB of images uint8 (N, C, H, W), decoded from their posteriors' means.

    10 log10(255^2 / MSE), the error being that of all pixels of all images, in uint8.
    """
    with torch.no_grad():
        decoded = to_uint8(vae.decode(vae.encode(to_float(images)).latent_dist.mode()).sample)
    return (255**2 / (decoded.double() - images).square().mean()).log10().item() * 10


def train(progress: Callable[[int, int, str], None], state: Resumable) -> "AutoencoderKL":
    """Returns the trained autoencoder; leaves the global RNG alone. UserError without diffusers.

    It goes on from `state`. Its scaling_factor is one over the standard deviation of all latents
    of the training split.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError("latents need diffusers: pip install -r requirements-scale.txt") from error
    images = to_float(MNIST().split("train").tensors[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RECIPE["seed"])
        vae = AutoencoderKL(**LAYOUT)
    generator = torch.Generator().manual_seed(RECIPE["seed"])
    optimizer = torch.optim.AdamW(
        vae.parameters(), RECIPE["lr"], weight_decay=RECIPE["weight_decay"]
    )
    batches = len(images) // RECIPE["batch_size"]
    steps = RECIPE["epochs"] * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["lr"], total_steps=steps)
    parts = {"vae": vae, "optimizer": optimizer, "schedule": schedule}
    for step in state.steps(steps, generator, parts):
        if step % batches == 0:
            state.order = torch.randperm(len(images), generator=generator)
        first = step % batches * RECIPE["batch_size"]
        x = shift(images[state.order[first : first + RECIPE["batch_size"]]], generator)
        posterior = vae.encode(x).latent_dist
        error = (vae.decode(posterior.sample(generator)).sample - x).square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()  # nats per latent
        (error + RECIPE["kl_weight"] * kl).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress(step + 1, steps, f"error {error:.4f}, KL {kl:.2f}")
    vae.eval()
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        variance = posterior.mean.var() + posterior.var.mean()
    vae.register_to_config(scaling_factor=round(variance.rsqrt().item(), 6))
    return vae


@command
def main() -> None:
    """Trains, then writes the folder in diffusers' layout and its card into --out.

    Stopped, the same command goes on.
    """
    parser = Options(__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: the shipped)")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    state = Resumable(out / "vae.training.pt", RECIPE, stop_on_signals())
    with Bar("training") as bar:
        vae = train(bar, state)
    held_out = MNIST().split("val").tensors[0]
    card = {
        "trained_on": "the 4,000 training images of dtr_lightning.data.MNIST",
        "license": f"MIT, as the package; trained on {MNIST.terms}",
        "parameters": sum(p.numel() for p in vae.parameters()),
        "held_out_images": len(held_out),
        "held_out_psnr": round(psnr(vae, held_out), 3),
        "recipe": RECIPE,
        "command": "python -m dtr_lightning.data.train_vae",
        "cpu_seconds": round(state.cpu_seconds(), 1),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as part:
        vae.save_pretrained(part)
        for file in Path(part).iterdir():
            file.replace(out / file.name)
    write_json(out / "card.json", card, 2)
    state.end()
    print(f"held-out PSNR {card['held_out_psnr']:.2f} dB, written to {out}")


if __name__ == "__main__":
    sys.exit(main())
