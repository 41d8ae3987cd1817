"""Evaluate a run: python evaluate.py RUN [--evaluation.guidance 1.5] [--sampler.steps 50]

Any option of --sampler, --features and --evaluation may differ from the training's config. Numbers
that are stored already are printed, not computed again; under another protocol, or before the run
is done, they go to RUN/artifacts/evaluations. JSON goes to stdout, the main numbers to stderr.

Several of these commands on one run share the work, as do the processes of torchrun or srun:
samples lie in files until they are scored. Stopped or killed, the same command goes on.

ADM's protocol (FID, sFID, inception score, precision, recall; needs torch-fidelity), of a run or of
an .npz of samples: python evaluate.py RUN --protocol adm --reference ref.npz
                    python evaluate.py --samples samples.npz --protocol adm --reference ref.npz
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from dtr_lightning.cli.commands import Options, check_file, command, loading, stop_on_signals
from dtr_lightning.errors import Diverged, Stopped, UserError, refuse_diverged
from dtr_lightning.rundir.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from dtr_lightning.experiment.blocks import Blocks
    from dtr_lightning.experiment.evaluation import Report
    from dtr_lightning.metrics.adm_protocol import Activations
    from dtr_lightning.metrics.inception import InceptionFeatures
    from dtr_lightning.metrics.npz import Archive
    from dtr_lightning.training.launch import Place

ADM_ONLY = ("reference", "samples", "save_samples", "weights")


@command
def main() -> int:
    """Reads the options, evaluates and prints the results; exit code 1 if there is no score."""
    given, options = read_options()
    stop = stop_on_signals()
    loading(sys.stderr)

    from dtr_lightning.training.launch import forget_launcher, place

    here = place()
    forget_launcher()  # processes exchange nothing but files
    if given.protocol == "adm":
        results = of_file(given, stop) if given.samples else of_run(given, options, here, stop)
    else:
        results = as_configured(given, options, here, stop)
    if here.rank or results is None:
        return 0  # the first process prints

    from dtr_lightning.cli.summary import summary
    from dtr_lightning.experiment.notes import print_notes
    from dtr_lightning.rundir.run import finite, to_json

    results = finite(results)
    print(to_json(results), flush=True)
    print("\n".join(summary({**results, "notes": ()})), file=sys.stderr)
    print_notes(results)
    if diverged := Diverged.of(results):
        raise diverged
    return 0


def read_options() -> tuple[argparse.Namespace, list[str]]:
    """Returns what was given, and further options for the config."""
    parser = Options(__doc__)
    if not any(word.split("=")[0] == "--samples" for word in sys.argv[1:]):
        parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--checkpoint", default="last", help="last, or step=N of a milestone")
    parser.add_argument("--protocol", choices=["adm"], help="instead of the run's own")
    parser.add_argument("--reference", metavar="NPZ", help="ADM's, or of make_reference.py")
    parser.add_argument("--samples", metavar="NPZ", help="in place of RUN: arr_0 uint8 NHWC")
    parser.add_argument("--save-samples", metavar="NPZ", help="also write the run's samples, RGB")
    parser.add_argument("--keep-samples", action="store_true", help="keep the files of samples")
    parser.add_argument("--weights", metavar="PTH", help="local copy of Inception's weights")
    parser.set_defaults(own=parser.names())
    given, options = parser.parse_known_args()
    if given.protocol is None:
        for name in ADM_ONLY:
            if getattr(given, name):
                raise UserError(f"--{name.replace('_', '-')} belongs to --protocol adm; add that")
    elif not given.reference:
        raise UserError("--protocol adm needs --reference, an .npz of ADM or of make_reference.py")
    of_a_run = given.save_samples or given.keep_samples or given.checkpoint != "last"
    if given.samples and (options or of_a_run):
        surplus = options[0] if options else "--save-samples, --keep-samples or --checkpoint"
        valid = "--samples, --protocol, --reference, --weights"
        raise UserError(f"{surplus} is no option with --samples, or needs a run; valid: {valid}")
    if given.save_samples:
        check_file("--save-samples", given.save_samples, ".npz")
    if not given.samples:
        Run.existing(given.run)
    return given, options


def check_writable(run: Run) -> None:
    """Raises UserError for a run that results cannot be kept in."""
    if not os.access(run.path, os.W_OK):
        raise UserError(f"{run.path} cannot be written: results are kept there")


def as_configured(
    given: argparse.Namespace, options: Sequence[str], here: "Place", stop: Event
) -> dict[str, Any] | None:
    """Returns the results of a run under its own protocol, changed by the options.

    None in the processes of a launcher but the first, and likewise below.
    """
    from dtr_lightning.config.parser import contents_of
    from dtr_lightning.experiment.load import TrainedRun, other_protocol

    run = Run.existing(given.run)
    config = other_protocol(run, options, given.own)
    if given.checkpoint == "last":
        refuse_diverged(run.path, run.results)
        measuring = {key: value for key, value in config.items() if key != "data"}
        if (results := run.finished(config, contents_of(measuring))) is not None:
            return results
    trained = TrainedRun(run, config, given.checkpoint, here)
    data = trained.experiment.data
    if not here.rank:
        data.announce()
    if (stored := run.evaluation(trained.name)) is not None:
        return stored
    check_writable(run)
    data.split("train")  # to compare with: a mistake is told before sampling
    with trained.samples(tell=tell, keep=given.keep_samples) as blocks:
        if not draw(blocks, stop):
            return None
        with bar("score", blocks.n, stop) as count:
            return trained.score(blocks, count)


def draw(blocks: "Blocks", stop: Event) -> bool:
    """Draws samples; returns whether this process is to score them."""
    hidden = blocks.place.rank > 0
    with bar("sample", blocks.experiment.sampling_work(), stop, hidden) as count:
        return blocks.draw(count) and not hidden


def tell(line: str) -> None:
    """Prints a line for a person."""
    print(line, file=sys.stderr, flush=True)


def of_file(given: argparse.Namespace, stop: Event) -> dict[str, Any]:
    """Returns the ADM scores of the samples in a file."""
    import torch

    from dtr_lightning.metrics.adm_protocol import BATCH, SAMPLES, Activations, check_size
    from dtr_lightning.metrics.npz import Archive

    samples, reference, network = Archive(given.samples), *adm_parts(given)
    if not samples.n:
        raise UserError(f"{given.samples} has statistics but no images arr_0 to evaluate")
    check_size(samples.shape, reference)
    activations = Activations(network, "cuda" if torch.cuda.is_available() else "cpu", SAMPLES)
    with bar("samples", samples.n, stop) as count:
        activations.extend(samples.batches(BATCH), count)
    return adm_results(activations, reference, {"samples": Path(given.samples).name}, stop)


def of_run(
    given: argparse.Namespace, options: Sequence[str], here: "Place", stop: Event
) -> dict[str, Any] | None:
    """Returns the ADM scores of a run's samples, and stores them with the run."""
    from dtr_lightning.experiment.load import TrainedRun, other_protocol
    from dtr_lightning.metrics.adm_protocol import SAMPLES, Activations, check_size

    run = Run.existing(given.run)
    if given.checkpoint == "last":
        refuse_diverged(run.path, run.results)
    reference, network = adm_parts(given)
    trained = TrainedRun(run, other_protocol(run, options, given.own), given.checkpoint, here)
    experiment = trained.experiment
    data, n = experiment.data, experiment.protocol.n
    if not here.rank:
        data.announce()
    check_size(data.image_shape, reference)
    weights = network.which_weights.split()[-1]
    name = f"adm-{trained.name}-{reference.digest}-{weights}"
    if not given.save_samples and (stored := run.evaluation(name)) is not None:
        return stored
    if n < 2:
        raise UserError(f"ADM's protocol needs at least 2 samples; give --evaluation.n, not {n}")
    check_writable(run)
    device = trained.device if trained.device.type != "mps" else "cpu"  # MPS has no float64
    with trained.samples(tell=tell, keep=given.keep_samples, finite=True) as blocks:
        if not draw(blocks, stop):
            return None

        def scores() -> dict[str, Any]:
            activations = Activations(network, device, SAMPLES)
            with bar("score", n, stop) as count:
                read(blocks, activations, given.save_samples, count)
            return adm_results(activations, reference, trained.sampling(), stop)

        with bar("wait", 1, stop, hidden=True) as waiting:
            return trained.scored(name, blocks, scores, waiting, anew=bool(given.save_samples))


def read(blocks: "Blocks", activations: "Activations", out: str | None, report: "Report") -> None:
    """Reads samples into activations and, where `out` is given, also writes them to that file."""
    from dtr_lightning.metrics.features import rgb
    from dtr_lightning.metrics.npz import write_archive

    def images() -> Iterator["Tensor"]:
        for batch, _, _ in blocks:
            activations.update(batch)
            report(len(batch))
            yield rgb(batch)

    if not out:
        for _ in images():
            pass
        return
    with write_archive(out) as archive:
        archive.images(images(), blocks.n)
        archive.arrays({"arr_1": blocks.labels})
    print(out, file=sys.stderr)


def adm_parts(given: argparse.Namespace) -> "tuple[Archive, InceptionFeatures]":
    """Returns the reference and Inception; mistakes in them are told before anything is drawn."""
    from dtr_lightning.metrics.inception import InceptionFeatures
    from dtr_lightning.metrics.npz import Archive

    reference = Archive(given.reference)
    reference.statistics()
    return reference, InceptionFeatures(given.weights)


def adm_results(
    activations: "Activations", reference: "Archive", stated: dict[str, Any], stop: Event
) -> dict[str, Any]:
    """Returns the scores with the protocol that they are stored with."""
    from dtr_lightning.metrics.adm_protocol import protocol, scores

    total = min(reference.n, 10_000) if reference.statistics_keys else reference.n
    with bar("reference", total or 1, stop) as count:
        numbers = scores(activations, reference, count)
    if not reference.statistics_keys:
        numbers["reference_n"] = reference.n
    return {**numbers, "protocol": {**protocol(activations.network, reference), **stated}}


@contextmanager
def bar(
    text: str, total: int, stop: Event, hidden: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yields what counts work on a progress bar; it raises Stopped when asked to stop."""
    from dtr_lightning.cli.progress_bar import Bar

    done = 0
    with Bar(text) as shown:

        def count(work: int) -> None:
            nonlocal done
            done += work
            if not hidden:
                shown(done, total, text)
            if stop.is_set():
                raise Stopped

        yield count


if __name__ == "__main__":
    sys.exit(main())
