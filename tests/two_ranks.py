"""Trains three steps on two processes and prints whether they hold the same network and masks."""

import json
import sys

import torch
from lightning.pytorch.callbacks import LambdaCallback

from dtr_lightning.commands import quiet
from dtr_lightning.experiment import Experiment


def main() -> None:
    """Reads a config from the file that is named first."""
    quiet()
    torch.set_num_threads(1)
    with open(sys.argv[1]) as file:
        experiment = Experiment(json.load(file))
    gradients = []

    def look(trainer: object, module: torch.nn.Module, *_: object) -> None:
        gradients.append(
            torch.cat([p.grad.flatten() for p in module.model.parameters() if p.requires_grad])
        )

    trainer = experiment.trainer([], [LambdaCallback(on_train_batch_end=look)])
    trainer.fit(experiment.module, datamodule=experiment.data)
    state = [*experiment.module.parameters(), *experiment.module.model.router.buffers(), *gradients]
    mine = torch.stack([x.detach().double().sum() for x in state])
    both = trainer.strategy.all_gather(mine)
    if trainer.is_global_zero:
        print(
            json.dumps(
                {
                    "equal": bool((both[0] == both[1]).all()),
                    "ranks": len(both),
                    "steps": trainer.global_step,
                    "moved": bool(gradients[-1].any()),
                }
            )
        )


if __name__ == "__main__":
    main()
