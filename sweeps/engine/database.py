"""The database of a sweep: Optuna's storage, waited for while it is away and locked for a plan."""

__all__ = ["Database", "retry_while_unavailable"]

import contextlib
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from dtr_lightning.errors import UserError
from sweeps.engine.folder import Folder

PATIENCE = 900.0  # seconds to wait for a database that was there before
LONGEST = 20.0  # seconds between two tries
TOLD = 2  # tries without a word: a database that is only busy
AWAY = (OperationalError, InterfaceError, sqlite3.OperationalError)

R = TypeVar("R")


class Database:
    """Optuna's storage behind a URL; constructing one connects to nothing."""

    def __init__(self, folder: Folder, url: str | None = None) -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder.database.resolve()}"
        self.say: Callable[[str], None] = lambda line: None
        self.interrupted: Callable[[], bool] = lambda: False
        # a URL that was never right is a mistake, told at once
        self.patience = PATIENCE if folder.knows(self.url) else 0.0
        self.waited = 0.0  # seconds, for the lock

    @property
    def backend(self) -> str:
        """The kind of database, such as sqlite or postgresql."""
        return make_url(self.url).get_backend_name()

    @property
    def shown(self) -> str:
        """The URL without its password."""
        try:
            return make_url(self.url).render_as_string(hide_password=True)
        except SQLAlchemyError:
            return repr(self.url)

    def probe(self) -> None:
        """Raises UserError for a URL that was never right, before anything is written."""
        with self.guard():
            if self.patience:
                return
            if self.backend != "sqlite":
                with create_engine(self.url).connect():
                    return
        file, own = make_url(self.url).database, str(self.folder.database.resolve())
        if not file or not (file == own or Path(file).parent.is_dir()):
            raise UserError(
                f"the database {self.shown} cannot be used: no file in a directory that exists"
            )

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turns what a database can raise into one line that names it."""
        try:
            yield
        except (OptunaError, SQLAlchemyError, ImportError, RuntimeError, sqlite3.Error) as error:
            cause = " ".join(str(error.__cause__ or error).split("\n")[0].split())
            if isinstance(error, ModuleNotFoundError):
                cause += "; pip install it, or use sqlite:/// or postgresql+psycopg://"
            raise UserError(f"the database {self.shown} cannot be used: {cause}") from error

    def open(self) -> RDBStorage:
        """Connects, and makes the tables of a new database."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", ExperimentalWarning)
        arguments: dict[str, Any] = {"pool_pre_ping": True}
        if self.backend == "sqlite":
            arguments = {"connect_args": {"timeout": 60}}
            with contextlib.closing(sqlite3.connect(make_url(self.url).database)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.folder.lock())
            if self.backend == "postgresql":  # sweeps of other directories may begin now too
                engine = create_engine(self.url)
                stack.callback(engine.dispose)
                stack.enter_context(_advisory(engine, "tables"))
            self.storage = RDBStorage(self.url, arguments)
            self.folder.remember(self.url)
        self.patience = PATIENCE
        return self.storage

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Waits for, then holds the right to change the plan: one command at a time, on any node.

        A lock of PostgreSQL's own, which ends with its connection; else one on a file.
        """
        began = time.perf_counter()
        if self.backend != "postgresql":
            with self.folder.lock():
                self.waited += time.perf_counter() - began
                yield
            return
        with _advisory(self.storage.engine, self.folder.path.resolve().name) as self.holder:
            self.waited += time.perf_counter() - began
            yield

    def hold(self) -> None:
        """Raises if the lock ended with its connection: what was read under it may be old."""
        if self.backend == "postgresql":
            self.holder.execute(text("SELECT 1"))

    def away(self, error: BaseException) -> bool:
        """Returns whether an error means that the database is away for now: busy, full, down."""
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        own = getattr(cause, "orig", cause)
        wrong = getattr(own, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR  # such as no column
        return isinstance(cause, AWAY) and not wrong

    def wait(self, error: BaseException, since: float, tries: int) -> None:
        """Waits before the next try; raises the error when patience or a person ends it."""
        if not self.away(error) or time.monotonic() - since > self.patience or self.interrupted():
            raise error
        seconds = min(LONGEST, 0.25 * 2**tries)
        if tries == TOLD:
            cause = " ".join(str(error.__cause__ or error).split("\n")[0].split())
            self.say(f"the database {self.shown} is away ({cause}); trials go on, waiting for it")
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.interrupted():
            time.sleep(0.1)


@contextlib.contextmanager
def _advisory(engine: Engine, name: str) -> Iterator[Connection]:
    key = {"key": int(sha256(name.encode()).hexdigest()[:15], 16)}
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
        try:
            yield connection
        finally:
            if not connection.invalidated:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)


def retry_while_unavailable(method: Callable[..., R]) -> Callable[..., R]:
    """Wraps a method, of an object with a `database`, that may be repeated: it is, while away."""

    @wraps(method)
    def repeated(self: Any, *arguments: Any, **options: Any) -> R:
        since, tries = time.monotonic(), 0
        while True:
            try:
                result = method(self, *arguments, **options)
            except (StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
                self.database.wait(error, since, tries)
                tries += 1
            else:
                if tries > TOLD:
                    self.database.say("the database is back")
                return result

    return repeated
