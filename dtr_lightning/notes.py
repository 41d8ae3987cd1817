"""What a person must know before reading numbers, a line each."""

__all__ = ["of_distance", "of_labels", "of_run"]

from dtr_lightning.experiment import Experiment

FEW = 100  # held-out images; copies are told by the nearest 1 % of them
UNEVEN = 2  # times as many images in the largest class as in the smallest
INITIAL = 0.1  # share of the initial weights in the average


def of_run(experiment: Experiment) -> list[str]:
    """Returns the notes on a run's training and score; none if all is usual."""
    config, n = experiment.config, experiment.protocol.n
    module, steps = config["module"], config["trainer"]["max_steps"]
    left, found = module["ema_decay"] ** steps, []
    if left > INITIAL and not module["ema_warmup"]:
        found.append(
            f"after {steps} steps {left:.0%} of the average, which is sampled from, is still the "
            "initial weights; give --module.ema_warmup true, or a smaller ema_decay"
        )
    if n:
        found += of_distance(n, experiment.features.num_features)
        found += of_labels(experiment)
        if (held_out := len(experiment.data.split("held_out"))) < FEW:
            found.append(
                f"{held_out} held-out images tell little: the held-out loss, the floor and the "
                "copies are measured on them"
            )
    return found


def of_labels(experiment: Experiment) -> list[str]:
    """Returns the note on samples of classes that are not alike in number."""
    counts, labels = experiment.data.class_counts(), experiment.protocol.labels
    if max(counts) <= UNEVEN * min(counts):
        return []
    told = f"classes have {min(counts):,} to {max(counts):,} training images; "
    if labels == "balanced":
        return [f"{told}balanced samples differ from them, which the score counts as an error"]
    return [f"{told}samples are in the same proportions, so rare classes hardly move the score"]


def of_distance(n: int, features: int) -> list[str]:
    """Returns the notes on a Frechet distance of n images in so many features."""
    if n > features:
        return []
    return [
        f"{n} images are fewer than the {features} features need ({features + 1}): their "
        "covariance is singular and the distance far too large; compare it at equal n only"
    ]
