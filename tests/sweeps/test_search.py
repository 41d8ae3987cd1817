"""Laws of a search: budget, conditional options, seeds, starts, pruning, resumption."""

import json
import math

import numpy as np
import optuna
import pytest
import torch
import yaml
from optuna.trial import FixedTrial, TrialState

from dtr_lightning.errors import UserError
from dtr_lightning.routing import masks
from sweeps.engine import plan, recipe
from sweeps.engine.optimisers import make_sampler
from sweeps.engine.space import axes
from tests.conftest import ROOT, slow_except
from tests.sweeps import standin
from tests.sweeps.standin import counts, run, trials, write

SEARCH = """
config: base.yaml
kind: tpe
space:
  router: [NoRouting, DTR]
  router.alpha: {low: 0.5, high: 8.0, log: true}
start: [{router: DTR, router.alpha: 4}]
trials: 6
"""


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Sweeps without the imports of a real config and of the figures."""
    standin.install(monkeypatch)


def settings(out):
    """Returns the options of the trials that are points, in their order."""
    return [json.loads(t.user_attrs["params"]) for t in trials(out) if "point" in t.user_attrs]


@pytest.mark.parametrize("kind", slow_except(["tpe", "random"], "tpe"))
def test_a_search_tries_its_start_and_as_many_settings_as_asked(tmp_path, kind):
    path, out = write(tmp_path, SEARCH.replace("tpe", kind)), tmp_path / "out"
    outcome, text = run(path, out)
    assert len(outcome.results) == 6
    assert "[6/6]" in text
    found = settings(out)
    assert found[0] == {"router": "DTR", "router.alpha": 4.0, "seed": 0}
    assert all(("router.alpha" in s) == (s["router"] == "DTR") for s in found)
    assert len({json.dumps(s) for s in found}) == 6
    again, _ = run(path, out)
    assert again == outcome
    more, _ = run(path, out, trials=8)
    assert len(more.results) == 8
    assert set(counts(out).values()) == {(1, 1)}


@pytest.mark.slow
def test_a_search_goes_on_as_if_it_had_not_stopped(tmp_path):
    path = write(tmp_path, SEARCH + "sampler: {n_startup_trials: 3}")  # the rest TPE proposes
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(path, whole, trials=6, workers=1)
    for budget in (2, 4, 6):
        run(path, parts, trials=budget, workers=1)
    assert settings(whole) == settings(parts)


@pytest.mark.slow
def test_every_setting_is_trained_with_every_seed_and_seeds_can_be_added(tmp_path):
    path, out = write(tmp_path, SEARCH), tmp_path / "out"
    run(path, out, trials=3)
    outcome, _ = run(path, out, trials=3, seeds=2)
    assert len(outcome.results) == 6
    by_setting = {}
    for s in settings(out):
        by_setting.setdefault((s["router"], s.get("router.alpha")), []).append(s["seed"])
    assert [sorted(seeds) for seeds in by_setting.values()] == [[0, 1]] * 3
    assert set(counts(out).values()) == {(1, 1)}
    params = {json.dumps(t.params, sort_keys=True) for t in trials(out)}
    assert len(params) == 3  # Optuna sees the seeds of a setting as the same setting


@pytest.mark.slow
def test_hours_are_of_training(tmp_path):
    text = SEARCH.replace("trials: 6", "hours: 0.0001").replace("NoRouting, DTR", "DTR")
    outcome, _ = run(write(tmp_path, text), tmp_path / "out", workers=1)
    assert len(outcome.results) == 4  # 0.36 s, each takes 0.1 s


@pytest.mark.slow
def test_a_space_that_is_exhausted_ends_the_search(tmp_path):
    text = "config: b\nkind: random\nspace: {router: [NoRouting, DTR, RTR]}\ntrials: 10"
    path, out = write(tmp_path, text), tmp_path / "out"
    outcome, printed = run(path, out)
    assert len(outcome.results) == 3
    assert "the search ends" in printed
    again, _ = run(path, out)
    assert again == outcome


@pytest.mark.slow
@pytest.mark.parametrize("kind", slow_except(["nsga2", "random"], "nsga2"))
def test_several_objectives(tmp_path, kind):
    text = SEARCH.replace("tpe", kind) + "metric: {score: minimize, seconds: minimize}"
    outcome, _ = run(write(tmp_path, text), tmp_path / "out")
    assert len(outcome.results) == 6
    found = [t for t in trials(tmp_path / "out") if "point" in t.user_attrs]
    assert [len(t.values) for t in found] == [2] * 6


@pytest.mark.slow
def test_cmaes_finds_a_better_alpha_than_the_first(tmp_path):
    text = """
config: b
kind: cmaes
space:
  router: [DTR]
  router.alpha: {low: 0.5, high: 8.0}
  router.beta: {low: 0.1, high: 0.9}
start: [{router.alpha: 7, router.beta: 0.8}]
trials: 8
"""
    run(write(tmp_path, text), tmp_path / "out", workers=1)
    values = [t.value for t in trials(tmp_path / "out")]
    assert len(values) == 8
    assert min(values) < values[0]


def _generation(content, trials=40):
    """Returns the first proposals of many searches on a constant score, in [0, 1] per axis."""
    found = []
    for name in range(trials):
        asked = plan.Sweep(recipe.read(content | {"name": f"search {name}"}), {}, ())
        study = optuna.create_study()
        study.enqueue_trial(next(asked.starts(), {}))
        for number in (0, 1):
            study.sampler = make_sampler(asked.recipe, number)
            trial = study.ask()
            asked.ask(trial)
            study.tell(trial, 1.0)
        found.append(
            [
                (math.log(trial.params["router.alpha"]) - math.log(0.5)) / math.log(16),
                (trial.params["router.beta"] - 0.1) / 0.8,
                *(trial.params[f"router.knots[{i}]"] for i in (1, 2)),
            ]
        )
    return np.array(found)


@pytest.mark.parametrize(
    ("start", "centre"),
    [
        (
            {"router.alpha": 1, "router.beta": 0.66, "router.knots": [0, 0.7, 0.79, 1]},
            [0.25, 0.7, 0.7, 0.3],
        ),
        ({"router.alpha": 1}, [0.25, 0.5, 0.5, 0.5]),  # in the middle of what is not given
        (None, [0.5, 0.5, 0.5, 0.5]),
    ],
)
@pytest.mark.slow
def test_cmaes_proposes_around_its_first_start(start, centre):
    content = {
        "config": "b",
        "kind": "cmaes",
        "space": {
            "router": ["DTR"],
            "router.alpha": {"low": 0.5, "high": 8.0, "log": True},
            "router.beta": {"low": 0.1, "high": 0.9},
            "router.knots": {"rising": 2},
        },
        "trials": 2,
    }
    if start:
        content["start"] = [start, {"router.alpha": 8}]
    found = _generation(content)
    error = 1 / 6 / len(found) ** 0.5  # of a mean, Optuna's sigma0 being a sixth of an axis
    assert np.abs(found.mean(0) - centre).max() < 4 * error
    assert np.abs(found.std(0) - 1 / 6).max() < 4 * error


PRUNED = """
config: base.yaml
grid: [{router: DTR, router.alpha: [1, 2, 3, 40]}]
pruning: {kind: median, n_startup_trials: 1, n_warmup_steps: 2}
"""


@pytest.mark.slow
def test_pruned_trials_are_marked_and_finished_by_a_flag(tmp_path):
    text = PRUNED.replace("base.yaml", "base.yaml\nsmoke: {pace: 0.05}")
    path, out = write(tmp_path, text), tmp_path / "out"
    outcome, printed = run(path, out, smoke=True, workers=1)
    pruned = [t for t in trials(out) if t.state == TrialState.PRUNED]
    assert 1 <= len(pruned) <= 3
    assert len(outcome.results) + len(pruned) == 4
    assert "pruned at step" in printed
    meta = standin.Run(out / pruned[0].user_attrs["point"]).meta
    assert meta["status"] == "pruned"
    assert meta["pruned_at"] == pruned[0].user_attrs["pruned_at"] >= 2
    assert run(path, out, smoke=True)[0].results == outcome.results
    whole, _ = run(path, out, smoke=True, finish_pruned=True)
    assert len(whole.results) == 4
    assert {ends for _, ends in counts(out).values()} == {1}


def test_a_mapping_is_a_sweep_too(tmp_path):
    sweep = {"name": "mine", "config": "b.yaml", "grid": [{"router": ["NoRouting", "DTR"]}]}
    outcome, _ = run(sweep, tmp_path / "out")
    assert len(outcome.results) == 2


def test_rising_numbers_and_their_shares_are_each_others_inverse():
    axis = axes({"router.knots": {"rising": 3}}, "here")["router.knots"]
    for knots in (
        [0, 0.25, 0.5, 0.75, 1],
        [0, 0, 0, 0, 1],
        [0, 0.5, 1, 1, 1],
        [0, 0.1, 0.1, 0.9, 1],
    ):
        axis.check(knots, "k")
        params = axis.params("k", knots)
        assert all(0 <= value <= 1 for value in params.values())
        assert json.loads(axis.suggest(FixedTrial(params), "k")) == pytest.approx(knots, abs=5e-4)


@pytest.mark.parametrize("hours", [0, -1, 1e9, 1e300, math.inf, math.nan])
def test_hours_that_no_clock_has_are_one_line(tmp_path, hours):
    with pytest.raises(UserError, match=r"hours is .*; valid: a number above 0 and below 1e9"):
        recipe.read(write(tmp_path, SEARCH.replace("trials: 6", "")), hours=hours)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("trials: 0", "trials is 0; valid: a whole number from 1"),
        ("hours: 3", "either trials or hours"),
        ("grid: []", "unknown key .* 'grid'"),
        ("kind: tpo", "unknown kind .* 'tpo'; valid: grid, tpe"),
        ("kind: cmaes", "cmaes searches numbers"),
        ("kind: nsga2", "nsga2 takes several metrics"),
        ("metric: {score: minimize, loss: minimize}", "nsga2 takes several"),
        ("metric: {score: up}", "metric is .*; valid: .* minimize or maximize"),
        ("pruning: soon", "pruning is 'soon'; valid: median, halving"),
        ("space: {}", "space has no options"),
        ("pruning: {kind: soon}", "unknown kind of pruning 'soon'; valid: median, halving"),
        ("space: {router.alpha: {low: 8, high: 1}}", "router.alpha in space"),
        ("space: {router.alpha: {low: -1, high: 1, log: true}}", "router.alpha in space"),
        ("space: {router.knots: {rising: 0}}", "router.knots in space"),
        ("space: {router.knots: {rising: true}}", "router.knots in space"),
        ("space: {router.clusters: {low: 1, high: 4, step: 2}}", "a `step` that divides"),
        ("space: {router: [DTR, DTR]}", "router in space has a choice twice"),
        ("space: {seed: [1, 2]}", "other than seed"),
        ("start: [{router: RTR}]", "unknown .*router.* 'RTR'"),
        ("start: [{router.alpha: 9}]", "valid: 0.5 to 8.0"),
        ("start: [{router.beta: 0.8}]", "unknown key .*'router.beta'"),
        ("sampler: {speed: 3}", "unknown option of sampler 'speed'"),
        ("pruning: {kind: median, steps: 3}", "unknown option of pruning 'steps'"),
        ("steps_per_second: -1", "steps_per_second is -1; valid: a number above 0"),
    ],
)
def test_a_bad_search_is_one_line(tmp_path, change, says):
    content = yaml.safe_load(SEARCH) | yaml.safe_load(change)
    with pytest.raises(UserError, match=says) as caught:
        run(write(tmp_path, yaml.safe_dump(content)), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_shipped_searches_ask_for_valid_settings(monkeypatch):
    monkeypatch.undo()
    for name in ("search", "window", "pareto"):
        sweep = plan.resolve_all(recipe.read(name))
        for params in sweep.starts():
            full = {"router": "FreeWindow", "router.beta": 0.8, "router.clusters": 8} | params
            (point,) = sweep.points_of(sweep.ask(FixedTrial(full)))
            assert point.config["trainer"]["max_steps"] == 1000


def test_the_window_search_starts_from_dtr_at_every_width(monkeypatch):
    monkeypatch.undo()
    starts = recipe.read("window").assignments
    assert [start["router.alpha"] for start in starts] == [4, 1]  # DTR's best first
    for start in starts:
        for channels in (64, 768, 1152):
            rest = [start[f"router.{key}"] for key in ("knots", "alpha", "beta")]
            window = masks.free_window(1000, channels, *rest)
            assert torch.equal(window, masks.dtr(1000, channels, *rest[1:]))


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"modle.depth": [1, 2]}, "unknown option 'modle.depth'"),
        ({"router": ["DTR", "DRT"]}, "unknown router 'DRT'"),
        ({"router.alpa": {"low": 1.0, "high": 2.0}}, "no setting of the space has router.alpa"),
        (
            {"router": ["DTR"], "router.alpha": {"low": -5.0, "high": 2.0}},
            "alpha must be a positive",
        ),
    ],
)
def test_an_unknown_option_is_told_before_the_first_trial(monkeypatch, space, says):
    monkeypatch.undo()
    content = {"config": str(ROOT / "configs" / "digits.yaml"), "kind": "tpe", "trials": 3}
    with pytest.raises(UserError, match=says):
        plan.resolve_all(recipe.read(content | {"space": space}))
