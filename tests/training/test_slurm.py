"""On a real SLURM of one node: srun's ranks, its signals, and an allocation that changes nothing.

Skipped where SLURM is not installed (Debian: slurm-wlm); the daemons are the tests' own, with a
config, a state and ports in a temporary directory.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
import torch

from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not shutil.which("slurmctld") or os.getuid() != 0,
        reason="needs slurm-wlm, and root to start its daemons",
    ),
]
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={second}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={path}/state
SlurmdSpoolDir={path}/spool
SlurmctldPidFile={path}/slurmctld.pid
SlurmdPidFile={path}/slurmd.pid
SlurmctldLogFile={path}/slurmctld.log
SlurmdLogFile={path}/slurmd.log
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Yields the environment in which SLURM's commands find the tests' own cluster."""
    path, host = tmp_path_factory.mktemp("slurm"), socket.gethostname()
    for folder in ("state", "spool"):
        (path / folder).mkdir()
    text = CONFIG.format(path=path, host=host, port=free_port(), second=free_port())
    (path / "slurm.conf").write_text(text)
    daemons = [
        subprocess.Popen([name, "-D", "-f", path / "slurm.conf", *options], stderr=subprocess.PIPE)
        for name, options in (("slurmctld", ()), ("slurmd", ("-N", host)))
    ]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    environment = plain | {"SLURM_CONF": str(path / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    try:
        for _ in range(100):
            asked = subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
            )
            if asked.stdout.strip() == "idle":
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"SLURM does not start: {asked.stdout} {asked.stderr}")
        yield environment
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(30)


def training(out, ranks, **options):
    """Returns the command of a tiny training."""
    options = TINY | {"trainer.accelerator": "cpu", "evaluation.every": 0} | options
    if ranks > 1:
        options |= {"trainer.devices": ranks, "trainer.strategy": "ddp"}
    words = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "train.py", "--config", "configs/digits.yaml", *words, f"--out={out}"]


def call(cluster, *words, timeout=240):
    return subprocess.run(
        [*map(str, words)], cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=timeout
    )


def computed(path):
    results = {k: Run(path).results[k] for k in ("score", "loss", "steps")}
    weights = torch.load(Run(path).last, weights_only=True)["state_dict"]
    return results, Run(path).metrics(), {k: v.tolist() for k, v in weights.items()}


def test_two_tasks_of_srun_train_one_run(cluster, tmp_path):
    done = call(cluster, "srun", "-n2", *training(tmp_path / "srun", 2))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "srun" not in done.stderr and done.stdout.count("run: ") == 1
    alone = call(cluster, *training(tmp_path / "lightning", 2))
    assert alone.returncode == 0, alone.stderr[-2000:]
    assert computed(tmp_path / "srun") == computed(tmp_path / "lightning")


def test_an_allocation_changes_nothing_for_a_single_process(cluster, tmp_path):
    done = call(cluster, "salloc", "-n4", *training(tmp_path / "run", 1))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 6


def test_numbers_that_contradict_each_other_are_one_line(cluster, tmp_path):
    done = call(cluster, "srun", "-n2", *training(tmp_path / "run", 1))
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = {line for line in done.stderr.splitlines() if line.startswith("error:")}
    assert "srun started 2 processes" in line and "1 x 1" in line


def test_the_signal_before_the_end_saves_and_the_same_command_goes_on(cluster, tmp_path):
    options = {"trainer.max_steps": 1500, "trainer.log_every_n_steps": 10, "checkpoint.every": 9999}
    words = ["srun", "-n2", *training(tmp_path / "run", 2, **options)]
    step = subprocess.Popen(
        words, cwd=ROOT, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    record = tmp_path / "run" / "metrics.jsonl"
    for _ in range(1200):
        if record.exists() and record.read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    (job,) = call(cluster, "squeue", "-h", "-o", "%i").stdout.split()
    call(cluster, "scancel", "--signal=USR1", job)
    said, _ = step.communicate(timeout=120)
    assert step.returncode == 130, said[-2000:]
    assert not list(ROOT.glob("hpc_ckpt*"))
    reached = torch.load(Run(tmp_path / "run").last, weights_only=True)["global_step"]
    assert 0 < reached < 1500
    assert call(cluster, *words).returncode == 0
    assert call(cluster, "srun", "-n2", *training(tmp_path / "whole", 2, **options)).returncode == 0
    assert computed(tmp_path / "run") == computed(tmp_path / "whole")
