"""The database of a sweep: Optuna's storage, with a lock, and retries while it is unavailable."""

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

PATIENCE = 900.0  # seconds to wait for a database that worked before
LONGEST = 20.0  # seconds between two tries
QUIET = 2  # tries without a message: a database that is only busy
UNAVAILABLE = (OperationalError, InterfaceError, sqlite3.OperationalError)

R = TypeVar("R")


class Database:
    """Optuna's storage behind a URL; constructing one connects to nothing."""

    def __init__(self, folder: Folder, url: str | None = None) -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder.database.resolve()}"
        self.say: Callable[[str], None] = lambda line: None
        self.interrupted: Callable[[], bool] = lambda: False
        # a URL that never worked is a mistake: no wait
        self.patience = PATIENCE if folder.knows(self.url) else 0.0
        self.waited = 0.0  # seconds, for the lock
        self.outages = 0  # how often it was found to be unavailable

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
        """Raises UserError for a URL that cannot be used, before anything is written."""
        with self.guard():
            if self.patience:
                return
            if self.backend != "sqlite":
                with create_engine(self.url).connect():
                    return
        file, default = make_url(self.url).database, str(self.folder.database.resolve())
        if not file or not (file == default or Path(file).parent.is_dir()):
            raise UserError(
                f"the database {self.shown} cannot be used: no file in a directory that exists"
            )

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turns what a database can raise into a UserError of one line that names it."""
        try:
            yield
        except (OptunaError, SQLAlchemyError, ImportError, RuntimeError, sqlite3.Error) as error:
            cause = " ".join(str(error.__cause__ or error).split("\n")[0].split())
            if isinstance(error, ModuleNotFoundError):
                cause += "; pip install it, or use sqlite:/// or postgresql+psycopg://"
            raise UserError(f"the database {self.shown} cannot be used: {cause}") from error

    def open(self) -> RDBStorage:
        """Connects; makes the tables of a new database."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", ExperimentalWarning)
        arguments: dict[str, Any] = {"pool_pre_ping": True}
        if self.backend == "sqlite":
            arguments = {"connect_args": {"timeout": 60}}
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.folder.lock())
            if self.backend == "sqlite":  # two that change the mode at once do not wait for it
                connection = sqlite3.connect(make_url(self.url).database or "")
                with contextlib.closing(connection):
                    connection.execute("PRAGMA journal_mode=WAL")
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
        """Waits for the lock of the plan and holds it: one command at a time, on any node.

        It is PostgreSQL's advisory lock, which ends with its connection, or else a file's.
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

    def check_lock(self) -> None:
        """Raises if the lock ended with its connection: what was read under it may be stale."""
        if self.backend == "postgresql":
            self.holder.execute(text("SELECT 1"))

    def is_unavailable(self, error: BaseException) -> bool:
        """Returns whether an error means that the database is busy, full or down for now."""
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        original = getattr(cause, "orig", cause)
        code = getattr(original, "sqlite_errorcode", None)
        return isinstance(cause, UNAVAILABLE) and code != sqlite3.SQLITE_ERROR  # no such column

    def wait(self, error: BaseException, since: float, tries: int) -> None:
        """Waits before the next try; raises the error after PATIENCE seconds or an interrupt."""
        if (
            not self.is_unavailable(error)
            or time.monotonic() - since > self.patience
            or self.interrupted()
        ):
            raise error
        self.outages += 1
        seconds = min(LONGEST, 0.25 * 2**tries)
        if tries == QUIET:
            cause = " ".join(str(error.__cause__ or error).split("\n")[0].split())
            self.say(
                f"the database {self.shown} is unavailable ({cause}); trials go on and wait for it"
            )
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
    """Wraps a method of an object with a `database`, to repeat it while that is unavailable."""

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
                if tries > QUIET:
                    self.database.say("the database is back")
                return result

    return repeated
