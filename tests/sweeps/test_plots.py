"""Laws of Optuna's plots: drawn from sound trials alone, labelled, and nothing where nothing is."""

import matplotlib
import numpy as np
import optuna
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from sweeps.engine import plots
from tests.conftest import slow_except

pytestmark = pytest.mark.usefixtures("empty_pdfs")
ROUTER = CategoricalDistribution(["NoRouting", "DTR", "RTR"])
SPACE = {
    "router": ROUTER,
    "router.alpha": FloatDistribution(0.5, 8, log=True),
    "model.depth": FloatDistribution(1, 4),
    "seed": FloatDistribution(0, 1),
}
ONE, TWO = {"score": "minimize"}, {"score": "minimize", "parameters": "minimize"}


def trial(values, **params):
    """Returns a complete trial; `values` None: a pruned one."""
    params = {key.replace("__", "."): value for key, value in params.items()}
    state = TrialState.PRUNED if values is None else TrialState.COMPLETE
    space = {key: SPACE[key] for key in params}
    return create_trial(state=state, values=values, params=params, distributions=space)


def trials(objectives):
    """Returns trials whose scores come from the depth, parameters from the router."""
    found = [trial(None, router="DTR", router__alpha=2.0, model__depth=2, seed=0)]
    for i, depth in enumerate((1, 2, 3, 4, 1, 2, 3, 4)):
        router = ("NoRouting", "DTR")[i > 3]
        alpha = {} if router == "NoRouting" else {"router__alpha": 1.0 + 0.1 * i}
        values = [float(depth), 10.0 * (router == "DTR")][: len(objectives)]
        found.append(trial(values, router=router, model__depth=depth, seed=i % 2, **alpha))
    infinite = [float("inf")] * len(objectives)
    return [*found, trial(infinite, router="RTR", model__depth=2, seed=0)]


@pytest.fixture
def kept(monkeypatch):
    """The figures that were drawn, by their file's name."""
    figures, save = {}, plots.save

    def keep(drawing, directory, name):
        figures[name] = drawing.figure
        return save(drawing, directory, name)

    monkeypatch.setattr(plots, "save", keep)
    return figures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objectives", "names"),
    [
        (ONE, {"history", "slice", "importances"}),
        (TWO, {"pareto_front", "importances_score", "importances_parameters"}),
    ],
)
def test_every_plot_is_three_files_with_labelled_axes(objectives, names, kept, tmp_path):
    style = dict(matplotlib.rcParams)
    paths = plots.draw(trials(objectives), objectives, tmp_path / "figures")
    expected = {f"optuna_{name}.{kind}" for name in names for kind in ("pdf", "png", "csv")}
    assert {path.name for path in paths} == expected
    assert all(path.stat().st_size > 40 for path in paths if path.suffix != ".pdf")
    for figure in kept.values():
        assert all(ax.get_xlabel() or ax.get_ylabel() for ax in figure.axes)
        assert not any(ax.get_title() for ax in figure.axes)
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == style


def test_sound_trials_alone_and_their_varying_parameters_but_the_seed(kept, tmp_path):
    plots.draw(trials(ONE), ONE, tmp_path)
    history, slices = kept["optuna_history"].axes[0], kept["optuna_slice"].axes
    assert len(history.collections[0].get_offsets()) == 8
    assert {ax.get_xlabel() for ax in slices[:-1]} == {"router", "alpha", "depth"}
    (router,) = (ax for ax in slices if ax.get_xlabel() == "router")
    assert [text.get_text() for text in router.get_xticklabels()] == ["NoRouting", "DTR"]
    (alpha,) = (ax for ax in slices if ax.get_xlabel() == "alpha")
    assert len(alpha.collections[0].get_offsets()) == 4  # of the trials that have an alpha
    assert alpha.get_xscale() == "log"
    colours = {points.get_clim() for ax in slices[:-1] for points in ax.collections}
    assert colours == {(0, 7)}  # one scale, as there is one colour bar


def test_importances_belong_to_their_parameters_in_every_objective(kept, tmp_path):
    plots.draw(trials(TWO), TWO, tmp_path)
    most = {}
    for metric in TWO:
        ax = kept[f"optuna_importances_{metric}"].axes[0]
        widths = [bar.get_width() for bar in ax.patches]
        words = [text.get_text() for text in ax.get_yticklabels()]
        most[metric] = max(zip(widths, words, strict=True))[1]
    assert most["score"] == "depth"
    assert most["parameters"] in ("router", "alpha")  # only DTR has an alpha


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_complete_trials_are_no_plot(count, tmp_path):
    assert plots.draw([trial(None), *trials(ONE)[1 : 1 + count]], ONE, tmp_path / "no") == []
    assert not (tmp_path / "no").exists()


def numbers(directory, name):
    return pd.read_csv(directory / f"optuna_{name}.csv")


@pytest.mark.slow
def test_every_picture_has_the_csv_of_its_own_numbers(tmp_path):
    plots.draw(trials(ONE), ONE, tmp_path)
    history = numbers(tmp_path, "history")
    assert history.score.tolist() == [1, 2, 3, 4] * 2 and set(history.best_so_far) == {1}
    importances = numbers(tmp_path, "importances")
    assert set(importances.parameter) == {"router", "alpha", "depth"}
    assert importances.importance.sum() == pytest.approx(1)
    assert importances.importance.is_monotonic_decreasing and importances.parameter[0] == "depth"
    depth = numbers(tmp_path, "slice").query("parameter == 'model.depth'")
    assert depth.value.astype(float).tolist() == depth.score.tolist() == [1, 2, 3, 4] * 2
    plots.draw(trials({"score": "maximize"}), {"score": "maximize"}, tmp_path / "max")
    assert numbers(tmp_path / "max", "history").best_so_far.tolist() == [1, 2, 3] + [4] * 5


@pytest.mark.slow
@pytest.mark.parametrize("count", slow_except([2, 3], 3))
def test_the_front_is_what_no_trial_beats(count, kept, tmp_path):
    rng = np.random.default_rng(count)
    values = rng.integers(0, 5, (20, count)).astype(float)
    found = [trial([*row], router="DTR", model__depth=1 + i % 4) for i, row in enumerate(values)]
    names = ["score", "macs", "accuracy"][:count]
    directions = ["minimize", "minimize", "maximize"][:count]
    plots.draw(found, dict(zip(names, directions, strict=True)), tmp_path)
    lower = values * np.where(np.array(directions) == "maximize", -1, 1)
    beaten = [any((o <= own).all() and (o < own).any() for o in lower) for own in lower]
    table = numbers(tmp_path, "pareto_front")
    assert table.pareto_front.tolist() == [not lost for lost in beaten]
    assert table[names].to_numpy().tolist() == values.tolist()
    assert len(kept["optuna_pareto_front"].axes) == count * (count - 1) / 2


def test_a_picture_that_fails_ends_no_other(tmp_path, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no forest")

    monkeypatch.setattr(plots, "get_param_importances", broken)
    names = {path.stem for path in plots.draw(trials(ONE), ONE, tmp_path)}
    assert names == {"optuna_history", "optuna_slice"}
    assert "optuna_importances: failed: RuntimeError: no forest" in caplog.text
    assert "in broken" in (tmp_path / "optuna_importances.error.txt").read_text()


def test_words_are_shown_as_they_are(kept, tmp_path):
    words = CategoricalDistribution(["a$x^$b", "_b", "[[0, 1], [0, 0.2, 1]]"])
    found = [
        create_trial(values=[float(i)], params={"w": word}, distributions={"w": words})
        for i, word in enumerate(words.choices)
    ]
    assert len(plots.draw(found, ONE, tmp_path)) == 9
    labels = [text.get_text() for text in kept["optuna_slice"].axes[0].get_xticklabels()]
    assert labels[:2] == ["a$x^$b", "_b"] and labels[2].startswith("[[0, 1], [0, 0")


def test_seeds_of_one_setting_have_a_history_alone(tmp_path):
    found = [trial([float(seed)], router="DTR", seed=seed) for seed in (0, 1)]
    names = {path.stem for path in plots.draw(found, ONE, tmp_path)}
    assert names == {"optuna_history"}


def test_equal_scores_and_names_that_are_alike_are_drawn(kept, tmp_path):
    space = FloatDistribution(0, 1)
    found = [
        create_trial(
            values=[1.0],
            params={"router.weight": w, "module.weight": 1 - w},
            distributions={"router.weight": space, "module.weight": space},
        )
        for w in (0.2, 0.4)
    ]
    plots.draw(found, ONE, tmp_path)
    labels = {ax.get_xlabel() for ax in kept["optuna_slice"].axes}
    assert {"router.weight", "module.weight"} <= labels
    assert "optuna_importances" not in kept


def test_optuna_is_as_loud_as_before(tmp_path, recwarn, capsys):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plots.draw(trials(ONE), ONE, tmp_path)
    assert not recwarn.list
    assert capsys.readouterr() == ("", "")
