"""The deployment over SSH, against a real sshd: what is new serves, or what was there goes on."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import yaml
from support.servers import free_port, need

from cifar.settings import ROOT

DEPLOY = ROOT / "deploy/ssh/deploy.sh"
DIGEST = "sha256:" + "0123456789abcdef" * 4

pytestmark = pytest.mark.slow


@dataclass
class Host:
    """A machine that is reached by SSH, with an engine."""

    folder: Path
    ssh_port: int
    port: int

    def start(self, image: str, wait_seconds: int = 60) -> subprocess.Popen[str]:
        options = f"-p {self.ssh_port} -i {self.folder}/key -o UserKnownHostsFile={self.folder}/known -o StrictHostKeyChecking=yes"
        environment = {
            **os.environ,
            "SSH_OPTIONS": options,
            "ENGINE": str(self.folder / "engine"),
            "PORT": str(self.port),
            "TRY_PORT": str(free_port()),
            "WAIT_SECONDS": str(wait_seconds),
        }
        return subprocess.Popen(
            [DEPLOY, f"{getpass.getuser()}@127.0.0.1", image],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def deploy(self, image: str, wait_seconds: int = 60) -> tuple[int, str]:
        process = self.start(image, wait_seconds)
        output = process.communicate(timeout=240)[0]
        print(output)
        return process.returncode, output

    def file(self, name: str) -> str:
        file = self.folder / "home/cifar-space" / name
        return file.read_text() if file.exists() else ""

    def serves(self) -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/readyz", timeout=10).status_code == 200
        except httpx2.TransportError:
            return False

    def history(self) -> list[str]:
        file = self.folder / "state/history"
        return file.read_text().splitlines() if file.exists() else []


def image(kind: str) -> str:
    return f"registry.example/{kind}@{DIGEST}"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Keys, a home and a port of its own; what its engine started is ended with it."""
    sshd = need("sshd")
    for folder in ("home", "state"):
        (tmp_path / folder).mkdir()
    for name in ("key", "host_key"):
        subprocess.run([need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    engine = tmp_path / "engine"
    engine.write_text(
        f'#!/bin/sh\nENGINE_STATE={tmp_path}/state exec {sys.executable} {ROOT}/tests/support/engine.py "$@"\n'
    )
    engine.chmod(0o755)
    host = Host(tmp_path, free_port(), free_port())
    (tmp_path / "authorized").write_text(f'environment="HOME={tmp_path}/home" {(tmp_path / "key.pub").read_text()}')
    (tmp_path / "known").write_text(f"[127.0.0.1]:{host.ssh_port} {(tmp_path / 'host_key.pub').read_text()}")
    (tmp_path / "sshd_config").write_text(
        f"Port {host.ssh_port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "PermitUserEnvironment yes\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"PidFile {tmp_path}/sshd.pid\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    with (tmp_path / "sshd.log").open("w") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=log)
    try:
        time.sleep(0.5)
        assert process.poll() is None, (tmp_path / "sshd.log").read_text()
        yield host
    finally:
        process.terminate()
        process.wait(20)
        for container in (tmp_path / "state").glob("cifar-space*"):
            if not container.suffix and container.is_file():
                subprocess.run([engine, "rm", "--force", container.name], check=False)


def test_an_image_that_is_ready_takes_the_place_and_can_be_taken_back(host):
    """Tried beside the old one first; then it serves, and the digest before it is remembered."""
    for kind in ("good", "slow"):
        status, output = host.deploy(image(kind))
        assert (status, host.serves()) == (0, True), output
    assert host.history() == [f"run cifar-space{part} {kind}" for kind in ("good", "slow") for part in ("-try", "")]
    assert (host.file("current"), host.file("previous")) == (f"{image('slow')}\n", f"{image('good')}\n")
    status, output = host.deploy("rollback")
    assert (status, host.file("current")) == (0, f"{image('good')}\n"), output
    assert "serving registry.example/good" in output


def test_what_is_never_ready_leaves_the_old_one_where_it_is(host):
    """Beside it: nothing was touched. In its place: the old one is started again. Absent: nothing at all."""
    assert host.deploy(image("good"))[0] == 0
    for kind, said in (
        ("never", "beside the old one, which goes on"),
        ("once", "serving registry.example/good"),
        ("absent", "cannot be pulled; nothing was changed"),
    ):
        status, output = host.deploy(image(kind), wait_seconds=25 if kind == "once" else 5)
        assert (status, host.serves()) == (1, True), output
        assert said in output
        assert host.file("current") == f"{image('good')}\n"


def test_what_is_only_tried_leaves_the_records_alone(host):
    """A version that is not accepted must not have changed their tables: the one that goes on may not know the new ones."""
    (host.folder / "home/cifar-space").mkdir()
    database = host.folder / "records.sqlite"
    (host.folder / "home/cifar-space/env").write_text(f"CIFAR_RECORDS=true\nCIFAR_DATABASE_URL=sqlite:///{database}\n")
    assert host.deploy(image("once"), wait_seconds=25)[0] == 1
    assert "run cifar-space-try once" in host.history()
    assert not database.exists()
    assert host.deploy(image("good"))[0] == 0
    assert database.exists()


def test_old_images_go_and_the_two_that_may_serve_stay(host):
    """Each is some hundred megabytes: after some dozen deployments the disk would be full. Nobody else's are touched."""
    home, images = host.folder / "home/cifar-space", host.folder / "state/images"
    home.mkdir()
    running, before, older, failed, new = (f"sha256:{n * 64}" for n in "01234")
    (home / "current").write_text(f"registry.example/absent@{running}\n")
    (home / "previous").write_text(f"registry.example/absent@{before}\n")
    lines = [f"registry.example/absent {digest}\n" for digest in (older, running, failed, before, new)]
    images.write_text("".join([*lines, f"registry.example/database {older}\n"]))
    status, output = host.deploy(f"registry.example/absent@{new}")
    assert (status, "cannot be pulled" in output) == (1, True), "what is removed makes room for the pull"
    assert images.read_text() == "".join([lines[1], lines[3], lines[4], f"registry.example/database {older}\n"])


def test_what_a_container_says_does_not_fill_the_disk():
    """An engine keeps all of it unless told otherwise; the same limits as in compose."""
    logging = yaml.safe_load((ROOT / "compose.yaml").read_text())["x-locked-in"]["logging"]
    options = [
        f"--log-driver {logging['driver']}",
        *(f"--log-opt {each}={n}" for each, n in logging["options"].items()),
    ]
    assert " ".join(options) in DEPLOY.read_text()


def test_a_script_that_is_killed_half_way_is_mended_by_the_next_deployment(host):
    """Between the old container's end and the new one's start: the old one waits aside, and serves again before anything else is tried."""
    assert host.deploy(image("good"))[0] == 0
    assert host.deploy(image("cut"))[0] != 0
    assert not host.serves(), "it was not killed where it hurts"
    status, output = host.deploy(image("never"), wait_seconds=25)
    assert (status, host.serves()) == (1, True), output
    assert "the deployment before this one was cut off" in output
    assert "serving registry.example/good" in output
    status, output = host.deploy(image("slow"))
    assert (status, host.serves(), host.file("current")) == (0, True, f"{image('slow')}\n"), output
    assert not (host.folder / "state/cifar-space-before").exists()


def test_a_connection_that_is_lost_and_a_second_deployment_disturb_nothing(host):
    """The host finishes by itself; meanwhile another deployment is refused."""
    assert host.deploy(image("good"))[0] == 0
    process = host.start(image("slow"))
    while "run cifar-space-try slow" not in host.history():
        assert process.poll() is None
        time.sleep(0.1)
    status, output = host.deploy(image("good"))
    assert (status, output.strip()) == (3, "another deployment is under way on this host")
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 90
    while host.file("current") != f"{image('slow')}\n":
        assert time.monotonic() < deadline, host.file("log")
        time.sleep(0.5)
    assert host.serves()


@pytest.mark.parametrize("name", ["registry.example/good:latest", "good@sha256:0123", "a;reboot@" + DIGEST])
def test_an_image_without_a_digest_is_not_deployed(name):
    """A tag may be another image tomorrow, and a name is no place for commands."""
    result = subprocess.run([DEPLOY, "nobody@127.0.0.1", name], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "digest" in result.stderr
