"""Laws of a sweep's plan and of its study: every point once, whatever plans and whatever dies."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from optuna.trial import TrialState

from dtr_lightning.errors import UserError
from sweeps.engine import plan, recipe
from sweeps.engine.database import Database
from sweeps.engine.folder import Folder
from sweeps.engine.grace import GRACE
from sweeps.engine.study import Study
from tests.sweeps import standin
from tests.sweeps.standin import counts, run, trials, write


@pytest.fixture
def light(monkeypatch):
    """Sweeps without the imports of a real config and of the figures."""
    standin.install(monkeypatch)


def test_a_grid_is_the_product_of_its_lists_for_every_seed(light, tmp_path):
    sweep = plan.resolve_all(recipe.read(write(tmp_path), seeds=2))
    assert len(sweep.points) == 2 * (1 + 2 * 2)
    assert sweep.points[0].params == {"router": "NoRouting", "seed": 0}
    assert sweep.points[4].params["router.beta"] == 0.8
    assert len({point.name for point in sweep.points}) == 10
    assert [point.params["seed"] for point in sweep.points] == [0] * 5 + [1] * 5


def test_points_that_mean_the_same_are_one(light, tmp_path):
    path = write(tmp_path, "config: b\ngrid: [{router: DTR}, {router: [DTR, RTR]}]")
    assert len(plan.resolve_all(recipe.read(path)).points) == 2


def test_every_shipped_sweep_resolves_and_smoke_is_shorter():
    for name in recipe.names():
        whole, smoke = (recipe.read(name, smoke=smoke) for smoke in (False, True))
        assert len(whole.assignments) == len(smoke.assignments)
        if whole.space:
            assert len(smoke.assignments) <= smoke.trials < whole.trials
            steps = [plan.resolve_all(r).config["trainer"]["max_steps"] for r in (smoke, whole)]
        else:
            points = plan.resolve_all(smoke).points
            # those that differ in steps alone are one
            assert 1 < len(points) <= len(smoke.assignments) * smoke.seeds
            both = points[0], plan.resolve_all(whole).points[0]
            steps = [point.config["trainer"]["max_steps"] for point in both]
        assert steps[0] < steps[1]


def test_options_of_the_command_are_those_of_every_point(light, tmp_path):
    path = write(tmp_path, "config: b\ngrid: [{router: DTR}, {router: RTR}]")
    sweep = plan.resolve_all(recipe.read(path, options=["pace=0.5"]))
    assert [point.config["pace"] for point in sweep.points] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("pace", "takes OPTION=VALUE"),
        ("seed=3", "use --seeds N"),
        ("router=DTR", "sets it already"),
    ],
)
def test_an_option_that_is_wrong_is_refused(tmp_path, option, says):
    path = write(tmp_path, "config: b\ngrid: [{router: DTR}]")
    with pytest.raises(UserError, match=says):
        recipe.read(path, options=[option])


def test_paper_trains_the_published_sizes():
    found = recipe.read("size", paper=True, options=["data.root=."])
    assert [point["model"] for point in found.assignments] == [
        "DiT_S",
        "DiT_S",
        "DiT_B",
        "DiT_B",
        "DiT_L",
        "DiT_L",
    ]
    names = {point.config["model"]["class_path"] for point in plan.resolve_all(found).points}
    assert names == {"DiT_S", "DiT_B", "DiT_L"}
    with pytest.raises(UserError, match="no key `paper`"):
        recipe.read("alpha_beta", paper=True)


@pytest.mark.parametrize("name", ["alpha_beta", "alpha_beta_mnist"])
def test_alpha_beta_is_figure_4(name):
    points = recipe.read(name).assignments
    routers = [point["router"] for point in points]
    assert [routers.count(name) for name in ("NoRouting", "RTR", "DTR")] == [1, 2, 12]
    assert {p["router.alpha"] for p in points if p["router"] == "DTR"} == {0.5, 1, 2, 4, 6, 8}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("config: b\n\tgrid: []", "not YAML"),
        ("- a", "valid keys"),
        ("config: b\ngird: []", "unknown key .*'gird'; valid: config, .*grid"),
        ("config: 3\ngrid: [{a: 1}]", "config is 3; valid: path of the base config"),
        ("config: b", "grid is missing; valid: a list of entries"),
        ("config: b\ngrid: {a: 1}", "grid is .*; valid: a list of entries"),
        ("config: b\ngrid: []", "grid has no entries"),
        ("config: b\ngrid: [3]", "entry 1 of grid"),
        ("config: b\ngrid: [{a: []}]", "a in entry 1"),
        ("config: b\ngrid: [{a: [{}]}]", "a in entry 1"),
        ("config: b\ngrid: [{seed: [1, 2]}]", "use seeds"),
        ("config: b\ngrid: [{a: 1}]\nseeds: two", "seeds is 'two'; valid: a whole number from 1"),
        ("config: b\ngrid: [{a: 1}]\nseeds: 0", "seeds is 0; valid: a whole number from 1"),
        (
            "config: b\ngrid: [{a: 1}]\ndirection: up",
            "direction is 'up'; valid: minimize or",
        ),
        (
            "config: b\ngrid: [{a: 1}]\nmetric: [a]",
            "metric is .*; valid: a number of results.json",
        ),
        ("config: b\ngrid: [{a: 1}]\nmetric: foo", "unknown metric .*'foo'; valid: score, kid"),
        ("config: b\ngrid: [{a: 1}]\nsmoke: 3", "smoke is 3; valid: options of --smoke"),
        ("config: b\ngrid: [{a: 1}]\ngrid: [{a: 2}]", "the key 'grid' is there twice"),
        ("config: b\ngrid: [{a: &a [*a]}]", "its lists are nested too deeply"),
    ],
)
def test_a_bad_yaml_is_one_line(tmp_path, text, says):
    with pytest.raises(UserError, match=says) as caught:
        recipe.read(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_planned_twice_at_once_is_planned_once(light, tmp_path):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")

    folder.prepare(sweep)
    started = Barrier(4, timeout=60)  # a thread that fails ends the others

    def work(_):
        with folder.owner() as owner:
            started.wait()
            study = Study(sweep, folder, owner, Database(folder))
            study.plan()
            claims = []
            while claim := study.claim({claim.trial_id for claim in claims}):
                claims.append(claim)
            started.wait()
        return [claim.point.name for claim in claims]

    with ThreadPoolExecutor(4) as pool:
        claimed = [name for names in pool.map(work, range(4)) for name in names]
    assert sorted(claimed) == sorted(point.name for point in sweep.points)
    assert len(trials(folder.path)) == len(sweep.points)


def test_the_trial_of_a_dead_owner_waits_again_and_of_a_living_one_does_not(light, tmp_path):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    folder.prepare(sweep)
    with folder.owner() as owner:
        study = Study(sweep, folder, owner, Database(folder))
        study.plan()
        claim = study.claim(set())
        study.recover()
        assert study.open() == (4, 1)
    study.recover()
    assert study.open() == (5, 0)
    claim = study.claim(set())
    folder.run(claim.point).prepare(claim.point.config)
    with folder.run(claim.point).lock():
        study.recover()
        assert study.open() == (4, 1)
    folder.run(claim.point).write_results({"score": 3.0, "steps": standin.STEPS})
    study.recover()
    assert study.open() == (4, 0)
    assert [trial.value for trial in trials(folder.path) if trial.value] == [3.0]


def test_another_machines_trial_is_taken_over_only_without_heartbeat(light, tmp_path, monkeypatch):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    folder.prepare(sweep)
    study = Study(sweep, folder, "here", Database(folder))
    study.plan()
    claim = study.claim(set())
    study.storage.set_trial_user_attr(claim.trial_id, "host", "elsewhere")
    clock = 1e6
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    study.recover()
    for beat in range(3):  # a sign of life is a change, at whatever time that host has it
        assert study.beat(claim.trial_id, beat + 1)
        clock += 0.9 * GRACE
        study.recover()
        assert study.open() == (4, 1)
    clock += 0.9 * GRACE
    study.recover()
    assert study.open() == (4, 1)
    clock += 0.2 * GRACE
    study.recover()
    assert study.open() == (5, 0)
    assert not study.beat(claim.trial_id, 9)  # it is no longer that command's
    study.end(claim.trial_id, TrialState.FAIL, reason="late")
    assert study.open() == (5, 0)


def test_the_grace_period_is_the_one_that_the_owner_promised(light, tmp_path, monkeypatch):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    folder.prepare(sweep)
    owners = {
        grace: Study(sweep, folder, f"{grace}", Database(folder), grace) for grace in (30, 60)
    }
    observer = Study(sweep, folder, "here", Database(folder))
    observer.plan()
    for grace, owner in owners.items():
        owner.host = "elsewhere"
        owner.claim(set())
        assert owner.heartbeat == grace / 10
    clock = 1e6
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    for passed, running in ((0, 2), (29, 2), (31, 1), (59, 1), (61, 0)):
        clock = 1e6 + passed
        observer.recover()
        assert observer.open() == (5 - running, running), passed


def test_silence_while_the_database_is_away_is_no_sign_of_death(light, tmp_path, monkeypatch):
    sweep = plan.resolve_all(recipe.read(write(tmp_path)))
    folder = Folder(tmp_path / "out")
    folder.prepare(sweep)
    owner, observer = (Study(sweep, folder, name, Database(folder), 30) for name in ("a", "b"))
    owner.plan()
    owner.host = "elsewhere"
    owner.claim(set())
    clock = 1e6
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    observer.recover()
    clock += 40
    observer.database.outages += 1
    observer.recover()
    assert observer.open() == (4, 1)
    clock += 31
    observer.recover()
    assert observer.open() == (5, 0)


@pytest.mark.parametrize("grace", [19, 0, -1, float("nan"), float("inf"), 604801, 1e300])
def test_a_grace_period_that_heartbeats_are_too_slow_for_is_refused(light, tmp_path, grace):
    with pytest.raises(UserError, match=r"--grace .* is not valid: .* give 20 to 604,800"):
        run(write(tmp_path), tmp_path / "out", grace=grace)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_knows_the_parameters_and_takes_more_points(light, tmp_path):
    out = tmp_path / "out"
    run(write(tmp_path), out)
    found = trials(out)
    assert {trial.params["router"] for trial in found} == {"NoRouting", "DTR"}
    assert {trial.params.get("router.alpha") for trial in found} == {None, 1.0, 4.0}
    more = standin.GRID.replace("[1, 4.0]", "[1, 4.0, 8]") + "  - {router: RTR}\n"
    outcome, _ = run(write(tmp_path, more), out, seeds=2)
    assert len(outcome.results) == 16
    assert set(counts(out).values()) == {(1, 1)}
