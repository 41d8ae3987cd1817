"""The benchmarks run, compare what they say they compare, and tell mistakes in one line."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import interleaved, metrics, step
from benchmarks.interleaved import Row, compare
from benchmarks.peer import NEEDED, Peer
from benchmarks.settings import SETTINGS
from dtr_lightning.config.parser import resolve
from dtr_lightning.errors import UserError


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Returns a function that runs the command and returns its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks/step.py", *map(str, arguments)])
        code = step.main()
        return code, *capsys.readouterr()

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield run
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.mark.slow
def test_one_short_round_prints_and_stores_ratios(benchmark, tmp_path):
    file = tmp_path / "numbers.json"
    options = ("--config", "tiny", "--rounds", 1, "--steps", 2, "--json", file)
    code, printed, _ = benchmark(*options)
    assert code == 0 and "ours DTR" in printed and "Trainer" in printed
    assert f"torch {torch.__version__.partition('+')[0]}, lightning " in printed
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows[:2]] == ["ours none", "ours DTR"]
    assert rows[0]["ratio"]["median"] == 1 and rows[0]["steps_per_second"]["median"] > 0
    assert f"{rows[1]['ratio']['median']:.2f}" in printed
    assert rows[0]["parameters"] == rows[1]["parameters"] > 0
    assert rows[1]["memory"] > rows[0]["memory"] > 4 * rows[0]["parameters"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--config", "huge"], "dit_s4"),
        (["--rounds", "0"], "whole number from 1"),
        (["--round", "3"], "--rounds"),
        (["--peer", "/nowhere"], "no checkout"),
    ],
)
def test_a_mistake_is_one_line(benchmark, options, told):
    code, printed, errors = benchmark(*options)
    assert code == 2 and not printed
    assert errors.count("\n") == 1 and told in errors


def test_ratios_are_of_the_same_round_so_a_slow_machine_cancels():
    load = iter(np.repeat([1.0, 1.0, 5.0, 2.0], 2))  # warm-up, then three rounds, of two rows

    def row(name, cost):
        return Row(name, "", lambda steps: steps * cost * next(load))

    first, second = compare([row("a", 2.0), row("b", 0.5)], rounds=3, steps=10)
    assert first.ratio == (1, 1, 1)
    assert second.ratio == pytest.approx((4, 4, 4))
    assert first.speed.median == pytest.approx(1 / 2 / 2)


def test_the_digits_are_measured_on_their_own_network():
    setting, config = SETTINGS["digits"], resolve("configs/digits.yaml")
    options = config["model"]["init_args"]
    assert {key: options[key] for key in setting.network} == setting.network
    assert setting.batch_size == config["data"]["init_args"]["batch_size"]


def test_quartiles():
    assert interleaved.Spread.of(np.array([5.0, 1.0, 3.0, 2.0, 4.0])) == (2, 3, 4)


FAKE = {
    "models/__init__.py": "",
    "models/DiT/__init__.py": "",
    "models/DiT/models.py": (
        "import torch\n"
        "class DiT(torch.nn.Linear):\n"
        "    made = []\n"
        "    def __init__(self, router, **options):\n"
        "        super().__init__(1, 1)\n"
        "        self.made.append((router, options))\n"
    ),
    "models/taskrouting.py": "class TaskRouter: pass\n",
    "diffusion/__init__.py": (
        "class Diffusion:\n"
        "    num_timesteps = 10\n"
        "    def training_losses(self, model, x, t, uw, kwargs):\n"
        "        assert len(t) == len(x) and uw is None and 'y' in kwargs\n"
        "        return {'loss': model(x.flatten()[:, None])}\n"
        "def create_diffusion(timestep_respacing, noise_schedule):\n"
        "    return Diffusion()\n"
    ),
    "train.py": (
        "import hydra, torch, wandb\n"
        "from diffusers.models import AutoencoderKL\n"
        "calls = []\n"
        "@torch.compile()\n"
        "def update_ema(ema, model):\n"
        "    calls.append((ema, model))\n"
        "@hydra.main(config_path='config')\n"
        "def main(cfg): pass\n"
    ),
}


@pytest.fixture
def checkout(tmp_path):
    """Yields a directory of the peer's layout, and forgets its modules afterwards."""
    for name, text in FAKE.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("models", "diffusion", "train"):
            del sys.modules[name]


def test_the_peer_is_called_as_its_own_training_does(checkout, monkeypatch):
    monkeypatch.delitem(sys.modules, "train", raising=False)  # ours, if a test imported it
    path = list(sys.path)
    peer = Peer(checkout)
    assert sys.path == path
    setting = SETTINGS["tiny"]
    batch = setting.batch(torch.device("cpu"))
    run = peer.step(setting.model_options(), 0.8, batch, torch.enable_grad)
    (router, options), train = peer.models.DiT.made[-1], sys.modules["train"]
    assert router is peer.router and options["init_method"] == "DTR"
    assert options["sharing_ratio"] == 0.8 and options["hidden_size"] == 96
    run()
    ((average, model),) = train.calls
    assert not average.weight.requires_grad and average.weight.item() != model.weight.item()


def test_a_directory_without_the_peer_names_what_is_missing(checkout):
    (checkout / NEEDED[0]).unlink()
    with pytest.raises(UserError, match=r"train\.py not found"):
        Peer(checkout)


def test_what_metrics_keep_of_many_references():
    rows = {row["what"]: row["rows_kept"] for row in metrics.take_references(10_300, 8)}
    assert rows == {
        "Frechet distance": 0,
        "KID": 10_000,
        "precision and recall": 10_000,
        "thumbnails": 10_300,
    }
