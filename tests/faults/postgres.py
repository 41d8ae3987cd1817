"""A PostgreSQL server of one's own in a temporary directory, reached by a socket in it."""

__all__ = ["Server"]

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from dtr_lightning.errors import UserError

USER = "sweeps"
CONNECTIONS = 300


class Server:
    """A cluster that is made, started, restarted, and removed at the end of the `with`."""

    def __init__(self, bin: Path | None = None) -> None:
        self.bin = bin or _binaries()
        if not (self.bin / "initdb").is_file():
            raise UserError(f"{self.bin} has no initdb; give PostgreSQL's programs by --bin DIR")
        self.restarts = 0

    def __enter__(self) -> "Server":
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        self.owner: dict[str, Any] = {}
        if os.getuid() == 0:  # the server refuses to run as root
            person = pwd.getpwnam("postgres")
            os.chown(self.folder, person.pw_uid, person.pw_gid)
            self.owner = {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}
        self._call("initdb", "-A", "trust", "-U", USER, "--no-sync")
        self._control("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._control("stop", "-m", "immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str = "") -> str:
        """Returns the address; the name is what `busy` calls the one who uses it."""
        return f"postgresql+psycopg://{USER}@/postgres?host={self.folder}&application_name={name}"

    def restart(self, away: float) -> None:
        """Stops as by a power cut, stays away for some seconds and comes back."""
        self._control("stop", "-m", "immediate")
        time.sleep(away)
        self._control("start")
        self.restarts += 1

    def busy(self, what: str, name: str) -> bool:
        """Returns whether someone holds the plan's lock (claim) or is in a transaction (write)."""
        import psycopg

        condition = {
            "claim": "pid in (select pid from pg_locks where locktype = 'advisory' and granted)",
            "write": "backend_xid is not null",
        }[what]
        try:
            if getattr(self, "_eye", None) is None or self._eye.closed:
                address = f"host={self.folder} user={USER} dbname=postgres"
                self._eye = psycopg.connect(address, autocommit=True)
            question = f"select 1 from pg_stat_activity where application_name = %s and {condition}"
            return self._eye.execute(question, (name,)).fetchone() is not None
        except psycopg.OperationalError:
            self._eye = None
            return False

    def _control(self, *action: str) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder}"
        options += f" -c max_connections={CONNECTIONS}"
        start = ["-o", options, "-l", str(self.folder / "log")] if action[0] == "start" else []
        self._call("pg_ctl", *action, "-w", *start)

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self.bin / program), "-D", str(self.folder / "data"), *arguments]
        nothing = subprocess.DEVNULL  # a server that is started keeps the output open
        subprocess.run(
            command, check=True, stdout=nothing, stderr=nothing, cwd=self.folder, **self.owner
        )


def _binaries() -> Path:
    try:
        found = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("no pg_config here; give PostgreSQL's programs by --bin DIR") from None
    return Path(found.stdout.strip())
