"""Laws of the findings: what is archived is read back, and verdicts follow the registered rules."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from analysis.findings import measures
from analysis.findings.archive import Archive, pack
from analysis.findings.claims import CLAIMS, DIGITS, PIXELS, Claim, Comparison, Runs
from analysis.findings.found import Findings
from analysis.findings.judge import judge
from analysis.findings.orders import overlap_curve, paper_order
from analysis.findings.page import words_for, write_findings
from analysis.findings.texts import notes, said, summary, verdict_table
from analysis.read.runs import read
from dtr_lightning.errors import UserError
from dtr_lightning.rundir.atomic import write_text
from dtr_lightning.rundir.run import find_runs
from tests.analysis.synthetic_runs import make_run

PLAIN = {"gradients": {"class_path": "Joint", "init_args": {}}, "experts": 1}
PLAIN |= {"data": {"class_path": "Digits", "init_args": {"batch_size": 64}}}


def sweep(path, settings, scores):
    """Makes runs: scores {setting: [score of each seed]}; returns their directory."""
    for key, values in scores.items():
        router, args, config = settings[key]
        for seed, score in enumerate(values):
            run = make_run(path / f"{key}-{seed}", router, args, seed, score, **PLAIN | config)
            if not math.isfinite(score):
                run.write_results(run.results | {"score": None})
    return path


def archive_of(path, name, folder):
    """Archives the runs below a path and returns the file."""
    return pack(name, read(find_runs([path])).finished, folder, {})


BASIC = {
    "none": ("NoRouting", {}, {}),
    "rtr": ("RTR", {"beta": 0.8, "shared": False}, {}),
    "dtr": ("DTR", {"alpha": 4.0, "beta": 0.8}, {}),
    "dtr1": ("DTR", {"alpha": 1.0, "beta": 0.8}, {}),
}
NONE = [1.3 + 0.01 * i for i in range(10)]


@pytest.fixture
def archived(tmp_path):
    """Returns a function from {setting: scores} of the masks' sweep to its opened archive."""

    def make(scores, settings=BASIC, name="digits_masks"):
        archive_of(sweep(tmp_path / name, settings, scores), name, tmp_path / "archive")
        return Archive(tmp_path / "archive")

    return make


def compared(plus, minus, **more):
    options = {"none": "NoRouting", "rtr": "RTR", "dtr": "DTR"}
    sides = [Runs("digits_masks", {"router": options[side]}) for side in (plus, minus)]
    given = {"data": DIGITS, "label": "", "direction": -1} | more
    return Comparison(plus=(sides[0],), minus=(sides[1],), **given)


def test_an_archive_gives_back_what_was_read_of_the_runs(tmp_path):
    made = sweep(tmp_path / "runs", BASIC, {"none": NONE, "dtr": NONE})
    path = archive_of(made, "digits_masks", tmp_path / "archive")
    first = path.read_bytes()
    assert path.name == "digits_masks.tar.xz"
    archive_of(made, "digits_masks", tmp_path / "archive")
    assert path.read_bytes() == first
    with Archive(tmp_path / "archive") as archive:
        runs = archive.runs("digits_masks", {"router": "NoRouting"})
        assert {seed: run.score for seed, run in runs.items()} == dict(enumerate(NONE))
        original = make_run(tmp_path / "again", seed=3, score=NONE[3], **PLAIN)
        assert runs[3].records == original.metrics()
        assert runs[3].results == original.results
        assert not {"host", "pid", "command"} & runs[3].meta.keys()
        with pytest.raises(ValueError, match="several settings"):
            archive.runs("digits_masks", {})


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "flipped"])
def test_a_damaged_archive_is_one_line(tmp_path, damage):
    made = sweep(tmp_path / "runs", BASIC, {"none": NONE})
    file = archive_of(made, "digits_masks", tmp_path / "archive")
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "cut": whole[:middle],
            "empty": b"",
            "other": b"hello",
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        }[damage]
    )
    with pytest.raises(UserError, match=r"digits_masks.tar.xz is damaged"):
        Archive(tmp_path / "archive").__enter__()


def test_only_archives_of_registered_sweeps_are_read(tmp_path):
    made = sweep(tmp_path / "runs", BASIC, {"none": NONE})
    archive_of(made, "digits_masks_copy", tmp_path / "archive")
    with pytest.raises(UserError, match=r"unknown archive .*'digits_masks_copy'; valid: digits_l"):
        Archive(tmp_path / "archive")
    with Archive(tmp_path / "none") as none, pytest.raises(UserError, match="no archive"):
        write_findings(none, tmp_path / "page.md", tmp_path / "images")


@pytest.mark.parametrize(
    ("shift", "direction", "verdict"),
    [(-0.3, -1, "supported"), (0.3, -1, "refuted"), (0.3, +1, "supported"), (0.0, -1, "undecided")],
)
def test_a_verdict_is_the_sign_of_an_effect_beyond_chance(archived, shift, direction, verdict):
    noise = [0.01 * (-1) ** i for i in range(10)]
    dtr = [score + shift + each for score, each in zip(NONE, noise, strict=True)]
    with archived({"none": NONE, "dtr": dtr}) as archive:
        (one,) = judge([compared("dtr", "none", direction=direction)], archive)
    assert one.verdict == verdict
    assert one.effect == pytest.approx(shift)
    assert (one.n, one.ranked) == (10, False)
    quantiles = 2.2622 + 0.8834  # t_.975 and t_.8 of nine degrees of freedom
    assert one.detectable == pytest.approx(quantiles * np.std(noise, ddof=1) / 10**0.5, 1e-3)


def test_an_effect_that_holm_does_not_leave_is_undecided(archived):
    dtr = [score - 0.3 for score in NONE[:9]] + [NONE[9] + 0.05]
    with archived({"none": NONE, "dtr": dtr, "rtr": NONE}) as archive:
        alone = judge([compared("dtr", "none")], archive)[0]
        missing = Comparison(DIGITS, "", (Runs("other", {}),), (Runs("other", {}),), -1)
        among = judge([compared("dtr", "none"), *[missing] * 30], archive)
    assert alone.verdict == "supported"
    assert alone.p == among[0].p == alone.p_holm
    assert among[0].p_holm == pytest.approx(31 * alone.p)  # those not run yet count
    assert among[0].verdict == "undecided"
    assert among[1].verdict == "not run yet"


def test_fewer_seeds_than_registered_are_no_verdict(archived):
    dtr = [score - 0.3 - 0.001 * i for i, score in enumerate(NONE)]
    with archived({"none": NONE, "dtr": dtr[:9]}) as archive:
        (one,) = judge([compared("dtr", "none")], archive)
    assert (one.n, one.verdict) == (9, "not run yet")


def test_mnist_is_decided_by_the_interval_of_99_percent_alone(archived):
    dtr = [NONE[i] - 0.1 - 0.06 * i for i in range(5)]
    with archived({"none": NONE[:5], "dtr": dtr}) as archive:
        (one,) = judge([compared("dtr", "none", data=PIXELS)], archive)
        (flat,) = judge([compared("dtr", "none", data=PIXELS._replace(level=0.999))], archive)
    assert one.p == 2 / 2**5
    assert (one.verdict, flat.verdict) == ("supported", "undecided")


def test_a_run_that_diverged_counts_as_worse_than_all_others(archived):
    dtr = [score - 0.3 for score in NONE[:9]] + [math.nan]
    with archived({"none": NONE, "dtr": dtr}) as archive:
        (one,) = judge([compared("dtr", "none")], archive)
    assert one.ranked
    # 10 + 9 finite scores: none has the ranks 10 to 19, those of DTR 1 to 9, and 20 that diverged
    assert [*one.differences.values()] == [-9.0] * 9 + [1.0]


def test_equal_is_claimed_by_the_interval_and_refuted_by_a_difference(archived):
    near = [score + 0.02 * (-1) ** i for i, score in enumerate(NONE)]
    far = [score + 0.15 + 0.01 * i for i, score in enumerate(NONE)]
    with archived({"none": NONE, "dtr": near, "rtr": far}) as archive:
        one, other = judge(
            [compared(side, "none", direction=0, within=0.2) for side in ("dtr", "rtr")], archive
        )
    assert (one.verdict, other.verdict) == ("supported", "refuted")


def test_steps_are_those_of_the_first_evaluation_at_nones_last_score(archived):
    # synthetic: score + 400 exp(-step / 250) at 300, 600, 900, 1,200
    last = 400 * math.exp(-1200 / 250)
    earlier = 400 * math.exp(-900 / 250)
    dtr = [score + last - earlier - 1e-9 for score in NONE[:9]] + [NONE[9] + 1]
    with archived({"none": NONE, "dtr": dtr}) as archive:
        (one,) = judge([compared("dtr", "none", measure=measures.STEPS)], archive)
        never = archive.runs("digits_masks", {"router": "DTR"})[9]
        assert math.isnan(measures.STEPS.of(never, archive.sweeps["digits_masks"]))
        first = archive.runs("digits_masks", {"router": "DTR"})[0]
        assert measures.STEPS.of(first, archive.sweeps["digits_masks"]) == 900
    assert one.ranked
    assert [*one.differences.values()] == [5.0 - 14.5] * 9 + [20.0 - 14.5]


def test_cka_is_summed_up_as_registered():
    t = np.arange(50) * 20
    near = np.abs(t[:, None] - t) <= 125
    cka = np.stack([np.full((50, 50), 0.5), np.where(near, 0.9, 0.2)])
    pairs = np.triu_indices(50, 1)
    share = near[pairs].mean()
    assert measures.mean_cka(cka, t) == pytest.approx((0.5 + share * 0.9 + (1 - share) * 0.2) / 2)
    assert measures.diagonal_cka(cka, t) == pytest.approx(0.7)
    high = np.zeros((2, 50, 50))
    high[:, 26:, 26:] = 0.8  # t above 500
    assert measures.high_cka(high, t) == pytest.approx(0.8)


def core(value):
    return ("SharedCore", {"beta": 0.8, "core": value, "per_block": False}, {})


def test_the_order_of_overlap_is_taken_within_a_seed(tmp_path):
    cores = {f"core{value}": core(value) for value in (0.2, 0.4, 0.55, 0.65, 0.8)}
    first = {"rtr": BASIC["rtr"], "plain": core(0.72)}
    for name, settings in (("digits_overlap", cores), ("digits_masks", first)):
        scores = {key: [2.0] * 10 for key in settings}
        made = sweep(tmp_path / name, settings, scores)
        for run in made.glob("*-*"):
            results = json.loads((run / "results.json").read_text())
            shared = {"rtr": 0.1, "plain": 0.72}.get(run.name[:-2])
            shared = shared or float(run.name[4:-2])
            score = 1 + shared if run.name.endswith("1") else 3 - shared
            results |= {"overlap": shared, "score": score}
            write_text(run / "results.json", json.dumps(results))
        archive_of(made, name, tmp_path / "archive")
    with Archive(tmp_path / "archive") as archive:
        curve = overlap_curve(archive)
        assert curve.rho == {i: pytest.approx(1 if i == 1 else -1) for i in range(10)}
        assert curve.verdict == "undecided"
        assert len(curve.points) == 7
        assert paper_order(archive, DIGITS) is None


@pytest.mark.slow
def test_the_page_has_a_verdict_a_table_and_a_figure_of_every_claim_that_was_run(tmp_path):
    scores = {key: [x + 0.1 * i for x in NONE] for i, key in enumerate(("none", "dtr", "rtr"))}
    archive_of(sweep(tmp_path / "runs", BASIC, scores), "digits_masks", tmp_path / "archive")
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "findings.md"
    readme.write_text("before\n<!-- findings -->\nold\n<!-- /findings -->\nafter\n")
    page.parent.mkdir()
    with Archive(tmp_path / "archive") as archive:
        written = write_findings(archive, page, page.parent / "images", readme)
        assert {"claim_1.png", "claim_2.pdf", "claim_1.csv"} <= {path.name for path in written}
        table, lines = verdict_table(found := Findings.of(archive)), summary(found)
    start, end = "before\n<!-- findings -->", "<!-- /findings -->\nafter\n"
    assert readme.read_text() == f"{start}\n\n{lines}\n\n{end}"
    text = page.read_text()
    assert table in text
    assert all(f"## {claim.number}. {claim.sentence}" in text for claim in CLAIMS)
    assert "| R-TR - none | digits |" in text
    assert "(images/claim_2.png)" in text
    assert "(images/claim_5.png)" not in text


def test_a_figure_that_is_no_longer_drawn_is_deleted(tmp_path):
    archive_of(
        sweep(tmp_path / "runs", BASIC, {"none": NONE}), "digits_masks", tmp_path / "archive"
    )
    images = tmp_path / "images"
    images.mkdir()
    stale = [images / "claim_2.png", tmp_path / "archive" / "claim_2.csv"]
    for path in [*stale, images / "mine.png"]:
        path.touch()
    with Archive(tmp_path / "archive") as archive:
        write_findings(archive, tmp_path / "page.md", images)
    assert [path.name for path in images.iterdir()] == ["mine.png"]
    assert not stale[1].exists()


def test_words_are_printed_for_the_verdicts_that_they_were_written_for():
    words = {"verdicts": {"digits": "undecided"}, "text": "It is as it is."}
    assert words_for(words, {"digits": "undecided"}) == "It is as it is."
    assert words_for(words, {"digits": "supported"}) == words_for(None, {}) == ""


def test_on_mnist_the_verdict_says_that_the_interval_alone_decides():
    assert said("MNIST, pixels", "supported") == "supported by the interval alone"
    assert said("MNIST, pixels", "undecided") == "undecided"
    assert said("digits", "supported") == "supported"


def test_scores_that_say_little_are_told_with_the_effect(archived):
    with archived({"none": NONE, "dtr": [300.0] * 10}) as archive:
        told = [*notes(Claim("2", "", [compared("dtr", "none", label="DTR - none")]), archive)]
    (line,) = [each for each in told if "far from the data" in each]
    assert line.startswith("DTR - none, digits, 10 of 20 runs: ")


def test_ranks_are_decided_by_their_test_alone(archived):
    dtr = [score - 0.3 for score in NONE[:9]] + [math.nan]
    with archived({"none": NONE, "dtr": dtr}) as archive:
        (one,) = judge([compared("dtr", "none")], archive)
        (five,) = judge([compared("dtr", "none", data=DIGITS._replace(seeds=9))], archive)
        mnist = PIXELS._replace(seeds=10)
        (six,) = judge([compared("dtr", "none", data=mnist)], archive)
    assert (one.ranked, one.verdict) == (True, "supported")
    assert (five.ranked, five.n) == (False, 9)  # the seed that diverged is none of the registered
    assert six.verdict == "supported"


@pytest.mark.slow
def test_the_page_and_the_readme_are_those_of_the_archives(tmp_path):
    shutil.copytree("results/findings", tmp_path / "archives")
    shutil.copy("README.md", tmp_path)
    page = tmp_path / "docs" / "findings.md"
    page.parent.mkdir()
    with Archive(tmp_path / "archives") as archive:
        archive.check()
        write_findings(archive, page, page.parent / "images" / "findings", tmp_path / "README.md")
    for path in ("docs/findings.md", "README.md"):
        assert (tmp_path / path).read_text() == Path(path).read_text(), path
    for path in Path("docs/images/findings").glob("*.png"):
        assert (page.parent / "images" / "findings" / path.name).is_file(), path
