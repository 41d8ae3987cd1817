"""Laws of TensorBoard's HParams view, read as its server reads it: all runs in one experiment."""

from threading import Event
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from dtr_lightning.config.parser import resolve
from dtr_lightning.experiment.fit import Stopped, run
from dtr_lightning.routing.masks import dtr
from dtr_lightning.rundir.run import Run
from dtr_lightning.training.pictures import mask_picture
from tests.conftest import ROOT, TINY

FIRST = ["Results/accuracy", "Results/copies", "Results/loss", "Results/score"]
SUCCESS, UNKNOWN = api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN


def served(folder):
    """Returns the experiment and the sessions, by the first word of their run, that a page asks."""
    events = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(events, str(folder))
    served = RequestContext(), Context(SimpleNamespace(data_provider=provider)), ""
    experiment = get_experiment.Handler(*served, api_pb2.GetExperimentRequest()).run()
    request = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=[0, 1, 2, 3])
    groups = list_session_groups.Handler(*served, request).run().session_groups
    assert all(len(group.sessions) == 1 for group in groups)
    return experiment, {group.name.split("/")[0]: group for group in groups}


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    """A run without routing, one that was stopped and resumed, and one that never ended."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {
        "none": {"router": "NoRouting"},
        "dtr": {"router": "DTR", "router.alpha": 2, "seed": 1},
        "rtr": {"router": "RTR", "loss_weight": "MinSNR"},
    }
    results = {}
    for name, options in configs.items():
        stop, config = Event(), resolve(ROOT / "configs" / "digits.yaml", TINY | options)
        if name != "none":
            with pytest.raises(Stopped):
                run(config, folder / name, lambda _, stop=stop: stop.set(), stop)
        if name != "rtr":
            results[name] = run(config, folder / name)
    return *served(folder), results, folder


@pytest.mark.slow
def test_what_differs_comes_first_and_every_option_is_a_column(view):
    experiment, sessions, *_ = view
    differing = {info.name for info in experiment.hparam_infos if info.differs}
    assert differing == {"router", "seed", "loss_weight"}
    columns = {info.name for info in experiment.hparam_infos}
    for session in sessions.values():
        assert session.hparams.keys() <= columns
    assert [info.name.tag for info in experiment.metric_infos][:4] == FIRST


def test_every_run_is_a_session_with_its_own_options(view):
    _, sessions, *_ = view
    assert sessions.keys() == {"none", "dtr", "rtr"}
    assert sessions["dtr"].hparams["parameters"].number_value > 1000
    assert "router.alpha" not in sessions["none"].hparams
    assert sessions["dtr"].hparams["router.alpha"].number_value == 2
    assert sessions["dtr"].hparams["seed"].number_value == 1
    assert sessions["rtr"].hparams["loss_weight"].string_value == "MinSNR"
    assert not any("devices" in key for key in sessions["dtr"].hparams)  # a machine, no option


def test_results_are_its_metrics_and_only_a_finished_run_succeeded(view):
    _, sessions, results, _ = view
    for name, found in results.items():
        metrics = {metric.name.tag: metric.value for metric in sessions[name].metric_values}
        for tag in FIRST:
            assert metrics[tag] == pytest.approx(found[tag.removeprefix("Results/")], rel=1e-6)
    states = {name: session.sessions[0].status for name, session in sessions.items()}
    assert states == {"none": SUCCESS, "dtr": SUCCESS, "rtr": UNKNOWN}


def test_a_run_is_called_by_its_directory_and_its_constants_are_no_curves(view):
    *_, folder = view
    events = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    assert events.Runs().keys() == {"none", "dtr", "rtr"}
    for run_name in ("none", "dtr"):
        scalars = EventAccumulator(str(folder / run_name)).Reload().Tags()["scalars"]
        assert "eval/score" in scalars and "val/loss" in scalars
        assert not [tag for tag in scalars if tag.endswith(("/n", "/parameters"))]
        assert any("eval/n" in record for record in Run(folder / run_name).metrics())
    assert {p.name.split(".")[0] for p in (folder / "dtr").iterdir() if p.is_file()} == {
        *("", "config", "events", "meta", "metrics", "results"),
    }


def test_a_run_of_before_goes_on_in_its_tb(tmp_path):
    run = Run(tmp_path)
    assert run.tensorboard == tmp_path
    (tmp_path / "tb").mkdir()
    assert run.tensorboard == tmp_path / "tb"


def test_the_picture_of_masks_has_the_first_task_on_top_and_axes_beside_it():
    picture = mask_picture(dtr(1000, 64), "block 0").astype(int)
    yellow, purple = (
        (abs(picture - colour) < 4).all(-1) for colour in ((253, 231, 37), (68, 1, 84))
    )
    rows, columns = ((yellow | purple).any(axis) for axis in (1, 0))
    (top, bottom), (left, right) = (edge.nonzero()[0][[0, -1]] for edge in (rows, columns))
    assert min(top, left, len(rows) - bottom) > 10  # room for axes and their names
    inner = yellow[top : bottom + 1, left : right + 1]
    assert inner[9, 9] and not inner[9, -9] and inner[-9, -9] and not inner[-9, 9]
    assert (picture[bottom + 1 :] < 100).all(-1).any()  # written below: the channels
    assert (picture[:, :left] < 100).all(-1).any()
