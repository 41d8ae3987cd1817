"""Figure 3 over guidance scales: from stored evaluations, and of a run that is sampled here."""

import math

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from analysis.probes import guidance
from analysis.probes.guidance import SCALES, GuidanceConfig
from analysis.read.runs import read
from dtr_lightning.errors import UserError
from dtr_lightning.experiment import fit
from dtr_lightning.rundir.run import Run, find_runs
from tests.analysis.synthetic_runs import make_run

pytestmark = pytest.mark.usefixtures("empty_pdfs")
ROUTERS = {"NoRouting": {}, "DTR": {"alpha": 4.0, "beta": 0.8}}


def finished(root):
    return read(find_runs([root]), records=False).finished


def evaluated(path, router="DTR", scales=SCALES, offset=0.0, **config):
    """Makes a run with evaluations at these scales, its numbers by a formula."""
    run = make_run(path, router, ROUTERS[router], steps=300, **config)
    protocol = {"sampler": "DDIM", "sampler_steps": 25, "guidance": 1.5, "n": 1797}
    run.write_results(run.results | {"protocol": protocol})
    run.last.touch()
    for scale in scales:
        run.write_evaluation(f"at-{scale:g}", numbers(run, protocol | {"guidance": scale}, offset))
    return run


def numbers(run, protocol, offset=0.0):
    scale = protocol["guidance"]
    shares = {"accuracy": 0.8 + scale / 20, "precision": scale / 3, "recall": 0.9 - scale / 4}
    score = 5 + (scale - 1.5) ** 2 + offset
    results = {"score": score, "classifier_score": 9.0, "steps": run.results["steps"]}
    return results | shares | {"protocol": protocol}


@pytest.fixture
def no_sampling(monkeypatch):
    monkeypatch.setattr(guidance, "_evaluate", lambda *_: pytest.fail("sampled again"))


def test_csv_is_what_is_plotted_from_what_is_stored(tmp_path, no_sampling):
    for seed in (0, 1):
        for router in ROUTERS:
            evaluated(tmp_path / f"{router}{seed}", router, offset=seed, seed=seed)
    runs = finished(tmp_path)
    assert guidance.needs(runs) is None
    figure, table, note, _ = guidance.draw(runs)
    assert note == "" and len(table) == 8 and (table.seeds == 2).all() and (table.n == 1797).all()
    assert [ax.get_title().split()[0] for ax in figure.axes] == [
        *("fd_digits_v1", "accuracy", "precision", "recall")
    ]
    for ax, column in zip(figure.axes, ("score", "accuracy", "precision", "recall"), strict=True):
        for line in ax.get_lines():
            own = table[table.setting == line.get_label()]
            assert line.get_xdata().tolist() == list(SCALES) == own.guidance.tolist()
            assert line.get_ydata() == pytest.approx(own[column].to_numpy())
    assert table.score[table.guidance == 1.5].tolist() == pytest.approx([5.5, 5.5])


def test_loss_weights_have_a_colour_and_no_routing_is_dashed(tmp_path, no_sampling):
    for weight in ("Constant", "MinSNR"):
        for router in ROUTERS:
            evaluated(tmp_path / f"{router}{weight}", router, loss_weight={"class_path": weight})
    lines = guidance.draw(finished(tmp_path)).figure.axes[0].get_lines()
    looks = {line.get_label(): (to_hex(line.get_color()), line.get_linestyle()) for line in lines}
    assert len(set(looks.values())) == 4
    for label, (color, style) in looks.items():
        assert (style == "--") == label.startswith("no routing")
        assert (
            color
            == looks[label.replace("no routing", "DTR \N{GREEK SMALL LETTER ALPHA}=4 β=0.8")][0]
        )


def test_only_what_is_missing_is_measured_and_failures_are_told(tmp_path, monkeypatch):
    evaluated(tmp_path / "whole", "NoRouting")
    evaluated(tmp_path / "part", scales=SCALES[:3])
    evaluated(tmp_path / "bad", scales=[], seed=1)
    asked = []

    def evaluate(run, scale, protocol, report):
        asked.append((run.path.name, scale))
        report(1)
        if run.path.name == "bad":
            raise UserError("no network here")
        return numbers(run, run.results["protocol"] | {"guidance": scale})

    monkeypatch.setattr(guidance, "_evaluate", evaluate)
    _, table, note, _ = guidance.draw(finished(tmp_path))
    assert asked == [("part", 2.5), ("bad", 1.0)] or asked == [("bad", 1.0), ("part", 2.5)]
    assert note == "left out bad: no network here" and len(table) == 8


def test_what_another_step_or_number_of_samples_gave_does_not_count(tmp_path):
    run = evaluated(tmp_path / "r", scales=[2.0])
    (own,) = finished(tmp_path)
    assert guidance.stored(own, 2.0, GuidanceConfig()) and not guidance.stored(
        own, 1.0, GuidanceConfig()
    )
    assert not guidance.stored(own, 2.0, GuidanceConfig(n=64))
    run.write_results(run.results | {"steps": 301})
    assert not guidance.stored(finished(tmp_path)[0], 2.0, GuidanceConfig())
    with pytest.raises(UserError, match="at least 2; got 1"):
        GuidanceConfig(n=1)


def test_what_is_missing_is_told(tmp_path):
    run = evaluated(tmp_path / "r")
    assert guidance.needs(finished(tmp_path)) is None
    run.last.unlink()
    assert "checkpoint" in guidance.needs(finished(tmp_path))
    nulls = {"class_path": "DiT", "init_args": {"class_dropout_prob": 0.0}}
    evaluated(tmp_path / "plain", model=nulls)
    assert "label dropout" in guidance.needs(finished(tmp_path))


@pytest.mark.slow
def test_a_run_is_sampled_once_per_scale_and_interrupted_goes_on(tiny, tmp_path, monkeypatch):
    fit.run(tiny(router="DTR", trainer__max_steps=2, evaluation__every=0), tmp_path / "run")
    runs, whole = finished(tmp_path), guidance._evaluate

    def interrupted(run, scale, *others):
        if scale == 2.0:
            raise KeyboardInterrupt
        return whole(run, scale, *others)

    monkeypatch.setattr(guidance, "_evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        guidance.draw(runs, GuidanceConfig(n=8))
    first = {path: path.read_text() for path in Run(tmp_path / "run").evaluations.iterdir()}
    assert len(first) == 2
    monkeypatch.setattr(guidance, "_evaluate", whole)
    table = guidance.draw(runs, GuidanceConfig(n=8)).numbers
    assert len(list(Run(tmp_path / "run").evaluations.iterdir())) == len(SCALES)
    assert all(path.read_text() == text for path, text in first.items())
    assert table.guidance.tolist() == list(SCALES) and not table.precision.isna().any()
    monkeypatch.setattr(guidance, "_evaluate", lambda *_: pytest.fail("sampled again"))
    pd.testing.assert_frame_equal(guidance.draw(runs, GuidanceConfig(n=8)).numbers, table)


@pytest.mark.slow
def test_scores_of_an_older_version_are_measured_again(tiny, tmp_path):
    fit.run(tiny(router="DTR", trainer__max_steps=2, evaluation__every=0), tmp_path / "run")
    (run,) = finished(tmp_path)
    first = guidance._evaluate(run, 2.0, GuidanceConfig(n=8), lambda images: None)
    (file,) = run.evaluations.iterdir()
    run.write_evaluation(file.stem, {k: v for k, v in first.items() if k != "recall"})
    assert guidance.stored(run, 2.0, GuidanceConfig(n=8)) is None
    again = guidance._evaluate(run, 2.0, GuidanceConfig(n=8), lambda images: None)
    assert again["recall"] == first["recall"] and math.isclose(again["score"], first["score"])
