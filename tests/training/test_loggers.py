"""Loggers beside TensorBoard: they see a run once, and change nothing of what it is."""

import csv

import pytest

from dtr_lightning.errors import UserError
from dtr_lightning.experiment.fit import run
from dtr_lightning.rundir.naming import identity
from dtr_lightning.rundir.run import Run
from dtr_lightning.training import loggers


def test_a_logger_is_no_part_of_what_a_run_is(tiny):
    plain = tiny()
    assert "logger" not in plain
    assert tiny(logger="csv")["logger"] == ["csv"]
    assert tiny(logger=["wandb", "csv"])["logger"] == ["wandb", "csv"]
    assert identity(tiny(logger="csv")) == identity(plain)
    with pytest.raises(UserError, match="unknown logger 'x'; valid: wandb, csv, mlflow"):
        tiny(logger=["csv", "x"])
    with pytest.raises(UserError, match="logger csv is given twice"):
        tiny(logger=["csv", "wandb", "csv"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_one_line_before_anything_is_written(
    tiny, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"--logger {name} needs .*: pip install {name}"):
        run(tiny(logger=name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def rows(path):
    """Returns the rows of the CSVs of a run, one list for each start."""
    files = sorted((path / "loggers" / "csv").glob("*/metrics.csv"))
    return [list(csv.DictReader(file.open())) for file in files]


@pytest.mark.slow
def test_csv_has_what_tensorboard_has_and_a_file_for_each_start(tiny, tmp_path):
    results = run(tiny(logger="csv"), tmp_path)
    (first,) = rows(tmp_path)
    logged = {row["step"]: float(row["train/loss"]) for row in first if row.get("train/loss")}
    record = {str(r["step"]): r["train/loss"] for r in Run(tmp_path).metrics() if "train/loss" in r}
    assert logged == pytest.approx(record)
    (score,) = [row["Results/score"] for row in first if row.get("Results/score")]
    assert float(score) == pytest.approx(results["score"])
    text = (tmp_path / "loggers" / "csv" / "version_0" / "hparams.yaml").read_text()
    assert "router: NoRouting" in text and "logger" not in text
    run(tiny(logger="csv", trainer__max_steps=8), tmp_path)
    assert len(rows(tmp_path)) == 2 and rows(tmp_path)[0] == first


def test_wandb_goes_on_with_its_run_and_gets_the_options_once(tiny, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    begun = []
    monkeypatch.setattr(
        loggers.WandbLogger, "log_hyperparams", lambda self, options: begun.append(options)
    )
    for steps in (6, 8):
        run(tiny(logger="wandb", trainer__max_steps=steps), tmp_path)
        assert wandb.run is None  # it was finished
    (options,) = begun
    assert options["router"] == "NoRouting" and options["parameters"] > 0
    known = Run(tmp_path).meta["loggers"]["wandb"]
    folders = [*(tmp_path / "loggers" / "wandb").glob("offline-run-*")]
    assert len(folders) == 2 and all(folder.name.endswith(known) for folder in folders)


def test_mlflow_goes_on_with_its_run(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for steps in (6, 8):
        results = run(tiny(logger="mlflow", trainer__max_steps=steps), tmp_path)
    place = f"sqlite:///{tmp_path}/loggers/mlflow/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=place)
    seen = client.get_run(Run(tmp_path).meta["loggers"]["mlflow"])
    assert seen.info.status == "FINISHED"
    assert seen.data.params["trainer.max_steps"] == "6"  # once, as the run began
    assert seen.data.metrics["Results/score"] == pytest.approx(results["score"])


def test_one_that_cannot_begin_is_one_line(tiny, tmp_path, monkeypatch):
    class Broken(loggers.CSVLogger):
        @property
        def experiment(self):
            raise ConnectionError("no server\nat all")

    monkeypatch.setattr(loggers, "CSVLogger", Broken)
    with pytest.raises(UserError, match=r"^--logger csv cannot begin: no server$"):
        run(tiny(logger="csv"), tmp_path)
