"""sweep.py with the tests' stand-in for a training: python -m tests.faults.light, options as there.

The environment can ask for more: FAULT_BARRIER=1 waits for a line before it begins, FAULT_CLOCK=S
makes the wall clock jump by S seconds after a second, FAULT_HOST=NAME is another machine's name,
FAULT_GRACE=S is the time without a sign of life after which another machine's trial is dead.
"""

import datetime
import os
import socket
import sys
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import sweep
from sweeps.engine import driver, study
from sweeps.engine.workers import Machine
from tests.sweeps import standin


def jump(seconds: float) -> None:
    """Makes what this process knows of the wall clock jump, after its first second."""
    began, real = time.monotonic(), time.time

    def wall() -> float:
        return real() + seconds * (time.monotonic() - began > 1)

    class Shifted(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(wall(), tz)

    time.time = wall
    own = datetime.datetime
    for module in list(sys.modules.values()):
        if getattr(module, "datetime", None) is own:
            module.datetime = Shifted


def main() -> int:
    """Runs the command."""
    asked = os.environ.get
    sys.modules["dtr_lightning.config.parser"] = SimpleNamespace(
        resolve=standin.resolve, run_name=standin.run_name, takes=standin.takes
    )
    driver.this_machine = lambda: Machine(2, ())
    driver.show = lambda *arguments: None
    driver.check_sweep = partial(driver.check_sweep, train=standin.train)
    if name := asked("FAULT_HOST"):
        socket.gethostname = lambda: name
    if grace := asked("FAULT_GRACE"):
        study.GRACE = float(grace)
    if asked("FAULT_BARRIER"):
        print("ready", flush=True)
        sys.stdin.readline()
    if seconds := asked("FAULT_CLOCK"):
        jump(float(seconds))
    return sweep.main()


if __name__ == "__main__":
    sys.exit(main())
