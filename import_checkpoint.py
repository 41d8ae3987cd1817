"""Make a run of a checkpoint: python import_checkpoint.py FILE --out RUN [options of a run]

Reads checkpoints of DiT, SiT, DTR, Switch-DiT, guided-diffusion, diffusers and export.py (of these
two the folder too). Sizes are read from the weights, the rest is the official code's; what the file
does not say is assumed and said, or asked for. Options are train.py's, such as --model.num_heads 4,
--diffusion.schedule cosine, --data ImageFolder --data.root DIR. Nothing in the file is executed.
"""

import difflib
import sys

from dtr_lightning.cli.commands import Options, command, loading
from dtr_lightning.errors import UserError


@command
def main() -> int:
    """Reads the options and the file, and writes the run directory."""
    parser = Options(__doc__)
    parser.add_argument(
        "file", metavar="FILE", help="checkpoint, or folder of diffusers or export.py"
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to make")
    parser.add_argument(
        "--kind",
        choices=["dit", "sit", "dtr", "switch-dit", "guided-diffusion", "diffusers"],
        help="where the names tell less: sit has those of dit (default: by names and options)",
    )
    parser.add_argument(
        "--weights", choices=["ema", "model"], help="of a training checkpoint (default: ema)"
    )
    given, options = parser.parse_known_args()
    if not given.out:
        raise UserError("--out is empty; give a directory")
    loading()

    from dtr_lightning.checkpoints.layouts import KINDS
    from dtr_lightning.config.parser import GROUPS
    from dtr_lightning.experiment.importing import import_checkpoint

    of_runs = ["--config", *(f"--{group}" for group in GROUPS)]
    for option in options:
        name = option.partition("=")[0]
        if option.startswith("--") and name.partition(".")[0] not in of_runs:
            near = difflib.get_close_matches(name, [*parser.names(), *of_runs], n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"unknown option {name}{hint}; valid: {', '.join(parser.names())}, and of train.py "
                f"{', '.join(of_runs)}"
            )
    made = import_checkpoint(given.file, given.out, options, given.kind, given.weights)
    checkpoint, config = made.checkpoint, made.experiment.config
    which = "" if checkpoint.which == "all" else f", {checkpoint.which} weights"
    print(
        f"read: {KINDS[checkpoint.kind]}{which}, {made.experiment.parameters():,} parameters, "
        f"{config['trainer']['max_steps']:,} steps"
    )
    print(f"model: {config['model']['class_path']}, router: {config['router']['class_path']}")
    if made.assumed:
        print(f"assumed, as the file does not say: {', '.join(made.assumed)}; options change it")
    print(f"run: {made.run.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
