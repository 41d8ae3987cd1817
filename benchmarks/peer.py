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
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dtr_lightning.data import to_float
from dtr_lightning.errors import UserError

NEEDED = ("train.py", "models/DiT/models.py", "models/taskrouting.py", "diffusion/__init__.py")
# What train.py imports for configs, logging and latents: a step does without.
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

        model_options: of its DiT. batch: images uint8 (N, C, H, W) and labels (N,) on the device.
        """
        images, labels = to_float(batch[0]), batch[1]
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


class _Absent(ModuleType):
    """A module that is not installed: its attributes, and what calls return, are itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # for packages that look whether it is there

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **options: Any) -> "_Absent":
        return self


@contextmanager
def _importing_from(root: Path) -> Iterator[None]:
    """Imports come from the checkout; `@torch.compile()` there leaves its function eager."""
    absent = {name: _Absent(name) for name in UNUSED if not _installed(name)}
    compiled = torch.compile
    sys.path.insert(0, str(root.resolve()))
    sys.modules.update(absent)
    torch.compile = lambda **_: lambda function: function
    try:
        yield
    finally:
        torch.compile = compiled
        sys.path.remove(str(root.resolve()))
        for name in absent:
            del sys.modules[name]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None
