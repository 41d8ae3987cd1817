"""Where a number comes from: command, commit, versions and device."""

__all__ = ["provenance"]

import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "torchmetrics", "timm", "numpy", "jsonargparse")


def provenance() -> dict[str, Any]:
    """Returns what meta.json says of how a run is computed."""
    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git": _commit(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _commit() -> str | None:
    """Returns the commit of the clone this package runs from, "+" if changed; None elsewhere."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
