"""A real PostgreSQL, started for a test as the user that may run it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.servers import free_port, need

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Where Debian has them."""


class Cluster:
    """A cluster on a free port, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._run("initdb", "--pgdata", str(folder / "data"), "--auth", "trust", "--username", "cifar", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        root = os.geteuid() == 0  # whom PostgreSQL does not run for
        command = [need(program, also_in=_PROGRAMS), *arguments]
        log = self._folder / "output"
        with log.open("a") as output:
            done = subprocess.run(
                command, cwd=self._folder, user="postgres" if root else None, stdout=output, stderr=output, check=False
            )
        assert done.returncode == 0, log.read_text()

    def start(self) -> None:
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1"
        self._run("pg_ctl", "start", "-w", "-D", str(self._folder / "data"), "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self._folder / "data"))

    def new_database(self, name: str) -> str:
        """The address of an empty database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "cifar", name)
        return f"postgresql+psycopg://cifar@127.0.0.1:{self.port}/{name}"


@contextmanager
def real_postgres() -> Iterator[Cluster]:
    """A cluster that is running."""
    need("initdb", also_in=_PROGRAMS)
    folder = Path(tempfile.mkdtemp(prefix="cifar-postgres-"))
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    cluster = Cluster(folder)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)
