"""How fast the suite is: each file measures one thing, alone or beside a peer's checkout."""

__all__: list[str] = []

import sys

from dtr_lightning.cli.commands import loading

if sys.argv[0] == "-m":  # `python -m benchmarks.NAME` imports this first
    loading()
