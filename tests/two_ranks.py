"""Trains and measures on two processes, and prints what they agree on."""

import json
import sys
from pathlib import Path
from threading import Event

import torch
from lightning.pytorch.callbacks import LambdaCallback

from dtr_lightning.cli.commands import quiet
from dtr_lightning.config.parser import Config
from dtr_lightning.errors import Stopped
from dtr_lightning.experiment.experiment import Experiment
from dtr_lightning.experiment.fit import read_checkpoint, run
from dtr_lightning.rundir.run import Run
from tests.experiment.test_fit import STATE, assert_equal


class Later(Event):
    """Is set from the n-th time on that somebody asks."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.asked = n, 0

    def is_set(self) -> bool:
        self.asked += 1
        return self.asked >= self.n


def train_three_steps(config: Config) -> dict[str, object]:
    """Returns whether both processes hold the same network and masks, and how they waited."""
    config = config | {"trainer": config["trainer"] | {"max_steps": 3}}
    experiment = Experiment(config)
    gradients, broadcasts = [], []
    broadcast = torch.distributed.broadcast

    def note(*arguments: object, **options: object) -> object:
        broadcasts.append(trainer.global_step)
        return broadcast(*arguments, **options)

    def look(trainer: object, module: torch.nn.Module, *_: object) -> None:
        gradients.append(
            torch.cat([p.grad.flatten() for p in module.model.parameters() if p.requires_grad])
        )

    trainer = experiment.trainer([], [LambdaCallback(on_train_batch_end=look)])
    torch.distributed.broadcast = note
    trainer.fit(experiment.module, datamodule=experiment.data)
    torch.distributed.broadcast = broadcast
    state = [*experiment.module.parameters(), *experiment.module.model.router.buffers(), *gradients]
    mine = torch.stack([x.detach().double().sum() for x in state])
    both = trainer.strategy.all_gather(mine)
    return {
        "equal": bool((both[0] == both[1]).all()),
        "ranks": len(both),
        "steps": trainer.global_step,
        "moved": bool(gradients[-1].any()),
        "broadcasts in steps": sum(0 < step < 3 for step in broadcasts),
    }


def measure(config: Config) -> dict[str, object]:
    """Returns the held-out loss, score and first samples of a network that is not trained."""
    experiment = Experiment(config)
    trainer, module = experiment.trainer([], []), experiment.module
    losses = experiment.val_losses(trainer, module)
    scores, images, labels = experiment.evaluate(trainer, module, 15, 12)
    sums = images.flatten(1).sum(1).tolist()
    return {**losses, "score": scores["score"], "images": sums, "labels": labels.tolist()}


def stop_the_first_rank(config: Config, folder: Path) -> dict[str, object]:
    """Returns at which step both left when the first was to, and what became of the run."""
    first = torch.distributed.get_rank() == 0
    whole = run(config, folder / "whole")
    try:
        run(config, folder / "parts", stop=Later(2) if first else Event())
        left = False
    except Stopped:
        left = True
    everybody = [None, None]
    torch.distributed.all_gather_object(everybody, left)
    stopped = read_checkpoint(Run(folder / "parts").last)["global_step"]
    status = Run(folder / "parts").meta["status"]
    torch.distributed.barrier()
    parts = run(config, folder / "parts")
    records = [Run(folder / name).metrics() for name in ("whole", "parts")]
    if first:
        a, b = (read_checkpoint(Run(folder / name).last) for name in ("whole", "parts"))
        for key in STATE:
            assert_equal(a[key], b[key], key)
    return {
        "left": everybody,
        "stopped at": stopped,
        "status": status,
        "same": [parts[key] == whole[key] for key in ("score", "loss", "steps")],
        "same records": records[0] == records[1],
    }


def main() -> None:
    """Reads a config from the file that is named first; runs are kept beside it."""
    quiet()
    torch.set_num_threads(1)
    file = Path(sys.argv[1])
    config = json.loads(file.read_text())
    found = train_three_steps(config)
    stop, measured = stop_the_first_rank(config, file.parent), measure(config)
    if torch.distributed.get_rank() == 0:
        print(json.dumps({"networks": found, "stop": stop, "measured": measured}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
