"""A reader that has seen enough, as `head`, is no error of a command."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

COMMANDS = {
    "train": ["train.py", "--help"],
    "evaluate": ["evaluate.py", "--help"],
    "sample": ["sample.py", "--help"],
    "plan": ["sweep.py", "--dry-run"],
    "latents": ["make_latents.py", "--help"],
    "reference": ["make_reference.py", "--help"],
    "import": ["import_checkpoint.py", "--help"],
    "export": ["export.py", "--help"],
    "analysis": ["-m", "analysis", "--help"],
    "figures": ["-m", "analysis", "runs"],
}


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_reader_that_leaves_is_no_error(words):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, text=True, **pipes) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")
