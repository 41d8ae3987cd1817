"""A run in small, to see that it would work: a few steps on the way that a long run takes."""

__all__ = ["STEPS", "in_passing", "shortened"]

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dtr_lightning.config.parser import Config, takes
from dtr_lightning.config.trainer_options import OF_FIT
from dtr_lightning.training.launch import place

STEPS = 4  # of training; evaluated and saved on the way and at the end
SAMPLES = 64  # as many processes can share them
SAMPLER_STEPS = 2
VARIABLE = "DTR_FAST_DEV_RUN"  # tells the processes that Lightning starts where the first one is


def shortened(config: Config) -> Config:
    """Returns a config of few steps and samples, with its network and its batch as they are."""
    config = copy.deepcopy(config)
    config.pop("logger", None)
    for key in OF_FIT:
        config["trainer"].pop(key, None)
    config["trainer"] |= {"max_steps": STEPS, "log_every_n_steps": 1}
    config["checkpoint"] |= {"every": STEPS // 2, "milestones": 0}
    evaluation = config["evaluation"]
    evaluation |= {"every": STEPS // 2, "every_n": SAMPLES, "n": min(evaluation["n"], SAMPLES)}
    evaluation["reference"] = min(evaluation["reference"] or SAMPLES, SAMPLES)
    sampler = config["sampler"]
    if takes("sampler", sampler["class_path"], "steps"):
        sampler["init_args"] = {**(sampler.get("init_args") or {}), "steps": SAMPLER_STEPS}
    return config


@contextmanager
def in_passing(out: Path, nodes: int, leader: bool) -> Iterator[Path]:
    """Yields a directory that is the same in all processes of a run and is gone afterwards.

    It is a temporary one; of several `nodes` it lies beside `out`, where all of them see it.
    """
    several = nodes > 1 or place().world > 1
    name = os.environ.get(VARIABLE) or f"fast-dev-run-{_group() if several else os.getpid()}"
    os.environ[VARIABLE] = name
    folder = out.parent if nodes > 1 else Path(tempfile.gettempdir())
    begun = [path for path in (folder, *folder.parents) if not path.exists()]
    if leader:
        shutil.rmtree(folder / name, ignore_errors=True)
    try:
        yield folder / name
    finally:
        os.environ.pop(VARIABLE)
        if leader:
            shutil.rmtree(folder / name, ignore_errors=True)
            for path in begun:
                with suppress(OSError):  # another run has begun there
                    path.rmdir()


def _group() -> str:
    """Returns what the processes that srun or torchrun started together know of one another."""
    known = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_PORT")
    return "-".join(os.environ.get(name, "") for name in known)
