"""Tests of the deployment over SSH, with a real sshd: the new version serves, or the old one continues."""

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
from support.servers import free_port, need, until_listens
from support.waiting import until

from cifar.settings import ROOT

DEPLOY = ROOT / "deploy/ssh/deploy.sh"
DIGEST = "sha256:" + "0123456789abcdef" * 4

pytestmark = pytest.mark.slow


@dataclass
class Host:
    """A machine that is reached over SSH, with a container engine."""

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
    """A host with its own keys, home folder and port. Its containers are stopped at the end."""
    sshd = need("sshd")
    for folder in ("home", "state"):
        (tmp_path / folder).mkdir()
    for name in ("key", "host_key"):
        subprocess.run([need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    engine = tmp_path / "engine"
    engine.write_text(
        f'#!/bin/sh\nENGINE_STATE={tmp_path}/state exec {sys.executable} {ROOT}/tests/programs/docker.py "$@"\n'
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
        until_listens(process, host.ssh_port, (tmp_path / "sshd.log").read_text)
        yield host
    finally:
        process.terminate()
        process.wait(20)
        for container in (tmp_path / "state").glob("cifar-space*"):
            if not container.suffix and container.is_file():
                subprocess.run([engine, "rm", "--force", container.name], check=False)


def test_an_image_that_is_ready_replaces_the_old_one_and_can_be_rolled_back(host):
    """It is tried beside the old one first; after the switch the previous digest is kept."""
    for kind in ("good", "better"):
        status, output = host.deploy(image(kind))
        assert (status, host.serves()) == (0, True), output
    assert host.history() == [f"run cifar-space{part} {kind}" for kind in ("good", "better") for part in ("-try", "")]
    assert (host.file("current"), host.file("previous")) == (f"{image('better')}\n", f"{image('good')}\n")
    status, output = host.deploy("rollback")
    assert (status, host.file("current")) == (0, f"{image('good')}\n"), output
    assert "serving registry.example/good" in output


def test_an_image_that_is_never_ready_does_not_replace_the_old_one(host):
    """A failed trial or pull changes nothing; after a failed switch the old container is started again."""
    assert host.deploy(image("good"))[0] == 0
    for kind, message in (
        ("never", "the old version keeps running"),
        ("once", "serving registry.example/good"),
        ("absent", "cannot be pulled; nothing was changed"),
    ):
        status, output = host.deploy(image(kind), wait_seconds=5)
        assert (status, host.serves()) == (1, True), output
        assert message in output
        assert host.file("current") == f"{image('good')}\n"


def test_a_trial_does_not_touch_the_records(host):
    """A rejected version must not migrate the tables, since the old version may not know the new ones."""
    (host.folder / "home/cifar-space").mkdir()
    database = host.folder / "records.sqlite"
    (host.folder / "home/cifar-space/env").write_text(f"CIFAR_RECORDS=true\nCIFAR_DATABASE_URL=sqlite:///{database}\n")
    assert host.deploy(image("app-cut"))[0] != 0, "the script was killed after the trial"
    assert host.history() == ["run cifar-space-try app-cut"]
    assert not database.exists()
    assert host.deploy(image("app-good"))[0] == 0
    assert database.exists()


def test_old_images_are_removed_except_those_that_may_serve(host):
    """Images take hundreds of megabytes each and would fill the disk. Images of other names are kept."""
    home, images = host.folder / "home/cifar-space", host.folder / "state/images"
    home.mkdir()
    running, before, older, failed, new = (f"sha256:{n * 64}" for n in "01234")
    (home / "current").write_text(f"registry.example/absent@{running}\n")
    (home / "previous").write_text(f"registry.example/absent@{before}\n")
    lines = [f"registry.example/absent {digest}\n" for digest in (older, running, failed, before, new)]
    images.write_text("".join([*lines, f"registry.example/database {older}\n"]))
    status, output = host.deploy(f"registry.example/absent@{new}")
    assert (status, "cannot be pulled" in output) == (1, True), (
        "images are removed before the pull, which needs the space"
    )
    assert images.read_text() == "".join([lines[1], lines[3], lines[4], f"registry.example/database {older}\n"])


def test_the_log_of_a_container_is_limited():
    """Without limits an engine keeps the whole log; they are the same as in compose.yaml."""
    logging = yaml.safe_load((ROOT / "compose.yaml").read_text())["x-locked-in"]["logging"]
    options = [
        f"--log-driver {logging['driver']}",
        *(f"--log-opt {each}={n}" for each, n in logging["options"].items()),
    ]
    assert " ".join(options) in DEPLOY.read_text()


def test_the_next_deployment_recovers_from_a_killed_script(host):
    """Killed between stopping the old container and starting the new one: the old one is started again first."""
    assert host.deploy(image("good"))[0] == 0
    assert host.deploy(image("cut"))[0] != 0
    assert not host.serves(), "the script was killed while nothing serves"
    status, output = host.deploy(image("never"), wait_seconds=5)
    assert (status, host.serves()) == (1, True), output
    assert "the previous deployment was interrupted" in output
    assert "serving registry.example/good" in output
    status, output = host.deploy(image("better"))
    assert (status, host.serves(), host.file("current")) == (0, True, f"{image('better')}\n"), output
    assert not (host.folder / "state/cifar-space-before").exists()


def test_a_lost_connection_does_not_interrupt_a_deployment(host):
    """The script continues on the host; meanwhile a second deployment is refused."""
    assert host.deploy(image("good"))[0] == 0
    process = host.start(image("slow"))
    while "run cifar-space-try slow" not in host.history():
        assert process.poll() is None
        time.sleep(0.1)
    status, output = host.deploy(image("good"))
    assert (status, output.strip()) == (3, "another deployment is running on this host")
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: host.file("current") == f"{image('slow')}\n", lambda: host.file("log"))
    assert host.serves()


@pytest.mark.parametrize("name", ["registry.example/good:latest", "good@sha256:0123", "a;reboot@" + DIGEST])
def test_an_image_without_a_digest_is_not_deployed(name):
    """A tag may later name another image, and shell commands in a name must not run."""
    result = subprocess.run([DEPLOY, "nobody@127.0.0.1", name], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "digest" in result.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "7860; touch x"), ("TRY_PORT", "$(reboot)"), ("WAIT_SECONDS", "9 9"), ("ENGINE", "docker;id")],
)
def test_a_setting_that_a_shell_would_run_is_refused_before_anything_is_sent(name, value):
    """The settings become a command line on the host."""
    environment = {**os.environ, name: value, "SSH_OPTIONS": "-F /dev/null"}
    command = [DEPLOY, "nobody@127.0.0.1", f"registry.example/good@{DIGEST}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 2
    assert name in result.stderr
