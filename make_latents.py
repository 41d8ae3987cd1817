"""Encode images once: python make_latents.py IMAGES --size 256 --vae DIR --out STORE

IMAGES is a folder of images, prepared as a training prepares them (ADM's centre crop); one of our
data sets by its name (Digits); one of torchvision's (CIFAR10, torchvision:MNIST), downloaded to
--root where it is not there; or one of the Hugging Face hub (hf:NAME). With --from it is a folder
of latents that another program has stored. Options of the images' class are given as in a training,
such as --data.class_folders false.

With --features NAME the store also keeps what a score with these features needs of its images, so
that they are decoded once for all runs: give --evaluation.reference as the trainings will.

With --captions FILE --clip DIR the store also holds every image's captions, as CLIP's tokens.

The store is trained from with --data Latents --data.root STORE, PixelStore for --codec pixels, or
CaptionedLatents for captions; the last line is a command that does it.
The same command goes on where it stopped, and several processes share the images out: torchrun,
srun, or one command each with --rank R --world N.
"""

import difflib
import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dtr_lightning.cli.commands import Options, command, loading, stop_on_signals
from dtr_lightning.errors import Stopped, UserError, choices

if TYPE_CHECKING:
    import argparse
    from threading import Event

    from dtr_lightning.config.evaluation import EvaluationConfig
    from dtr_lightning.data import VAE, Data
    from dtr_lightning.data.store import Manifest
    from dtr_lightning.data.store_writer import Report, Source
    from dtr_lightning.metrics import Features

# Shipped configs of ten classes of digits by their shape; of latents 4x32x32 by the classes.
OF_PIXELS = {(1, 8, 8): "configs/digits.yaml", (1, 32, 32): "configs/mnist.yaml"}
OF_LATENTS = {1: "configs/paper/ffhq256_b2.yaml", 1000: "configs/paper/imagenet256_l2.yaml"}
LEAST_SIDE = 4  # patches a side of what is small
SCORE = ("--features", "--evaluation.reference", "--evaluation.reference_split")  # of a training
# Data sets of ours with latents, captions or no images: none of them can be encoded.
NOT_ENCODED = ("CaptionedLatents", "DigitsCaptions", "Latents", "NoImages")
PROGRAMS = ("fast-dit", "edm2", "repa", "lightning-dit", "u-vit", "mar")


def options() -> "tuple[argparse.Namespace, list[str], list[str]]":
    """Returns the command's options, those of the images' class, and those of a score."""
    parser = Options(__doc__, more=(*SCORE, "--data.OPTION of the images' class"))
    add = parser.add_argument
    add("images", metavar="IMAGES", help="folder of images, or the name of a data set")
    add("--out", required=True, metavar="STORE", help="the directory to write")
    add("--size", type=int, help="pixels a side; of a data set with a size: its own")
    add("--vae", metavar="DIR", help="the autoencoder: a folder in diffusers' layout, or hub name")
    text = "captions of the images: COCO's captions_*.json, or {file name: [captions]}, also .jsonl"
    add("--captions", metavar="FILE", nargs="+", action="extend", help=text)
    add("--clip", metavar="DIR", help="their text encoder: a folder of transformers, or hub name")
    add("--codec", choices=("vae", "pixels"), default="vae", help="what is stored; default: vae")
    add("--from", dest="program", choices=PROGRAMS, help="whose latents IMAGES holds")
    add("--flips", choices=("yes", "no"), help="mirrored images too; default: as the data are")
    add("--channels", type=int, choices=(1, 3), help="default: the autoencoder's; 3 for pixels")
    add("--held_out", type=float, default=0.02, help="share where no split is; default: 0.02")
    add("--root", default="datasets", metavar="DIR", help="of torchvision's; default: datasets")
    add("--workers", type=int, default=2, help="processes that read images")
    add("--rank", type=int, help="number of this process; default: what started it knows")
    add("--world", type=int, help="how many processes there are")
    given, unknown = parser.parse_known_args()
    rest: list[str] = []
    of_score: list[str] = []
    words = rest
    for word in unknown:
        if word.startswith("--"):
            if not word.startswith(("--data.", *SCORE)):
                parser.error(f"unrecognized arguments: {word}")
            words = of_score if word.startswith(SCORE) else rest
        words.append(word)
    if (given.rank is None) != (given.world is None):
        raise UserError("give --rank and --world together")
    if given.world is not None and not 0 <= given.rank < given.world:
        raise UserError(f"--rank {given.rank} is not one of {given.world}; the first is 0")
    if given.size is not None and given.size < 1:
        raise UserError(f"--size {given.size} is not valid; give 1 or more pixels")
    if not 0 < given.held_out < 1:
        raise UserError(f"--held_out {given.held_out:g} is not valid; give one between 0 and 1")
    if given.codec == "pixels" and (given.vae or given.program):
        raise UserError("--codec pixels needs neither --vae nor --from")
    if given.codec == "vae" and not given.vae:
        raise UserError("give --vae DIR, an autoencoder; or --codec pixels to store pixels")
    if bool(given.captions) != bool(given.clip):
        raise UserError("give --captions FILE and --clip DIR, CLIP's text encoder, together")
    if given.captions and (given.codec == "pixels" or given.program):
        other = "--from" if given.program else "--codec pixels"
        raise UserError(f"{other} takes no --captions: they go with latents of images")
    if given.program and rest:
        raise UserError(f"--from takes no {rest[0]}: the images are encoded already")
    if of_score and not any(word.partition("=")[0] == "--features" for word in of_score):
        raise UserError(f"{of_score[0]} needs --features NAME, what a score compares images by")
    return given, rest, of_score


@command
def main() -> int:
    """Reads the options and writes the store, or this process's share of it."""
    given, rest, of_score = options()
    stop = stop_on_signals()
    loading()

    import torch

    from dtr_lightning.data import CaptionedLatents, Latents, PixelStore
    from dtr_lightning.data.store_writer import write_store
    from dtr_lightning.training.launch import place

    rank, world, local = place()
    if given.world is not None:
        rank, world, local = given.rank, given.world, given.rank
    device, threads = "cpu", torch.get_num_threads()
    torch.set_num_threads(1)  # each image by one thread, so that their number changes no bit
    if torch.cuda.is_available():
        device = f"cuda:{local % torch.cuda.device_count()}"
        torch.backends.cudnn.allow_tf32 = False  # an autoencoder encodes in float32
    source = make_source(given, rest, device, threads)
    scored = score_options(of_score, source) if of_score else None
    text = "pixels" if source.manifest.codec == "Pixels" else "latents"
    with bars(text, f" of process {rank} of {world}" if world > 1 else "") as report:
        written = write_store(Path(given.out), source, rank, world, report, stop)
    if not written.complete:
        print(f"{given.out}: this process's share is there; that of others is not yet")
        return 0
    if scored:
        torch.set_num_threads(threads)
        kind = PixelStore if written.codec == "Pixels" else Latents
        kind = CaptionedLatents if written.captions else kind
        keep_reference(kind(given.out), *scored, device, stop)
    size = sum(path.stat().st_size for path in Path(given.out).glob("*.npy"))
    images = f"{written.train:,} images and {written.val:,} held out"
    if written.captions:
        images += f", {written.captions:,} captions"
    print(f"{given.out}: {images}, {gb(size)}")
    words = [*shlex.split(fitting(written)), "--data.root", given.out]
    words += scoring(words[0], of_score) if of_score else []
    print(f"python train.py --config {shlex.join(words)}")
    return 0


def fitting(store: "Manifest") -> str:
    """Returns the shipped config that fits a store best, with the options that it needs for it."""
    if store.captions:
        return "configs/paper/coco256_b2.yaml"
    pixels, classes, side = store.codec == "Pixels", len(store.class_names), store.shape[-1]
    data = f"--data {'PixelStore' if pixels else 'Latents'}"
    if pixels and classes == 10 and store.shape in OF_PIXELS:
        return f"{OF_PIXELS[store.shape]} {data}"
    if not pixels and (classes, store.image_shape[0], *store.shape) == (10, 1, 4, 8, 8):
        return "configs/mnist_latents.yaml"
    if not pixels and store.shape == (4, 32, 32) and classes in OF_LATENTS:
        return OF_LATENTS[classes]
    config = "images_small" if side < (64 if pixels else 32) else "images"
    patch = next(p for p in (4, 2, 1) if (side % p == 0 and side // p >= LEAST_SIDE) or p == 1)
    schedule = " --diffusion.schedule linear" * (not pixels)  # cosine's end is too noisy for them
    return f"configs/{config}.yaml {data}{schedule}" + f" --model.patch_size {patch}" * (patch != 4)


@contextmanager
def bars(text: str, whose: str) -> "Iterator[Report]":
    """Yields what shows the work on images, and then that on captions, each with its own ETA."""
    from dtr_lightning.cli.progress_bar import Bar

    shown: dict[str, Bar] = {}
    with ExitStack() as stack:

        def report(what: str, done: int, total: int) -> None:
            title = (text if what == "images" else what) + whose
            if what not in shown:
                stack.close()  # one bar at a time
                shown[what] = stack.enter_context(Bar(title))
            shown[what](done, total, title)

        yield report


def gb(size: int) -> str:
    """Returns a size in bytes in words."""
    return f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB"


def score_options(words: Sequence[str], source: "Source") -> "tuple[Features, EvaluationConfig]":
    """Returns the features of a score, and how it is made; UserError where they do not fit."""
    import torch

    from dtr_lightning.config.evaluation import EvaluationConfig
    from dtr_lightning.config.parser import make_parser
    from dtr_lightning.config.registry import instantiate
    from dtr_lightning.expect import is_own
    from dtr_lightning.metrics import Features

    config = make_parser(groups=("features", "evaluation")).parse_args(words).as_dict()
    features: Features = instantiate(Features, config["features"])
    if is_own(features):
        raise UserError("features of your own keep no reference: leave --features out")
    features(torch.zeros(1, *source.manifest.image_shape, dtype=torch.uint8))
    return features, EvaluationConfig(**config["evaluation"])


def keep_reference(
    data: "Data", features: "Features", protocol: "EvaluationConfig", device: str, stop: "Event"
) -> None:
    """Leaves in a store what scores with these features need of its images, unless it is there."""
    from dtr_lightning.cli.progress_bar import Bar
    from dtr_lightning.metrics.scorer import Scorer

    limit = protocol.reference or None
    scorer = Scorer(features, data, device, limit, split=protocol.reference_split)
    sizes = [len(data.split(name)) for name in ("train", "val")]
    with Bar("reference") as bar:
        count = bar.count(sum(min(size, limit or size) for size in sizes), "reference")

        def report(images: int) -> None:
            count(images)
            if stop.is_set():
                raise Stopped

        scorer.prepare(report)


def scoring(config: str, words: Sequence[str]) -> list[str]:
    """Returns the options with which a training on a config scores by the reference kept.

    They are those given, and what the config else says otherwise.
    """
    from dtr_lightning.config.parser import make_parser, parse

    kept = make_parser(groups=("features", "evaluation")).parse_args([*words]).as_dict()
    base = ["--config", str(Path(__file__).parent / config)]
    scored = parse(make_parser(), [*base, *words]).config
    more = []
    for key, value in kept["features"].get("init_args", {}).items():
        if scored["features"]["init_args"][key] != value:
            more += [f"--features.{key}", value if isinstance(value, str) else json.dumps(value)]
    for key in ("reference", "reference_split"):
        if scored["evaluation"][key] != kept["evaluation"][key]:
            more += [f"--evaluation.{key}", str(kept["evaluation"][key])]
    return [*words, *more]


def make_source(
    given: "argparse.Namespace", rest: list[str], device: str, threads: int
) -> "Source":
    """Returns what the store is to be made of."""
    from dtr_lightning.data import VAE, Pixels
    from dtr_lightning.data.caption_files import captions_of
    from dtr_lightning.data.clip import CLIPText
    from dtr_lightning.data.encoding import EncodedCaptions, EncodedImages
    from dtr_lightning.data.importers import LAYOUTS, Imported

    vae = None if given.codec == "pixels" else VAE(absolute(given.vae))
    if given.program and vae:
        if not Path(given.images).exists():
            raise UserError(f"{given.images} does not exist")
        layout = LAYOUTS[given.program](Path(given.images).expanduser())
        if given.flips == "yes" and not layout.mirrored:
            raise UserError(f"--flips yes: {given.program} stores no mirrored images")
        source = Imported(layout, vae, given.held_out)
        if layout.note:
            print(f"note: {layout.note}", file=sys.stderr)
        return source
    data, preparation = find_images(given, rest, vae)
    data.announce()
    mirrored = data.flip if given.flips is None else given.flips == "yes"
    where = Path(given.images)
    where = str(where.resolve()) if where.is_dir() else given.images
    captions = None
    if given.captions:
        texts = captions_of(data, given.captions)
        captions = EncodedCaptions(texts, CLIPText(absolute(given.clip)))
    return EncodedImages(
        data,
        vae or Pixels(),
        mirrored,
        device,
        preparation,
        where,
        threads=threads,
        captions=captions,
    )


def absolute(network: str) -> str:
    """Returns the place of a network in any working directory; a hub's name as it is."""
    path = Path(network).expanduser()
    return str(path.resolve()) if path.is_dir() else network


def find_images(
    given: "argparse.Namespace", rest: Sequence[str], vae: "VAE | None"
) -> "tuple[Data, str]":
    """Returns the images, and in words how they become squares.

    UserError for a name that is neither a folder nor a data set.
    """
    from dtr_lightning.config.parser import make_parser, valid_choices
    from dtr_lightning.config.registry import instantiate
    from dtr_lightning.data import Data, ImageFolder
    from dtr_lightning.data.image_sources import hub_images, torchvision_images, torchvision_names

    channels = given.channels or (3 if vae is None else int(vae.network.config.in_channels))
    kind, _, name = given.images.rpartition(":")
    crop = "centre crop as ADM's"
    if Path(given.images).expanduser().is_dir():
        if given.size is None:
            raise UserError("a folder of images needs --size, the pixels a side")
        options = ["--data=ImageFolder", f"--data.root={given.images}", f"--data.size={given.size}"]
        options += [f"--data.channels={channels}", f"--data.held_out={given.held_out}"]
        options += [f"--data.workers={given.workers}"]
    elif given.images in (valid := valid_choices(Data)):
        options, crop = [f"--data={given.images}"], "as they are"
    else:
        if rest:
            raise UserError(f"{rest[0]}: {given.images} is no folder and none of our data sets")
        common = (given.size, channels, given.held_out, given.workers)
        if kind == "hf":
            return hub_images(name, *common), crop
        if kind == "torchvision" or name in torchvision_names():
            return torchvision_images(name, given.root, *common), crop
        near = difflib.get_close_matches(name, torchvision_names())
        own = [each for each in valid if each not in NOT_ENCODED]
        named = [*near, "a folder of images", *own, "torchvision:NAME", "hf:NAME"]
        raise choices("folder or data set", given.images, named)
    config = make_parser(groups=("data",)).parse_args([*options, *rest])
    data: Data = instantiate(Data, config.as_dict()["data"])
    if isinstance(data, ImageFolder):
        data.patience = math.inf  # a store needs them all
    if given.size not in (None, data.image_size):
        raise UserError(f"--size {given.size}: {given.images} has {data.image_size} pixels a side")
    return data, crop


if __name__ == "__main__":
    sys.exit(main())
