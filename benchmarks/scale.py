"""Processes that claim, sleep and finish: a sweep's plan at work without its trainings."""

__all__ = ["Row", "finished", "measure", "plan_seconds", "points_of"]

import json
import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import MetaData, Table, select

from sweeps.engine.database import Database
from sweeps.engine.folder import Folder
from sweeps.engine.plan import Point, Sweep
from sweeps.engine.recipe import Recipe
from sweeps.engine.study import Study

TABLES = ("trials", "trial_user_attributes", "trial_params", "trial_values")
CONFIG = {"seed": 0, "trainer": {}}
PATIENCE = 300.0  # seconds for all processes to be ready
Rest = tuple[int, float, float, float]  # trials, seconds in all, in the study, for the lock


class Row(NamedTuple):
    """What some workers did: the rate of trials, and the shares of their time that were lost."""

    database: str
    workers: int
    sleep: float  # seconds, of a trial
    trials: int
    rate: float  # trials/s
    ideal: float  # trials/s, if a plan took no time
    study: float  # share of time in claim and finish
    lock: float  # share of time for the lock, a part of that
    claim: float  # milliseconds of claim and finish of a trial, without the lock


def points_of(number: int) -> Sweep:
    """Returns a grid of stand-in points, ten values of one option by as many of another."""
    values = [{"router": "DTR", "a": i // 10, "b": i % 10} for i in range(number)]
    points = tuple(Point(f"dtr-{i}", v | {"seed": 0}, CONFIG) for i, v in enumerate(values))
    recipe = Recipe("scale", Path("base.yaml"), "grid", {"score": "minimize"}, 1, {}, values)
    return Sweep(recipe, CONFIG, points)


def finished(sweep: Sweep, folder: Folder, url: str | None, number: int) -> None:
    """Makes the directory and a study in which the first points, two or more, have results.

    One trial is made as a sweep does, in some 10 ms; its rows are copied for the others.
    """
    folder.prepare(sweep)
    with folder.owner() as owner:
        study = Study(sweep, folder, owner, Database(folder, url))
        with study.database.lock():
            first = study._add(sweep.points[0], {"score": 1.0}, seconds=30.0)
        schema = MetaData()
        schema.reflect(study.storage.engine, only=TABLES)
        trials, *parts = (schema.tables[name] for name in TABLES)
        others = range(1, number)
        with study.storage.engine.begin() as connection:

            def rows(table: Table) -> list[dict[str, Any]]:
                found = connection.execute(select(table).where(table.c.trial_id == first))
                (key,) = table.primary_key.columns.keys()
                return [{k: v for k, v in row.items() if k != key} for row in found.mappings()]

            (trial,) = rows(trials)
            study_id = trial["study_id"]
            connection.execute(trials.insert(), [trial | {"number": i} for i in others])
            found = select(trials.c.number, trials.c.trial_id).where(trials.c.study_id == study_id)
            ids = dict(map(tuple, connection.execute(found)))
            for table in parts:
                copies = [
                    row | {"trial_id": ids[i]} | _own(row, sweep.points[i])
                    for row in rows(table)
                    for i in others
                ]
                connection.execute(table.insert(), copies)
        study.storage.engine.dispose()


def _own(row: dict[str, Any], point: Point) -> dict[str, Any]:
    """Returns what differs in the copy of a row: whose trial it is."""
    own = {"point": point.name, "params": json.dumps(point.params)}
    key = row.get("key")
    return {"value_json": json.dumps(own[key])} if key in own else {}


def plan_seconds(sweep: Sweep, folder: Folder, url: str | None) -> float:
    """Returns the seconds in which a command that arrives knows the plan."""
    began = time.perf_counter()
    with folder.owner() as owner:
        study = Study(sweep, folder, owner, Database(folder, url))
        study.plan()
        study.open()
        seconds = time.perf_counter() - began
        study.storage.engine.dispose()
    return seconds


def _work(
    sweep: Sweep, folder: Folder, url: str | None, sleep: float, limit: float, ready: Barrier
) -> Rest:
    with folder.owner() as owner:
        study = Study(sweep, folder, owner, Database(folder, url))
        study.open()
        ready.wait(PATIENCE)
        study.database.waited, busy, trials = 0.0, 0.0, 0
        began = now = time.perf_counter()
        while now < began + limit and (claim := study.claim(set())) is not None:
            busy += time.perf_counter() - now
            time.sleep(sleep)
            now = time.perf_counter()
            study.finish(claim.trial_id, {"score": 1.0, "seconds": sleep})
            trials += 1
            busy += time.perf_counter() - now
            now = time.perf_counter()
        return trials, time.perf_counter() - began, busy, study.database.waited


def _tell(connection: Any, *arguments: Any) -> None:
    connection.send(_work(*arguments))


def measure(
    sweep: Sweep, folder: Folder, url: str | None, workers: int, sleep: float, limit: float
) -> Row:
    """Lets processes work for some seconds, or to the end of the plan."""
    context = multiprocessing.get_context("fork")
    ready, told = context.Barrier(workers), []
    for _ in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (theirs, sweep, folder, url, sleep, limit, ready)
        process = context.Process(target=_tell, args=arguments, daemon=True)
        process.start()
        theirs.close()
        told.append((process, ours))
    found = [ours.recv() for _, ours in told]
    for process, _ in told:
        process.join()
    trials, seconds, busy, waited = (sum(column) for column in zip(*found, strict=True))
    return Row(
        database=Database(folder, url).backend,
        workers=workers,
        sleep=sleep,
        trials=trials,
        rate=trials / max(row[1] for row in found),
        ideal=workers / sleep,
        study=busy / seconds,
        lock=waited / seconds,
        claim=1000 * (busy - waited) / max(1, trials),
    )
