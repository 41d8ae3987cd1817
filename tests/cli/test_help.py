"""Every option of every command is explained, and a mistake in one is a line that helps."""

import argparse
import importlib
import os
import subprocess
import sys

import pytest

from dtr_lightning.config.parser import AXES, Parser, make_parser, parse
from dtr_lightning.config.registry import options
from dtr_lightning.errors import UserError
from tests.conftest import ROOT, shipped

DIGITS = str(ROOT / "configs" / "digits.yaml")
CHOICES = [(axis, name) for axis, (base, _) in AXES.items() for name in shipped(base)]
COMMANDS = ["sweep", "evaluate", "sample", "make_latents", "make_reference", "analysis.__main__"]
COMMANDS += ["import_checkpoint", "export"]
BENCHMARKS = ["analysis", "cost", "latents", "metrics", "routing", "step", "sweep"]
MODULES = [*COMMANDS, *(f"benchmarks.{name}" for name in BENCHMARKS)]
MODULES += ["dtr_lightning.metrics.train_classifier", "dtr_lightning.data.train_vae"]
MODULES += ["tests.faults.campaigns"]


def unexplained(parser):
    return [action.dest for action in parser._actions if not action.help]


@pytest.mark.parametrize(("axis", "name"), CHOICES)
def test_every_argument_of_a_choice_is_explained(axis, name):
    base, linked = AXES[axis]
    parser = Parser()
    parser.add_class_arguments(shipped(base)[name], axis, skip=linked & options(base, name))
    assert unexplained(parser) == []


def test_every_option_of_training_is_explained():
    assert unexplained(make_parser()) == []


@pytest.mark.parametrize("module", MODULES)
def test_every_option_of_a_command_is_explained(module, monkeypatch):
    parsers = []

    class Parsed(Exception):
        pass

    def keep(parser, *arguments):
        parsers.append(parser)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", keep)
    monkeypatch.setattr(sys, "argv", [module])
    with pytest.raises(Parsed):
        importlib.import_module(module).main()
    assert unexplained(parsers[0]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--router.alpha=4"], "NoRouting has none; give --router DTR"),
        (["--router=RTR", "--router.alpha=4"], "RTR has none; give --router DTR"),
        (["--loss_weight=MinSNR", "--loss_weight.k=3"], "MinSNR has none; give --loss_weight P2"),
        (["--sampler.spacing=t"], "DDIM has none; give --sampler DPMSolver"),
        (["--router=RTR", "--router.seed=5"], "it follows from other options"),
        (["--alpha", "4"], "did you mean router.alpha?"),
        (["--lr", "1e-3"], "did you mean module.lr?"),
        (["--batch_size", "8"], "did you mean evaluation.batch_size or data.batch_size?"),
        (["--max_steps", "8"], "did you mean trainer.max_steps?"),
        (["--module.seed", "8"], "did you mean seed"),
        (["--router", "dtr"], "did you mean DTR?"),
        (["-router", "DTR"], "write --router"),
        (["--router.help", "Foo"], "unknown router 'Foo'; valid: "),
        (["--print_shtab", "bash"], "unknown option 'print_shtab'"),
        (["--router=DTR", "--router.alpha"], "--router.alpha needs a value"),
        (["--router"], "--router needs a value; valid: "),
        (["--seed"], "--seed needs a value"),
        (["--module.ema_warmup=1"], "valid: true, false"),
        (["--trainer.deterministic=x"], "valid: warn, true, false"),
        (["--trainer.max_steps=1e3"], "for trainer.max_steps; valid: int"),
        (["--module.betas=0.9,0.99"], "valid: a list in brackets, as [0, 1]"),
        (["--module.betas=[0.9]"], "valid: a list of 2 in brackets"),
        (["--sampler.steps=1e2"], "valid: 250 (evenly)"),
        (["--evaluation", "3"], "takes a mapping of its options; valid: n, every"),
        (["--gradients", "Gradients"], "unknown gradients 'Gradients'"),
    ],
)
def test_a_mistake_says_what_to_give(given, message):
    with pytest.raises(UserError) as error:
        parse(make_parser(), ["--config", DIGITS, *given])
    assert message in str(error.value)
    assert "print_shtab" not in str(error.value).partition("valid: ")[2]
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_an_option_given_twice_is_said(caplog):
    parse(make_parser(), ["--config", DIGITS, "--seed=1", "--seed=2"])
    assert "--seed is given twice; the last counts" in caplog.text


def write_module(folder, monkeypatch, text):
    (folder / "my_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_module", raising=False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class Mine(Router): pass", "it lacks the methods forward"),
        ("class Mine(NoRouting):\n def __init__(self, width): pass", "argument width has no type"),
        ("import not_there", "No module named 'not_there'"),
    ],
)
def test_an_own_class_that_cannot_be_made(tmp_path, monkeypatch, body, message):
    text = f"from dtr_lightning.routing import NoRouting, Router\n{body}"
    write_module(tmp_path, monkeypatch, text)
    with pytest.raises(UserError) as error:
        parse(make_parser(), ["--config", DIGITS, "--router", "my_module.Mine"])
    assert message in str(error.value)


@pytest.mark.parametrize(("doc", "about"), [('"""All.\n\n Much."""', "All. "), ("", "")])
def test_the_help_of_a_class_without_options_says_so(tmp_path, monkeypatch, capsys, doc, about):
    text = f"from dtr_lightning.routing import NoRouting\nclass Mine(NoRouting):\n {doc or 'pass'}"
    write_module(tmp_path, monkeypatch, text)
    with pytest.raises(SystemExit, match=r"^0$"):
        parse(make_parser(), ["--router.help", "my_module.Mine"])
    help_text = capsys.readouterr().out
    assert help_text.endswith(f"help=my_module.Mine\n\n{about}Mine has no options.\n")


def test_a_bug_in_an_own_module_keeps_its_traceback(tmp_path, monkeypatch):
    write_module(tmp_path, monkeypatch, "not_defined")
    with pytest.raises(NameError, match="not_defined"):
        parse(make_parser(), ["--config", DIGITS, "--router", "my_module.Mine"])


@pytest.mark.parametrize(
    "command",
    ["train.py --help", "sweep.py --status", "-m benchmarks.metrics --help"],
)
def test_a_command_speaks_before_it_imports(command, tmp_path):
    """Without torch, imports fail: what was printed before came first."""
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    (tmp_path / "optuna.py").write_text("raise SystemExit(3)")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    call = [sys.executable, *command.split()]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout == "loading ...\n"


def test_commands_for_scripts_speak_on_stderr(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for words in (
        ["evaluate.py", tmp_path],
        ["sample.py", tmp_path],
        ["make_reference.py", tmp_path, "--out", tmp_path / "x.npz"],
    ):
        call = [sys.executable, *map(str, words)]
        done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "loading ...\n")
