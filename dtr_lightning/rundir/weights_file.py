"""Which file of weights a path names: a checkpoint, the last one of a run, or that of a folder."""

__all__ = ["OF_DIFFUSERS", "weights_file"]

from pathlib import Path

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run

# What a folder of diffusers calls its weights, the whole pipeline's folder included.
OF_DIFFUSERS = tuple(
    f"{folder}diffusion_pytorch_model.{ending}"
    for folder in ("", "transformer/")
    for ending in ("safetensors", "bin")
)
OF_EXPORT = ("model.safetensors", "model.pt")  # what export.py calls them


def weights_file(path: str | Path) -> Path:
    """Returns the file of weights that a path names: a run's last, that of a folder, or itself.

    A folder is one of diffusers or of export.py. UserError for a path that does not exist, and for
    any other folder.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"{path} does not exist; give a checkpoint, a run, a folder of diffusers or export.py"
        )
    if not path.is_dir():
        return path
    run = Run(path)
    if run.config_file.is_file():
        if not run.last.is_file():
            raise UserError(f"{path} has no checkpoint ckpt/last.ckpt to start from")
        return run.last
    for name in (*OF_DIFFUSERS, *OF_EXPORT):
        if (path / name).is_file():
            return path / name
        if (path / f"{name}.index.json").is_file():
            raise UserError(f"{path} holds weights in several parts; save them as one file")
    raise UserError(
        f"{path} is a directory, neither a run (config.yaml) nor of diffusers "
        f"({OF_DIFFUSERS[0]}) nor of export.py ({OF_EXPORT[0]}); give the file of weights"
    )
