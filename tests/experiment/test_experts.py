"""Experts: each trained on its own range of the tasks, together one network and one run."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from threading import Event

import pytest
import torch
import yaml
from torch import nn

from analysis.read.runs import read
from dtr_lightning.config.parser import expert_configs, resolve
from dtr_lightning.diffusion import Diffusion, FlowMatching
from dtr_lightning.diffusion.clusters import ranges
from dtr_lightning.errors import UserError
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import Stopped, read_checkpoint, run
from dtr_lightning.experiment.load import TrainedRun, other_protocol
from dtr_lightning.experiment.progress import Reporter
from dtr_lightning.models import Denoiser, DiT, RangeExperts
from dtr_lightning.routing import DTR
from dtr_lightning.rundir.run import Run, find_runs
from tests.conftest import ROOT, TINY, slow_except

QUARTERS = [(0, 250), (250, 500), (500, 750), (750, 1000)]
OPTIONS = TINY | {"experts": 2, "router": "DTR", "checkpoint.milestones": 3}
PARTS = ["0-500", "500-1000"]


def networks(n):
    found = []
    for seed in range(n):
        torch.manual_seed(seed)
        sizes = {"input_size": 4, "in_channels": 1, "hidden_size": 16, "depth": 2, "num_heads": 2}
        network = DiT(**sizes, num_classes=10, router=DTR()).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
        found.append(network)
    return found


@pytest.fixture(scope="module")
def experts():
    return RangeExperts(networks(4), QUARTERS)


def batch(n):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 4, 4, generator=generator), torch.arange(n) % 11


class TestNetwork:
    @pytest.mark.parametrize("kind", [torch.int64, torch.float32])
    @torch.no_grad()
    def test_alone_every_expert_answers_for_its_range(self, experts, kind):
        x, y = batch(3)
        for i, (low, high) in enumerate(QUARTERS):
            for t in (low, (low + high) // 2, high - 1):
                t = torch.full((3,), t).to(kind)
                assert torch.equal(experts(x, t, y), experts.networks[i](x, t, y))
                assert torch.equal(experts.embed(t), experts.networks[i].embed(t))

    @torch.no_grad()
    def test_a_mixed_batch_is_its_samples_one_by_one(self, experts):
        x, y = batch(7)
        t = torch.tensor([750, 249, 999, 250, 0, 249, 500])
        which = [3, 0, 3, 1, 0, 0, 2]
        for i, output, vector in zip(range(7), experts(x, t, y), experts.embed(t), strict=True):
            own, one = experts.networks[which[i]], slice(i, i + 1)
            torch.testing.assert_close(output, own(x[one], t[one], y[one])[0])
            torch.testing.assert_close(vector, own.embed(t[one])[0])

    @torch.no_grad()
    def test_fractional_time(self, experts):
        x, y = batch(4)
        t = torch.tensor([249.99, 250.0, 499.5, 749.99])
        for i, network in enumerate((0, 1, 1, 2)):
            one = slice(i, i + 1)
            own = experts.networks[network](x[one], t[one], y[one])
            torch.testing.assert_close(experts(x, t, y)[one], own)

    def test_only_the_experts_that_are_asked_are_evaluated(self, experts):
        asked = []
        hooks = [
            network.register_forward_hook(lambda *_, i=i: asked.append(i))
            for i, network in enumerate(experts.networks)
        ]
        x, y = batch(4)
        experts(x, torch.full((4,), 600), y)
        experts(x, torch.tensor([10, 800, 10, 999]), y)
        for hook in hooks:
            hook.remove()
        assert asked == [2, 0, 3]

    def test_it_is_used_like_any_network(self, experts):
        assert isinstance(experts, Denoiser)
        assert (experts.num_classes, experts.has_null, experts.takes_text) == (10, True, False)
        assert experts.null(torch.tensor([3])).tolist() == [10]
        assert experts.router is experts.networks[0].router

    @torch.no_grad()
    def test_compiling_it_compiles_its_networks(self):
        pair = RangeExperts(networks(2), [(0, 500), (500, 1000)])
        pair.compile(backend="eager", fullgraph=True)
        assert all(network._compiled_call_impl for network in pair.networks)
        x, y = batch(4)
        pair(x, torch.tensor([1, 600, 2, 700]), y)


class TestRanges:
    def test_a_number_of_equal_ones(self):
        assert ranges(1000, 4) == QUARTERS
        assert ranges(10, 3) == [(0, 3), (3, 6), (6, 10)]

    def test_given_ones(self):
        assert ranges(1000, [[0, 100], [100, 1000]]) == [(0, 100), (100, 1000)]

    @pytest.mark.parametrize(
        ("experts", "message"),
        [
            (0, "experts must lie in 1..1000, the number of tasks; got 0"),
            (1001, "experts must lie in 1..1000"),
            ([[0, 500], [600, 1000]], r"gap at \[500, 600\]; valid: "),
            ([[100, 1000]], r"gap at \[0, 100\]"),
            ([[0, 500], [500, 900]], r"gap at \[900, 1000\]"),
            ([[500, 1000], [0, 500]], r"gap at \[0, 500\]; valid: \[low, high\] in order"),
            ([], r"gap at \[0, 1000\]"),
            ([[0, 500], [400, 1000]], r"overlap in \[400, 500\]"),
            ([[0, 500], [100, 200], [200, 1000]], r"overlap in \[100, 200\]"),
            ([[500, 0], [500, 1000]], r"\[500, 0\] is no range"),
            ([[0, 0], [0, 1000]], r"\[0, 0\] is no range"),
            ([[-1, 500], [500, 1000]], r"\[-1, 500\] is no range"),
            ([[0, 500], [500, 1001]], r"\[500, 1001\] is no range"),
        ],
    )
    def test_mistakes(self, tiny, experts, message):
        with pytest.raises(UserError, match=message) as error:
            tiny(experts=experts)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"experts": 2, "diffusion__tasks": [0, 10]}, "leave out diffusion.tasks"),
            ({"experts": 2, "evaluation__n": 0}, "evaluation.n must be at least 2"),
            ({"evaluation__n": 0}, "0 is for an expert"),
            ({"experts": "many"}, "bad value 'many' for experts"),
        ],
    )
    def test_options_that_exclude_each_other(self, tiny, options, message):
        with pytest.raises(UserError, match=message):
            tiny(**options)

    def test_an_expert_is_the_run_on_a_range(self, tiny):
        whole = tiny(experts=[[0, 100], [100, 1000]], seed=3)
        low, high = expert_configs(whole)
        assert low == tiny(seed=3, diffusion__tasks=[0, 100], evaluation__n=0)
        assert high == tiny(seed=3, diffusion__tasks=[100, 1000], evaluation__n=0)
        assert expert_configs(tiny()) == expert_configs(tiny(experts=[[0, 1000]])) == []

    @pytest.mark.parametrize("process", [Diffusion, FlowMatching])
    def test_draws_stay_in_the_range(self, process):
        for low, high in QUARTERS:
            part = process(tasks=(low, high))
            drawn = part.timesteps(4000, torch.device("cpu"))
            assert low <= drawn.min() < low + 5
            assert high - 5 <= drawn.max() < high
            spread = part.timesteps_at(torch.linspace(0, 0.9999, 1000))
            assert low <= spread.min() <= spread.max() < high


def train(config, path, stop_at=None):
    """Runs to the end, or asks to stop once a step of the whole run is reached."""
    stop, told, tell = Event(), [], Reporter.tell

    def report(progress):
        told.append(progress)
        if stop_at is not None and progress.step >= stop_at:
            stop.set()

    def at_once(self, **changes):
        self.due = 0.0
        tell(self, **changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "tell", at_once)
        return run(config, path, report, stop), told


def computed(path):
    """Returns what a run has computed, without its times."""
    stored = {
        key: value
        for part in PARTS
        for key, value in {
            f"{part} weights": read_checkpoint(path / "experts" / part / "ckpt" / "last.ckpt"),
            f"{part} record": Run(path / "experts" / part).metrics_file.read_text(),
            f"{part} results": Run(path / "experts" / part).results,
        }.items()
    }
    stored |= {"record": Run(path).metrics_file.read_text(), "results": Run(path).results}
    for key, value in stored.items():
        if key.endswith("weights"):
            kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
            stored[key] = {name: value[name] for name in kept}
        elif key.endswith("results"):
            timed = ("seconds", "steps_per_second")
            stored[key] = {k: v for k, v in value.items() if k not in timed}
    return stored


def assert_same(a, b, where=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished tiny run of two experts: its config, directory, results and progress."""
    config = resolve(ROOT / "configs" / "digits.yaml", OPTIONS)
    path = tmp_path_factory.mktemp("whole") / "run"
    return config, path, *train(config, path)


class TestRun:
    def test_results_are_of_all_experts(self, whole):
        config, path, results, _ = whole
        assert (results["score_name"], results["n"]) == ("fd_digits_v1", 20)
        assert (results["steps"], results["steps_per_expert"]) == (12, 6)
        alone = Run(path / "experts" / PARTS[0]).results
        assert results["parameters"] == 2 * alone["parameters"]
        assert results["protocol"] == Experiment(config | {"experts": 1}).describe()
        assert results["seconds"] > sum(Run(path / "experts" / p).results["seconds"] for p in PARTS)
        assert Run(path).meta["status"] == "done"

    def test_an_expert_is_a_run_without_a_score(self, whole):
        config, path, _, _ = whole
        for part, expert, tasks in zip(
            PARTS, expert_configs(config), ([0, 500], [500, 1000]), strict=True
        ):
            own = Run(path / "experts" / part)
            assert own.config == expert
            assert (own.results["tasks"], own.results["steps"]) == (tasks, 6)
            assert not {"score", "n", "protocol"} & own.results.keys()
            assert [r["step"] for r in own.metrics()] == [3, 4, 6, 6]
            low, high = tasks
            for record in own.metrics():
                for key in record:
                    if "_tasks/t" in key:
                        first, last = key.rsplit("t", 1)[1].split("-")
                        assert low <= int(first) <= int(last) < high
            assert not list(own.samples.iterdir())
            assert own.meta["status"] == "done"

    def test_loss_is_of_every_task_by_its_expert(self, whole):
        _, path, results, _ = whole
        (record,) = Run(path).metrics()
        assert (record["step"], record["val/loss"]) == (12, results["loss"])
        assert len([key for key in record if key.startswith("val_tasks/")]) == 8

    def test_progress_covers_all_of_it(self, whole):
        told = whole[3]
        assert len({p.total for p in told}) == 1
        assert all(a.done <= b.done for a, b in pairwise(told))
        assert (told[-1].done, told[-1].step) == (told[-1].total, 12)
        assert told[-1].total == 2 * 3 * 8 * 6 + 20 * 3 * 2

    def test_experts_start_from_the_weights_of_one_network(self, whole):
        joint = Experiment(whole[0]).module.model
        one = Experiment(whole[0] | {"experts": 1}).module.model.state_dict()
        for network in joint.networks:
            assert_same(dict(network.state_dict()), dict(one))

    def test_it_is_one_run(self, whole):
        path = whole[1]
        assert [r.path for r in find_runs([path.parent])] == [path.resolve()]
        assert [r.path.name for r in find_runs([path / "experts"])] == PARTS
        reading = read(find_runs([path.parent]))
        assert (len(reading.finished), reading.skipped) == (1, [])

    def test_done_is_done(self, whole):
        config, path, results, _ = whole
        before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
        assert run(config, path) == json.loads(json.dumps(results))
        assert before == {f: f.stat().st_mtime_ns for f in path.rglob("*") if f.is_file()}

    @pytest.mark.parametrize("step", slow_except([2, 6, 8, 12], 8))
    @pytest.mark.slow
    def test_stopped_and_resumed_equals_uninterrupted(self, whole, tmp_path, step):
        config, path, _, _ = whole
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", stop_at=step)
        own = Run(tmp_path / "run")
        assert own.meta["status"] == "stopped"
        assert (own.expert((0, 500)).results is not None) == (step >= 6)
        train(config, own.path)
        assert own.meta["status"] == "done"
        assert_same(computed(own.path), computed(path))

    @pytest.mark.slow
    def test_killed_in_the_second_expert_and_resumed(self, whole, tmp_path):
        config, path, _, _ = whole
        (tmp_path / "config.json").write_text(json.dumps(config))
        script = (
            "import json, sys, time; from dtr_lightning.experiment.fit import run\n"
            "def report(p): print(p.step, flush=True); time.sleep(0.2)\n"
            "run(json.load(open(sys.argv[1])), sys.argv[2], report)"
        )
        command = [sys.executable, "-c", script, tmp_path / "config.json", tmp_path / "run"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True
        ) as child:
            for line in child.stdout:
                if int(line) >= 9:  # past the second one's first checkpoint
                    break
            child.send_signal(signal.SIGKILL)
        first, second = (Run(tmp_path / "run" / "experts" / part) for part in PARTS)
        assert second.results is None
        finished = first.last.stat().st_mtime_ns
        train(config, tmp_path / "run")
        assert first.last.stat().st_mtime_ns == finished
        assert_same(computed(tmp_path / "run"), computed(path))

    def test_directory_in_use(self, whole, tmp_path):
        with Run(tmp_path / "run" / "experts" / PARTS[0]).lock():
            (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(whole[0]))
            with pytest.raises(UserError, match="in use by another"):
                run(whole[0], tmp_path / "run")


class TestTrained:
    def test_evaluated_again_it_has_its_score(self, whole):
        _, path, results, _ = whole
        run = Run(path)
        config = other_protocol(run, ["--evaluation.batch_size", "7"])
        again = TrainedRun(run, config).evaluate()
        assert again["score"] == pytest.approx(results["score"], rel=1e-3)
        assert (again["steps"], again["steps_per_expert"]) == (12, 6)

    def test_a_milestone_is_that_of_every_expert(self, whole):
        _, path, _, _ = whole
        trained = TrainedRun(Run(path), Run(path).config, "step=3")
        assert (trained.step, trained.name[:7]) == (3, "step=3-")
        for part, network in zip(PARTS, trained.module.model.networks, strict=True):
            content = read_checkpoint(path / "experts" / part / "ckpt" / "step=3.ckpt")
            for name, weight in network.state_dict().items():
                assert torch.equal(weight, content["state_dict"][f"model.{name}"])
        with pytest.raises(UserError, match="valid: last, step=3"):
            TrainedRun(Run(path), Run(path).config, "step=4")

    def test_an_expert_alone_draws_nothing(self, whole):
        expert = Run(whole[1] / "experts" / PARTS[0])
        with pytest.raises(UserError, match=r"an expert for \[0, 500\)"):
            TrainedRun(expert, expert.config)

    @pytest.mark.slow
    def test_unfinished_experts(self, whole, tmp_path):
        with pytest.raises(Stopped):
            train(whole[0], tmp_path / "run", stop_at=2)
        own = Run(tmp_path / "run")
        with pytest.raises(UserError, match=r"500-1000 has no checkpoint yet"):
            TrainedRun(own, own.config)
        with pytest.raises(Stopped):
            train(whole[0], tmp_path / "run", stop_at=10)
        with pytest.raises(UserError, match=r"at different steps: 6, 4; .* have \(step=3\)"):
            TrainedRun(own, own.config)
