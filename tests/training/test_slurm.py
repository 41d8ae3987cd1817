"""On a real SLURM of two nodes: srun's ranks, signals, requeued jobs, and a sweep by an array.

Skipped where SLURM is not installed (Debian: slurm-wlm); the daemons are the tests' own, with a
config, a state and ports in a temporary directory. Both nodes are this machine: two slurmd.
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

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run, find_runs
from tests.conftest import ROOT, TINY
from tests.faults.postgres import Server
from tests.faults.verdict import judge
from tests.faults.victims import Lab

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
SlurmctldPort={ports[0]}
AuthType=auth/none
AuthInfo=cred_expire=5
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
SlurmdSpoolDir={path}/spool-%n
SlurmctldPidFile={path}/slurmctld.pid
SlurmdPidFile={path}/slurmd-%n.pid
SlurmctldLogFile={path}/slurmctld.log
SlurmdLogFile={path}/slurmd-%n.log
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 State=UNKNOWN
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def wait_for(condition, seconds):
    """Returns whether something came true in time; asks twice a second."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.5)
    return bool(found)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Yields the environment in which SLURM's commands find the tests' own cluster."""
    path, host = tmp_path_factory.mktemp("slurm"), socket.gethostname()
    (path / "state").mkdir()
    text = CONFIG.format(path=path, host=host, ports=[free_port() for _ in range(3)])
    (path / "slurm.conf").write_text(text)
    daemons = [
        subprocess.Popen([name, "-D", "-f", path / "slurm.conf", *options], stderr=subprocess.PIPE)
        for name, *options in (("slurmctld",), ("slurmd", "-N", host), ("slurmd", "-N", "second"))
    ]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    environment = plain | {"SLURM_CONF": str(path / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    environment |= {"VENV": sys.prefix, "MASTER_ADDR": "127.0.0.1"}
    try:
        for _ in range(100):
            asked = subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
            )
            if asked.stdout.split() == ["idle"]:  # all nodes
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"SLURM does not start: {asked.stdout} {asked.stderr}")
        yield environment
    finally:
        call(environment, "scancel", "--full", "--signal=KILL", "--user=root")
        wait_for(lambda: not call(environment, "squeue", "-h").stdout, 30)
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
    options = {"trainer.max_steps": 400, "trainer.log_every_n_steps": 10, "checkpoint.every": 9999}
    options |= {"loss_weight": "tests.paced.Paced"}
    words = ["srun", "-n2", *training(tmp_path / "run", 2, **options)]
    step = subprocess.Popen(
        words,
        cwd=ROOT,
        env=cluster | {"PACE": "0.05"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
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
    assert 0 < reached < 400
    assert call(cluster, *words).returncode == 0
    assert call(cluster, "srun", "-n2", *training(tmp_path / "whole", 2, **options)).returncode == 0
    assert computed(tmp_path / "run") == computed(tmp_path / "whole")


ONE_CPU = ("--gpus-per-node=0", "--cpus-per-task=1")


def submit(cluster, *words, **more):
    """Submits a job script that runs to an end of its own and returns the job's number."""
    done = call(cluster | more, "sbatch", "--parsable", *ONE_CPU, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(cluster, job):
    """Returns what SLURM knows of a job, or of each task of an array."""
    shown = call(cluster, "scontrol", "show", "job", job).stdout
    return [
        {key: value for key, _, value in (word.partition("=") for word in record.split())}
        for record in shown.split("\n\n")
        if record.strip()
    ]


def end_soon(cluster, job):
    """Moves the time limit of a running job to the next minute or the one after.

    SLURM looks every 30 seconds which jobs are to be told of their end.
    """
    hours, minutes, seconds = map(int, state(cluster, job)[0]["RunTime"].split(":"))
    limit = 60 * hours + minutes + (1 if seconds < 25 else 2)
    call(cluster, "scontrol", "update", f"jobid={job}", f"TimeLimit={limit}")


def test_a_job_is_requeued_before_its_time_limit_and_when_its_node_fails(cluster, tmp_path):
    options = {"trainer.max_steps": 1200, "trainer.log_every_n_steps": 10, "checkpoint.every": 5000}
    options |= {"loss_weight": "tests.paced.Paced"}
    words = training(tmp_path / "run", 1, **options, **{"trainer.strategy": "ddp"})[2:]
    run, log, paced = Run(tmp_path / "run"), tmp_path / "slurm.out", tmp_path / "paced"
    paced.touch()
    where = ("--ntasks-per-node=1", "--time=10", "--signal=B:USR1@55", f"--output={log}")
    job = submit(cluster, *where, "sweeps/train.sbatch", *words, PACE="0.1", PACED=str(paced))
    assert wait_for(lambda: len(run.metrics()) > 1, 120), log.read_text()
    end_soon(cluster, job)
    assert wait_for(lambda: "start 2" in log.read_text(), 120), log.read_text()
    assert "exit code 130" in log.read_text()
    call(cluster, "scontrol", "update", f"jobid={job}", "TimeLimit=10")
    saved = torch.load(run.last, weights_only=True)["global_step"]
    assert 0 < saved < 1200
    recorded = len(run.metrics())
    assert wait_for(lambda: len(run.metrics()) > recorded, 120), log.read_text()
    call(cluster, "scontrol", "update", "nodename=second", "state=down", "reason=test")
    call(cluster, "scontrol", "update", "nodename=second", "state=resume")
    paced.unlink()  # what is left need not last
    assert wait_for(lambda: state(cluster, job)[0]["JobState"] == "COMPLETED", 300), log.read_text()
    (shown,) = state(cluster, job)
    assert (shown["Restarts"], shown["ExitCode"]) == ("2", "0:0")
    assert "start 3" in log.read_text()
    assert call(cluster, *training(tmp_path / "whole", 2, **options)).returncode == 0
    assert computed(tmp_path / "run") == computed(tmp_path / "whole")


def test_a_mistake_and_scancel_requeue_nothing(cluster, tmp_path):
    log = tmp_path / "slurm.out"
    where = ("--nodes=1", "--ntasks-per-node=1", "--time=5", "--open-mode=append")
    script = (*where, f"--output={log}", "sweeps/train.sbatch")
    job = submit(cluster, *script, *training(tmp_path / "run", 1, **{"router": "Other"})[2:])
    assert wait_for(lambda: state(cluster, job)[0]["JobState"] == "FAILED", 60), log.read_text()
    (shown,) = state(cluster, job)
    assert (shown["ExitCode"], shown["Restarts"]) == ("2:0", "0")
    assert "unknown router 'Other'" in log.read_text()
    options = {"trainer.max_steps": 10**6, "checkpoint.every": 10**6}
    job = submit(cluster, *script, *training(tmp_path / "run", 1, **options)[2:])
    assert wait_for(lambda: Run(tmp_path / "run").metrics(), 60), log.read_text()
    call(cluster, "scancel", job)
    assert wait_for(lambda: "COMPLETING" not in state(cluster, job)[0]["JobState"], 60)
    (shown,) = state(cluster, job)
    assert (shown["JobState"], shown["Restarts"]) == ("CANCELLED", "0")
    assert Run(tmp_path / "run").last.exists() and "exit code 130" in log.read_text()


def test_an_array_shares_a_sweep_in_postgresql_and_one_task_is_cancelled(cluster, tmp_path):
    try:
        server = Server()
    except UserError as error:
        pytest.skip(str(error))
    lab, out, reference = Lab(tmp_path, 6), tmp_path / "out", tmp_path / "reference"
    words = ("--smoke", "--workers", "1", "--out", out)
    with server:
        job = submit(
            cluster,
            *("--array=1-4", "--time=10", f"--output={tmp_path}/slurm-%a.out"),
            "sweeps/slurm.sbatch",
            *(lab.sweep, *words),
            SWEEP_STORAGE=server.url(),
        )
        assert wait_for(lambda: out.is_dir() and any(r.metrics() for r in find_runs([out])), 120)
        call(cluster, "scancel", f"{job}_2")
        ended = {"COMPLETED", "CANCELLED"}
        assert wait_for(lambda: {s["JobState"] for s in state(cluster, job)} <= ended, 240)
        states = {s.get("ArrayTaskId"): s["JobState"] for s in state(cluster, job)}
        assert lab.start(reference).end() == 0
        verdict = judge(out, server.url(), reference, set())
    assert verdict == (6, 0, 0, 6, [])
    assert states == {"1": "COMPLETED", "2": "CANCELLED", "3": "COMPLETED", "4": "COMPLETED"}
