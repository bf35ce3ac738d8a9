"""Running nginx with the project's nginx.conf."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.servers import free_port, need, until_listens

from cifar.settings import ROOT

RENDER = [sys.executable, "deploy/container/render.py", "nginx.conf"]


def render(**environment: str) -> subprocess.CompletedProcess[str]:
    """Render nginx.conf as the container's start script does."""
    return subprocess.run(RENDER, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def certificate_in(folder: Path) -> Path:
    """Write a self-signed certificate for localhost and its key into a folder, and return the folder."""
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "tls.key"]
    command = [need("openssl"), "req", "-x509", *subject, *key, "-out", folder / "tls.crt"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@dataclass
class Nginx:
    """A running nginx."""

    port: int
    tls_port: int
    log: Path
    process: subprocess.Popen

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_nginx(folder: Path, upstream: str, **environment: str) -> Iterator[Nginx]:
    """Run nginx in front of `upstream` (HOST:PORT), on free ports. It must end on SIGQUIT."""
    program = need("nginx")
    ports = {"PORT": str(free_port()), "NGINX_TLS_PORT": str(free_port())}
    files = {"NGINX_RUN_FOLDER": str(folder), "NGINX_TLS_FOLDER": str(folder / "tls"), "NGINX_DRAIN_SECONDS": "1"}
    rendered = render(NGINX_UPSTREAM=upstream, **(ports | files | environment))
    assert rendered.returncode == 0, rendered.stderr
    (folder / "nginx.conf").write_text(rendered.stdout)
    user = ["-g", "user root;"] if os.geteuid() == 0 else []  # only root can read the folders of tests
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"), *user],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    nginx = Nginx(int(ports["PORT"]), int(ports["NGINX_TLS_PORT"]), folder / "log", process)
    until_listens(process, nginx.port, nginx.log.read_text)
    yield nginx
    process.send_signal(signal.SIGQUIT)
    assert process.wait(timeout=20) == 0
