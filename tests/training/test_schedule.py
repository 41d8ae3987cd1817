"""The learning rate: constant by default, else warm-up and half a cosine."""

import pytest

from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import read_checkpoint, run
from dtr_lightning.rundir.naming import identity
from dtr_lightning.rundir.run import Run
from tests.conftest import slow_except

SCHEDULE = {"module__lr_warmup": 2, "module__lr_decay": 4}


def test_warm_up_then_half_a_cosine(tiny):
    module = Experiment(tiny(**SCHEDULE)).module
    factors = [module.lr_factor(step) for step in range(8)]
    expected = [0.5, 1, 1, 0.8535534, 0.5, 0.1464466, 0, 0]
    assert factors == pytest.approx(expected, abs=1e-6)
    assert Experiment(tiny()).module.lr_factor(10**6) == 1


@pytest.mark.slow
@pytest.mark.parametrize("gradients", slow_except(["Joint", "PCGrad"], "Joint"))
def test_every_step_has_its_rate_and_a_resumed_run_goes_on(tiny, tmp_path, gradients):
    def config(steps):
        return tiny(gradients=gradients, trainer__max_steps=steps, evaluation__every=0, **SCHEDULE)

    run(config(5), tmp_path / "whole")
    run(config(3), tmp_path / "parts")
    run(config(5), tmp_path / "parts")
    a, b = (read_checkpoint(Run(tmp_path / name).last) for name in ("whole", "parts"))
    module = Experiment(config(5)).module
    for state in (a, b):
        (group, *_) = state["optimizer_states"][0]["param_groups"]
        assert group["lr"] == pytest.approx(module.lr * module.lr_factor(5))
    for name, value in a["state_dict"].items():
        assert value.equal(b["state_dict"][name]), name


def test_a_constant_rate_leaves_a_run_its_name(tiny):
    plain = tiny()
    older = tiny()
    for name in ("lr_warmup", "lr_decay"):
        del older["module"][name]
    assert identity(plain) == identity(older) != identity(tiny(module__lr_warmup=5))


def test_negative_steps(tiny):
    with pytest.raises(UserError, match=r"module\.lr_warmup must be 0 .* got -1"):
        Experiment(tiny(module__lr_warmup=-1))
