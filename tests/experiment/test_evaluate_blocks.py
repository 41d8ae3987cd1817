"""Laws of shared evaluations: any number of processes, stopped at any time, give the same bytes."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import make_reference
from dtr_lightning.config.evaluation import EvaluationConfig
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.blocks import Blocks
from dtr_lightning.experiment.evaluation import check_precision
from dtr_lightning.experiment.fit import run as train
from dtr_lightning.experiment.load import TrainedRun, other_protocol
from dtr_lightning.rundir.naming import protocol
from dtr_lightning.rundir.run import Run
from tests.conftest import ROOT, TINY
from tests.metrics.test_adm_protocol import cli, inception  # noqa: F401

N, SIZE = 22, 4
COUNT = 6  # blocks
OPTIONS = ("--evaluation.n", str(N), "--evaluation.guidance", "1.5")
LAUNCHER = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])
draw_block = Blocks._draw


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a trained run, and what its evaluation in one process prints."""
    path = tmp_path_factory.mktemp("whole") / "run"
    options = {"evaluation.batch_size": SIZE, "trainer.max_steps": 2, "evaluation.every": 0}
    train(resolve(ROOT / "configs" / "digits.yaml", TINY | options), path)
    shutil.copytree(path, path.parent / "untouched")
    command = Command(path)
    assert command.code() == 0 and command.drawn() == [*range(COUNT)], command.errors()
    return path.parent / "untouched", command.printed()


@pytest.fixture
def run(whole, tmp_path):
    """Returns a copy of the trained run."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


class Kill:
    """Signals its process before it draws a block, or, without one, before it scores."""

    def __init__(self, at=None, number=signal.SIGKILL):
        self.at, self.number = at, number

    def __call__(self, i=None):
        if i == self.at:
            os.kill(os.getpid(), self.number)


class Hang:
    """Says that the process has claimed a block, and draws nothing."""

    def __init__(self):
        self.claimed = SERVER.Event()

    def __call__(self, i):
        self.claimed.set()
        time.sleep(600)


class Meet:
    """Lets a process draw when all of them have claimed a block; the first time or always."""

    def __init__(self, processes, always=False):
        self.barrier, self.always = SERVER.Barrier(processes, timeout=60), always

    def __call__(self, i):
        if self.barrier is not None:
            self.barrier.wait()
        if not self.always:
            self.barrier = None


def nothing(*_):
    pass


class Command:
    """evaluate.py in a process of its own; `at(i)` is called before it draws block i."""

    started = 0

    def __init__(self, path, *options, at=nothing, at_score=nothing, **variables):
        Command.started += 1
        self.files = [path.parent / f"{name}-{self.started}" for name in ("out", "err", "drawn")]
        argv = ["evaluate.py", str(path), *(options or OPTIONS)]
        for file in self.files:
            file.touch()
        given = argv, self.files, at, at_score, variables
        self.process = SERVER.Process(target=evaluate_here, args=given, daemon=True)
        self.process.start()

    def code(self):
        self.process.join(120)
        return self.process.exitcode

    def printed(self):
        return self.files[0].read_text()

    def errors(self):
        return self.files[1].read_text()

    def drawn(self):
        return [int(line) for line in self.files[2].read_text().split()]


def evaluate_here(argv, files, at, at_score, variables):
    torch.set_num_threads(1)
    out, err, drawn = (file.open("w", buffering=1) for file in files)
    sys.argv, sys.stdout, sys.stderr = argv, out, err
    os.environ.update(variables)
    mend = Blocks.mend

    def draw(blocks, i, report):
        at(i)
        drawn.write(f"{i}\n")
        draw_block(blocks, i, report)

    Blocks._draw = draw
    Blocks.mend = lambda blocks, report: (at_score(), mend(blocks, report))
    code = evaluate.main()
    out.flush()
    os._exit(code)


def folders(run):
    return [p for p in (run / "artifacts" / "evaluations").iterdir() if p.is_dir()]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_plain_commands_share_the_samples(processes, whole, run):
    meet = Meet(processes)
    commands = [Command(run, at=meet) for _ in range(processes)]
    assert [c.code() for c in commands] == [0] * processes, commands[0].errors()
    assert {c.printed() for c in commands} == {whole[1]}
    assert all(c.drawn() for c in commands)
    assert sorted(i for c in commands for i in c.drawn()) == [*range(COUNT)]
    assert not folders(run)


@pytest.mark.slow
def test_commands_from_a_shell_share_the_samples(whole, run):
    call = [sys.executable, ROOT / "evaluate.py", run, *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(call, cwd=ROOT, env=environment, **pipes) for _ in range(2)]
    for command in both:
        printed, errors = command.communicate(timeout=120)
        assert command.returncode == 0, errors
        assert printed == whole[1]


@pytest.mark.slow
def test_processes_of_a_launcher_draw_their_shares(whole, run):
    both = Meet(2, always=True)
    commands = [Command(run, at=both, RANK=str(r), LOCAL_RANK=str(r), **LAUNCHER) for r in range(2)]
    assert [c.code() for c in commands] == [0, 0], commands[0].errors()
    assert [c.drawn() for c in commands] == [[0, 2, 4], [1, 3, 5]]
    assert [c.printed() for c in commands] == [whole[1], ""]
    assert "%" in commands[0].errors() and "%" not in commands[1].errors()
    assert "on 2 processes" in commands[0].errors()
    assert not folders(run)


@pytest.mark.slow
def test_the_first_process_draws_what_the_others_leave(whole, run):
    command = Command(run, RANK="0", LOCAL_RANK="0", **LAUNCHER)
    assert command.code() == 0 and command.printed() == whole[1]
    assert command.drawn() == [0, 2, 4, 1, 3, 5]


@pytest.mark.slow
def test_a_later_process_draws_and_leaves(whole, run):
    command = Command(run, RANK="1", LOCAL_RANK="1", **LAUNCHER)
    assert command.code() == 0 and command.printed() == ""
    assert command.drawn() == [1, 3, 5, 0, 2, 4] and len(folders(run)) == 1
    command = Command(run)
    assert command.code() == 0 and command.printed() == whole[1] and not command.drawn()
    assert not folders(run)


@pytest.mark.slow
def test_killed_and_continued(whole, run):
    killed = Command(run, at=Kill(2))
    assert killed.code() == -signal.SIGKILL and killed.drawn() == [0, 1]
    command = Command(run)
    assert command.code() == 0 and command.printed() == whole[1]
    assert command.drawn() == [2, 3, 4, 5] and not folders(run)
    assert "10 of 22 samples left" in command.errors()
    again = Command(run)  # stored: nothing is drawn
    assert again.code() == 0 and (again.printed(), again.drawn()) == (whole[1], [])


@pytest.mark.slow
def test_stopped_and_continued(whole, run):
    stopped = Command(run, at=Kill(2, signal.SIGINT))
    assert stopped.code() == 130 and "go on with: " in stopped.errors()
    assert len(list(folders(run)[0].glob("*.npz"))) == 2
    command = Command(run)
    assert command.code() == 0 and command.printed() == whole[1]
    assert command.drawn() == [2, 3, 4, 5] and not folders(run)


@pytest.mark.slow
def test_what_a_dead_process_was_drawing_is_drawn_by_another(whole, run):
    hang = Hang()
    hanging = Command(run, at=hang)
    assert hang.claimed.wait(60)
    command = Command(run)
    wait_for(lambda: len(command.drawn()) == COUNT - 1)
    assert command.drawn() == [1, 2, 3, 4, 5]
    hanging.process.kill()
    assert command.code() == 0 and command.printed() == whole[1]
    assert command.drawn() == [1, 2, 3, 4, 5, 0] and not folders(run)


@pytest.mark.slow
def test_a_damaged_block_is_drawn_again(whole, run):
    assert Command(run, at_score=Kill()).code() == -signal.SIGKILL
    (folder,) = folders(run)
    blocks = sorted(folder.glob("*.npz"))
    assert len(blocks) == COUNT
    blocks[0].write_bytes(b"")
    blocks[1].write_bytes(blocks[1].read_bytes()[:-30])
    content = bytearray(blocks[2].read_bytes())
    content[200] ^= 1
    blocks[2].write_bytes(content)
    np.savez(blocks[3], images=np.zeros((SIZE, 3, 8, 8), np.uint8), broken=0)
    command = Command(run)
    assert command.code() == 0 and command.printed() == whole[1]
    assert command.drawn() == [0, 1, 2, 3] and not folders(run)
    assert command.errors().count("is damaged; it is drawn again") == 4


@pytest.mark.slow
def test_kept_samples_serve_other_scores(whole, run, cli, tmp_path):  # noqa: F811
    assert cli(evaluate, run, *OPTIONS, "--keep-samples")[1] == whole[1]
    (folder,) = folders(run)
    stated = json.loads((folder / "protocol.json").read_text())
    assert (stated["n"], stated["guidance"], stated["batch_size"]) == (N, 1.5, SIZE)
    command = Command(run, *OPTIONS, "--evaluation.reference", "500")
    assert command.code() == 0 and json.loads(command.printed())["reference_n"] == 500
    assert not command.drawn() and folders(run) == [folder]
    reference, out = tmp_path / "ref.npz", tmp_path / "samples.npz"
    assert cli(make_reference, run, "--out", reference, "--images", 50)[0] == 0
    times = {file: file.stat().st_mtime_ns for file in folder.glob("*.npz")}
    adm = ("--protocol", "adm", "--reference", reference, "--save-samples", out)
    assert cli(evaluate, run, *OPTIONS, *adm)[0] == 0
    assert times == {file: file.stat().st_mtime_ns for file in folder.glob("*.npz")}
    parts = [np.load(file)["images"] for file in sorted(folder.glob("*.npz"))]
    saved = np.load(out)["arr_0"][..., :1].transpose(0, 3, 1, 2)
    assert np.array_equal(saved, np.concatenate(parts)) and len(saved) == N


@pytest.mark.slow
def test_a_process_tells_how_long_it_will_take(whole, run):
    command = Command(run)
    assert command.code() == 0
    line = r"22 samples, 132 network evaluations, about \d+ s on 1 process\n"
    assert len(re.findall(line, command.errors())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--evaluation.batch_size", "5"), "drawn with --evaluation.batch_size 4, not 5; give 4"),
        (("--evaluation.precision", "tf32"), "tf32 is of NVIDIA GPUs; on cpu give float32 or bf16"),
        (("--evaluation.precision", "fp8"), "evaluation.precision"),
        (("--keep-sample",), "--keep-sample is no option here"),
        (("RANK", "2"), "process 2 of 2"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_lost(options, told, run):
    assert Command(run, at=Kill(2)).code() == -signal.SIGKILL
    given, variables = options, {}
    if options[0] == "RANK":
        given, variables = (), {"RANK": "2", "LOCAL_RANK": "0", **LAUNCHER}
    before = sorted(file.name for file in folders(run)[0].iterdir())
    command = Command(run, *OPTIONS, *given, **variables)
    assert command.code() == 2 and not command.printed()
    (line,) = [x for x in command.errors().splitlines() if x.startswith("error")]
    assert told in line and "Traceback" not in command.errors()
    assert sorted(file.name for file in folders(run)[0].iterdir()) == before


class TestPrecision:
    @pytest.mark.slow
    def test_it_is_part_of_the_protocol(self, whole, run):
        plain = json.loads(whole[1])
        assert plain["protocol"]["precision"] == "float32"
        command = Command(run, *OPTIONS, "--evaluation.precision", "bf16")
        assert command.code() == 0
        other = json.loads(command.printed())
        assert other["protocol"] == plain["protocol"] | {"precision": "bf16"}
        assert other["score"] != plain["score"]
        assert other["score"] == pytest.approx(plain["score"], rel=0.1)
        assert len(list((run / "artifacts" / "evaluations").glob("*.json"))) == 1

    def test_float32_needs_no_statement(self, run):
        config = Run(run).config
        older = config | {"evaluation": dict(config["evaluation"])}
        del older["evaluation"]["precision"]
        assert protocol(config) == protocol(older)
        results = Run(run).results
        assert Run(run).finished(config) == Run(run).finished(older) == results
        config["evaluation"]["precision"] = "bf16"
        assert Run(run).finished(config) is None

    def test_results_of_another_precision_are_not_those_of_float32(self, run):
        results = Run(run).results
        results["protocol"]["precision"] = "bf16"
        Run(run).write_results(results)
        assert Run(run).finished(Run(run).config) is None

    def test_only_a_gpu_has_tf32(self):
        check_precision("tf32", torch.device("cuda"))
        with pytest.raises(UserError, match="tf32 is of NVIDIA GPUs"):
            check_precision("tf32", torch.device("cpu"))
        with pytest.raises(UserError, match=r"unknown evaluation\.precision .*valid: float32"):
            EvaluationConfig(precision="fp8")


@pytest.mark.slow
def test_from_python_it_is_the_same(whole, run):
    trained = TrainedRun(Run(run), other_protocol(Run(run), OPTIONS))
    work = []
    assert trained.evaluate(work.append) == json.loads(whole[1])
    assert sum(work) == trained.experiment.sampling_work() and not folders(run)
