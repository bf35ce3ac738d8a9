"""Redis and PostgreSQL servers, started for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from support.servers import free_port, need, until_listens

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""The folders of PostgreSQL's programs on Debian."""


class Cluster:
    """A PostgreSQL cluster on a free port, in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._run("initdb", "--pgdata", str(folder / "data"), "--auth", "trust", "--username", "cifar", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        root = os.geteuid() == 0  # PostgreSQL refuses to run as root
        command = [need(program, also_in=PROGRAMS), *arguments]
        log = self._folder / "output"
        with log.open("a") as output:
            done = subprocess.run(
                command, cwd=self._folder, user="postgres" if root else None, stdout=output, stderr=output, check=False
            )
        assert done.returncode == 0, log.read_text()

    def start(self) -> None:
        # Without fsync, data survives the death of the processes, as tests cause it, but not that of the machine.
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-D", str(self._folder / "data"), "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self._folder / "data"))

    def new_database(self, name: str) -> str:
        """Create a database and return its URL."""
        address = f"host=127.0.0.1 port={self.port} user=cifar dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return f"postgresql+psycopg://cifar@127.0.0.1:{self.port}/{name}"


@contextmanager
def real_postgres() -> Iterator[Cluster]:
    """Run a PostgreSQL cluster."""
    need("initdb", also_in=PROGRAMS)
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


@contextmanager
def real_pgbouncer(cluster: Cluster) -> Iterator[int]:
    """Run PgBouncer in front of a cluster, with one connection for the transactions of all clients, and yield its port."""
    port, program = free_port(), need("pgbouncer")
    folder = Path(tempfile.mkdtemp(prefix="cifar-pgbouncer-"))
    (folder / "users.txt").write_text('"cifar" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={cluster.port}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n"
        f"unix_socket_dir=\nauth_type=trust\nauth_file={folder}/users.txt\npool_mode=transaction\ndefault_pool_size=1\n"
    )
    root = os.geteuid() == 0  # PgBouncer refuses to run as root
    if root:
        folder.chmod(0o755)
    command = [program, "--quiet", folder / "pgbouncer.ini"]
    process = subprocess.Popen(command, user="postgres" if root else None, stderr=subprocess.DEVNULL)
    try:
        until_listens(process, port, "PgBouncer did not start")
        yield port
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


@contextmanager
def real_redis(folder: Path, port: int = 0) -> Iterator[str]:
    """Run a Redis without persistence, and yield its address."""
    port = port or free_port()
    command = [need("redis-server"), "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until_listens(process, port, "Redis did not start")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)
