"""Write a run's network for other code: python export.py RUN --to safetensors [--out DIR]

safetensors: our names and the options of the run; diffusers: a folder of DiTTransformer2DModel;
official: a state_dict as DiT, SiT, DTR, Switch-DiT or guided-diffusion have it. Each with a model
card, README.md. Weights are the average, which draws the samples.
"""

import sys

from dtr_lightning.cli.commands import Options, command, loading
from dtr_lightning.rundir.run import Run


@command
def main() -> int:
    """Reads the options, loads the run and writes the files."""
    parser = Options(__doc__)
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument(
        "--to", required=True, choices=["safetensors", "diffusers", "official"], help="the layout"
    )
    parser.add_argument("--out", metavar="DIR", help="new directory (default: RUN/artifacts/TO)")
    parser.add_argument("--checkpoint", default="last", help="last, or step=N of a milestone")
    given = parser.parse_args()
    run = Run.existing(given.run)
    loading(sys.stderr)

    from dtr_lightning.checkpoints.writing import Exported, export
    from dtr_lightning.experiment.load import TrainedRun, other_protocol

    trained = TrainedRun(run, other_protocol(run, []), given.checkpoint)
    module, config = trained.module, trained.experiment.config
    exported = Exported(module.model, module.diffusion, run, config, trained.step)
    out = given.out or run.path / "artifacts" / given.to
    for file in export(exported, given.to, out):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
