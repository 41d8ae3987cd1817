"""The training step of a checkout of byeongjun-park/DTR, called as its own train.py does.

Nothing of that repository is in this one: its modules are imported from the given directory.
"""

__all__ = ["Peer"]

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dtr_lightning.errors import UserError

NEEDED = ("train.py", "models/DiT/models.py", "models/taskrouting.py", "diffusion/__init__.py")
# What train.py imports for configs, logging, latents and multi-GPU set-up: not part of a step, so a
# stand-in does where one is not installed.
UNUSED = ("hydra", "omegaconf", "wandb", "dotenv", "diffusers", "diffusers.models", "tqdm")


class Peer:
    """The modules of a checkout; UserError if the directory holds none that can be imported."""

    def __init__(self, directory: str | Path) -> None:
        root = Path(directory)
        if missing := [name for name in NEEDED if not (root / name).is_file()]:
            raise UserError(
                f"{root} is no checkout of byeongjun-park/DTR: {', '.join(missing)} not found"
            )
        try:
            with _importing_from(root):
                self.models = importlib.import_module("models.DiT.models")
                self.router = importlib.import_module("models.taskrouting").TaskRouter
                self.create_diffusion = importlib.import_module("diffusion").create_diffusion
                self.update_ema = importlib.import_module("train").update_ema
        except ImportError as error:
            raise UserError(f"the checkout {root} cannot be imported: {error}") from error

    def step(
        self,
        model_options: dict[str, int],
        beta: float,
        batch: tuple[Tensor, Tensor],
        forward_context: Callable[[], Any],
        compile: bool = False,
    ) -> Callable[[], None]:
        """Returns its training step with DTR masks; beta = 1 is its way to have no routing.

        model_options: of its DiT. batch: images (N, C, H, W) and labels (N,) on the device.
        """
        images, labels = batch
        model = self.models.DiT(
            **model_options,
            router=self.router,
            sharing_ratio=beta,
            taskcount=1000,
            init_method="DTR",
        ).to(images.device)
        average = copy.deepcopy(model).requires_grad_(False).eval()
        model.train()
        diffusion = self.create_diffusion(timestep_respacing="", noise_schedule="cosine")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
        update_ema, network = self.update_ema, model
        if compile:
            update_ema, network = torch.compile(update_ema), torch.compile(model)

        def step() -> None:
            with forward_context():
                t = torch.randint(0, diffusion.num_timesteps, (len(images),), device=images.device)
                terms = diffusion.training_losses(network, images, t, None, {"y": labels})
                loss = terms["loss"].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            update_ema(average, model)

        return step


@contextmanager
def _importing_from(root: Path) -> Iterator[None]:
    """Imports come from the checkout; `@torch.compile()` there leaves its function eager."""
    absent = [name for name in UNUSED if not _installed(name)]
    stand_ins: dict[str, ModuleType] = {name: mock.MagicMock() for name in absent}
    sys.path.insert(0, str(root.resolve()))
    sys.modules.update(stand_ins)
    try:
        with mock.patch.object(torch, "compile", lambda **_: lambda function: function):
            yield
    finally:
        sys.path.remove(str(root.resolve()))
        for name in stand_ins:
            del sys.modules[name]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None
