"""When the numbers of a run are unreliable, and why: judged by what results.json stores.

Whoever prints a number prints these notes with it; this is the only place that makes them.
"""

__all__ = ["MEANINGLESS", "notes_of", "print_notes"]

import sys
from collections.abc import Mapping
from typing import Any

FEW = 100  # held-out images; copies are told by the nearest 1 % of them
COPIES = 0.05  # share of samples that copy training images
INITIAL = 0.1  # share of the initial weights in the average
IMBALANCE = 0.05  # share of the samples that balanced labels take from one class for another
FAR = 20  # times the floor
IN_FEATURES = "score, KID, precision and recall"  # what samples are measured by in features
# Scores under these conditions are no measure: none is the best, no difference is significant.
MEANINGLESS = {"smoke", "random", "chance", "far", "copies"}


def notes_of(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns {condition: sentence} for all that makes the numbers of results.json unreliable.

    What is absent or null, as in results of older versions, is not judged. Sentences name numbers
    of the protocol and the data alone, so that runs in one table share them.
    """
    facts = {**(results.get("protocol") or {}), **results}
    facts = {key: value for key, value in facts.items() if value is not None}
    return {**_of_the_run(facts), **_of_its_images(facts), **_of_its_score(facts)}


def print_notes(results: Mapping[str, Any]) -> None:
    """Prints the notes on results to stderr, a line each."""
    for sentence in notes_of(results).values():
        print(f"note: {sentence}", file=sys.stderr)


def _of_the_run(facts: Mapping[str, Any]) -> dict[str, str]:
    notes = {}
    if facts.get("smoke"):
        notes["smoke"] = "a smoke run tests the commands: its numbers mean nothing"
    if facts.get("extractor_random", "untrained" in facts.get("score_name", "")):
        notes["random"] = (
            f"the features' weights are random: {IN_FEATURES} test the commands and are no measure "
            "of quality"
        )
    if (share := facts.get("initial_share", 0.0)) > INITIAL:
        notes["initial"] = (
            f"{share:.0%} of the averaged weights, which draw the samples, are still the initial "
            "ones: give --module.ema_warmup true or a smaller --module.ema_decay"
        )
    return notes


def _of_its_images(facts: Mapping[str, Any]) -> dict[str, str]:
    notes = {}
    n, features = facts.get("n", 0), facts.get("num_features", 0)
    others = _others(facts)
    for key, count, images, what in (
        ("few_samples", n, "samples", "score far too large, compare it at equal n only"),
        ("few_references", facts.get("reference_n"), "reference images", "score far too large"),
        ("few_floor", facts.get("floor_n"), f"{others} images", "floor far too high"),
    ):
        if count and count <= features:
            notes[key] = (
                f"{count:,} {images} are fewer than the {features:,} features need "
                f"({features + 1:,}): their covariance is singular and the {what}"
            )
    if n and others == "held-out" and facts.get("floor_n", FEW) < FEW:
        loss = "the held-out loss, " if facts.get("held_out_n", 0) < FEW else ""
        notes["few_held_out"] = (
            f"{facts['floor_n']} held-out images tell little: {loss}the floor and the copies are "
            "measured on them"
        )
    among, reference_n = facts.get("copies_n", 0), facts.get("reference_n", 0)
    if n and 0 < among < reference_n:
        notes["few_thumbnails"] = (
            f"copies are looked for among {among:,} of the {reference_n:,} reference images: "
            "copies of others are not counted"
        )
    least, most = facts.get("class_images", (1, 1))
    proportional = facts.get("labels") == "proportional"
    if n and not proportional and facts.get("imbalance", 0.0) > IMBALANCE:
        notes["unbalanced"] = (
            f"the samples' labels are balanced, the training images are not ({least:,} to {most:,} "
            "a class): even perfect samples have a score above the floor and a KID above 0, unless "
            "--evaluation.labels is proportional"
        )
    if n and proportional and facts.get("imbalance", 0.0) > IMBALANCE:
        notes["rare"] = (
            f"the samples' labels are in the proportions of the classes ({least:,} to {most:,} "
            f"images a class): rare classes hardly move {IN_FEATURES}"
        )
    if n and n < (classes := facts.get("num_classes", 0)):
        notes["few_per_class"] = f"{n:,} samples are fewer than the {classes:,} classes"
    return notes


def _others(facts: Mapping[str, Any]) -> str:
    """Returns which images the floor is the score of: those that are not the reference."""
    return "training" if facts.get("reference_split") == "val" else "held-out"


def _of_its_score(facts: Mapping[str, Any]) -> dict[str, str]:
    notes = {}
    n, floor_n = facts.get("n", 0), facts.get("floor_n", 0)
    score, floor = facts.get("score"), facts.get("floor")
    if score is not None and floor is not None and score < floor:
        notes["below"] = f"the score is below its floor, that of {_others(facts)} images: " + (
            f"a floor of {floor_n:,} images is too high for {n:,} samples, as the distance falls "
            "with N, or the samples copy training images"
            if floor_n < n
            else "samples that copy training images have such scores"
        )
    if score is not None and floor and score >= FAR * floor:
        notes["far"] = f"the score is {FAR} times its floor or more: samples are far from the data"
    accuracy, chance = facts.get("accuracy"), facts.get("chance", 1.0)
    if n and accuracy is not None and chance < 1:
        # two standard deviations of the share of n samples that are right by chance
        if accuracy <= chance + 2 * (chance * (1 - chance) / n) ** 0.5:
            notes["chance"] = (
                f"the accuracy is at chance ({chance:.1%}): the samples do not show their classes"
            )
    if facts.get("copies", 0.0) > COPIES:
        notes["copies"] = (
            f"more than {COPIES:.0%} of the samples are near copies of training images, which "
            f"makes {IN_FEATURES} look better than they are"
        )
    return notes
