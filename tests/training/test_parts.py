"""A step does not depend on the machine: processes and accumulation only split its batch."""

import json
import os
import subprocess
import sys

import pytest
import torch

from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import read_checkpoint, run
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY, slow_except

STEPS = {"trainer.max_steps": 6, "trainer.log_every_n_steps": 1, "data.batch_size": 16}
SYSTEMS = {
    "digits": {"router": "DTR"},
    "captions": {"data": "DigitsCaptions", "model": "TextDiT", "router": "DTR"},
    "UW": {"loss_weight": "UW", "loss_weight.clusters": 4},
    "Switch": {"router": "Switch"},
}


def losses(path):
    return [record["train/loss"] for record in Run(path).metrics() if "train/loss" in record]


def config_of(system, **more):
    options = TINY | STEPS | {"evaluation.n": 4, "evaluation.every": 0} | SYSTEMS[system] | more
    if system == "captions":
        options = {k: v for k, v in options.items() if k != "model.class_dropout_prob"}
    return resolve(ROOT / "configs" / "digits.yaml", options)


@pytest.mark.parametrize("system", slow_except(SYSTEMS, "digits"))
def test_accumulated_parts_are_one_batch(system, tmp_path):
    whole, parts = (
        config_of(system, **{"trainer.accumulate_grad_batches": accumulate})
        for accumulate in (1, 4)
    )
    run(whole, tmp_path / "whole")
    run(parts, tmp_path / "parts")
    expected, actual = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert len(expected) == 6 and actual == pytest.approx(expected, rel=1e-5)
    a, b = (read_checkpoint(Run(tmp_path / name).last) for name in ("whole", "parts"))
    assert a["global_step"] == b["global_step"] == 6
    for key, value in a["state_dict"].items():
        torch.testing.assert_close(b["state_dict"][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_split_run_has_the_name_of_the_whole_and_resumes(tmp_path):
    """Four parts for three steps, then one part: the losses are those of one part throughout."""
    run(config_of("digits"), tmp_path / "whole")
    short = config_of("digits", **{"trainer.accumulate_grad_batches": 4, "trainer.max_steps": 3})
    run(short, tmp_path / "run")
    run(config_of("digits"), tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.slow
def test_two_processes_of_two_parts_are_one_batch(tmp_path):
    run(config_of("UW"), tmp_path / "whole")
    config = config_of("UW", **{"trainer.accumulate_grad_batches": 2})
    config["trainer"] |= {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "train.py", f"--config={tmp_path / 'config.yaml'}"]
    done = subprocess.run(
        [*command, f"--out={tmp_path / 'parts'}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer.accumulate_grad_batches": 3}, "16 does not divide into 3 accumulated parts"),
        ({"trainer.accumulate_grad_batches": 0}, "accumulate_grad_batches must be at least 1"),
        ({"loss_weight": "UW", "trainer.accumulate_grad_batches": 4}, "8 clusters"),
        ({"gradients": "PCGrad", "trainer.accumulate_grad_batches": 2}, "PCGrad needs the grad"),
    ],
)
def test_parts_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        Experiment(config_of("digits", **options)).check()
