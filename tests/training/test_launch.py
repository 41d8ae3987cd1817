"""Who leads, what a scheduler's variables mean, and how processes stop together."""

import errno
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from dtr_lightning.errors import UserError
from dtr_lightning.rundir.run import Run
from dtr_lightning.training.launch import forget_launcher, is_leader, make_trainer
from tests.conftest import ROOT, TINY

ONE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "accelerator": "cpu"}
WORKER = {"data": "ImageFolder", "data.root": "{path}/images", "data.size": 8, "data.workers": 1}
WORKER |= {"data.held_out": 0.3, "features": "TimmFeatures", "features.size": 32}
TWO = ONE | {"devices": 2, "strategy": "ddp"}
SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NODELIST": "a"}
BATCH = SHELL | {"SLURM_STEP_ID": str(0xFFFFFFFB)}
STEP = SHELL | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}


@pytest.fixture
def variables(monkeypatch):
    """Returns a function that sets variables and clears those of every launcher."""

    def use(**values):
        for name in [*os.environ]:
            if name.startswith("SLURM_"):
                monkeypatch.delenv(name)
        forget_launcher()
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.mark.parametrize(
    ("values", "options", "leads"),
    [
        ({}, ONE, True),
        ({}, TWO, True),
        ({"LOCAL_RANK": "1"}, TWO, False),
        ({"NODE_RANK": "1"}, TWO | {"num_nodes": 2}, False),
        ({"NODE_RANK": "0"}, TWO | {"num_nodes": 2}, True),
        (TORCHRUN, TWO, False),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, TWO, True),
        (SHELL, ONE, True),
        (BATCH, TWO, True),
        (STEP | {"SLURM_PROCID": "1"}, TWO, False),
        (STEP, TWO, True),
    ],
)
def test_the_first_process_leads_whatever_started_it(variables, values, options, leads):
    variables(**values)
    assert is_leader(options) is leads


@pytest.mark.parametrize("values", [SHELL, BATCH])
def test_variables_of_a_scheduler_change_nothing(variables, values):
    variables(**values)
    trainer = make_trainer(ONE, logger=False, enable_checkpointing=False)
    assert (trainer.world_size, trainer.global_rank) == (1, 0)
    assert trainer.default_root_dir == os.devnull  # where Lightning looks for hpc_ckpt_*.ckpt


def test_processes_that_are_not_as_many_as_asked_for_are_refused(variables):
    variables(**STEP)
    with pytest.raises(UserError, match=r"srun started 2 processes.* is 1 x 1"):
        make_trainer(ONE, logger=False)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook", "fsdp", "deepspeed"])
def test_strategies_that_cannot_work_are_refused(tiny, strategy):
    with pytest.raises(
        UserError, match=rf"unknown trainer.strategy '{strategy}'; valid: auto, ddp"
    ):
        tiny(trainer__strategy=strategy)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_costs_a_line(tmp_path, monkeypatch, caplog, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Run(tmp_path).lock():
        pass
    assert "has no locks" in caplog.text and caplog.text.count("\n") == 1
    assert not Run(tmp_path).in_use()


def start(out, ranks, **more):
    """Starts a training of 2000 steps, without evaluations on the way unless asked for."""
    options = TINY | {"trainer.accelerator": "cpu", "evaluation.every": 0}
    options |= {"trainer.max_steps": 2000, "checkpoint.every": 9999}
    options |= {"trainer.log_every_n_steps": 5} | more
    if ranks > 1:
        options |= {"trainer.devices": ranks, "trainer.strategy": "ddp"}
    words = [f"--{key}={value}" for key, value in options.items()]
    command = [
        sys.executable,
        "train.py",
        "--config",
        "configs/digits.yaml",
        *words,
        f"--out={out}",
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def wait_for_record(out, process):
    """Waits for the first record of a run, or its end."""
    for _ in range(1200):
        if Run(out).metrics_file.exists() or process.poll() is not None:
            break
        time.sleep(0.1)


def interrupted(out, ranks, number, group, delay, **more):
    """Runs a training that gets a signal after its first record; returns its exit code."""
    process = start(out, ranks, **more)
    wait_for_record(out, process)
    time.sleep(delay)
    (os.killpg if group else os.kill)(process.pid, number)
    process.communicate(timeout=120)
    return process.returncode


SENT = [(1, signal.SIGUSR1), (2, signal.SIGTERM)]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "number"), SENT, ids=["one", "two"])
def test_a_signal_saves_in_all_processes(tmp_path, ranks, number):
    assert interrupted(tmp_path, ranks, number, group=ranks == 1, delay=0.1) == 130
    step = torch.load(Run(tmp_path).last, weights_only=True)["global_step"]
    assert 0 < step < 2000 and Run(tmp_path).meta["status"] == "stopped"


@pytest.mark.slow
def test_a_signal_before_the_processes_have_met_ends_with_the_same_code(tmp_path):
    """Both leave while they meet, in a thread of C++, which must not abort the end of Python."""
    options = TINY | {"trainer.accelerator": "cpu", "trainer.num_nodes": 2, "trainer.devices": 1}
    words = [f"--{key}={value}" for key, value in options.items()]
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    both = [
        subprocess.Popen(
            [
                sys.executable,
                "train.py",
                "--config=configs/digits.yaml",
                *words,
                f"--out={tmp_path}",
            ],
            cwd=ROOT,
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    for process in both:
        assert process.stdout.readline() == "loading ...\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGUSR1)
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [130, 130], said


@pytest.mark.slow
def test_two_processes_stop_in_an_evaluation_and_make_up_for_it(tmp_path):
    """The evaluation follows the first record; the second process has a batch of samples more."""
    more = {"trainer.max_steps": 4, "trainer.log_every_n_steps": 3, "sampler.steps": 200}
    more |= {"evaluation.every": 3, "evaluation.every_n": 9, "evaluation.n": 8}
    more |= {"evaluation.batch_size": 4}
    parts, whole = Run(tmp_path / "parts"), Run(tmp_path / "whole")
    assert interrupted(parts.path, 2, signal.SIGTERM, group=False, delay=0.1, **more) == 130
    stopped = torch.load(parts.last, weights_only=True)
    assert stopped["global_step"] == 3 and stopped["callbacks"]["PeriodicEvaluation"]["missing"]
    assert [record["step"] for record in parts.metrics()] == [3]
    for each in (parts, whole):
        process = start(each.path, 2, **more)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert parts.metrics() == whole.metrics()
    timed = {"seconds", "steps_per_second"}
    a, b = ({k: v for k, v in each.results.items() if k not in timed} for each in (parts, whole))
    assert a == b


DEATHS = [
    (1, WORKER, "error: a data worker "),
    (2, {}, "error: another process of this run has ended; what it said tells why"),
]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("ranks", "more", "expected"),
    DEATHS,
    ids=["worker", "rank"],
)
def test_a_process_that_dies_is_one_line(tmp_path, ranks, more, expected):
    for i in range(20):
        image = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * i, 99, 0)).save(image)
    more = {key: str(value).format(path=tmp_path) for key, value in more.items()}
    process = start(tmp_path / "run", ranks, **more)
    wait_for_record(tmp_path / "run", process)
    if process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children.split()[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and "Traceback" not in said, said
    assert len(lines) == 1 and lines[0].startswith(expected), said


@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
def test_twenty_signals_at_random_steps_save_twenty_times(tmp_path, ranks):
    chance = random.Random(ranks)
    for i in range(20):
        number = chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
        out = tmp_path / str(i)
        assert interrupted(out, ranks, number, chance.random() < 0.5, chance.uniform(0, 2)) == 130
        assert torch.load(Run(out).last, weights_only=True)["global_step"] > 0
