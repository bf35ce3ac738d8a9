"""Several hosts on one machine: each program has its own network namespace, and a bridge connects them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from support.nginx import render
from support.servers import need

from cifar.settings import ROOT

PREFIX = "cifar-hosts"
SUBNET = "10.77.0"
ADDRESSES = {"client": 1, "nginx": 2, "redis": 3, "app1": 11, "app2": 12, "app3": 13}
"""The last part of each host's address. `client` acts as a trusted proxy that names the client's address."""
APPS = ["app1", "app2", "app3"]
APP_PORT, NGINX_PORT, REDIS_PORT = 7861, 7860, 6379
CLONE_NEWNET = 0x40000000


def address(host: str) -> str:
    return f"{SUBNET}.{ADDRESSES[host]}"


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def _namespace(host: str, pid: int | None = None) -> str:
    return f"{PREFIX}-{pid or os.getpid()}-{host}"


def _etc(namespace: str) -> Path:
    """Return the folder that `ip netns exec` mounts over /etc."""
    return Path("/etc/netns") / namespace


def _remove(namespace: str) -> None:
    """Kill the processes of a namespace, and delete it with its links."""
    for pid in _ip("netns", "pids", namespace).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", namespace)
    for file in [*_etc(namespace).glob("*"), _etc(namespace)]:
        if file.exists():
            file.rmdir() if file.is_dir() else file.unlink()


def _remove_leftovers() -> None:
    """Remove the namespaces of crashed runs and of this one."""
    for line in _ip("netns", "list").splitlines():
        name = line.split(" ")[0]
        if name.startswith(f"{PREFIX}-"):
            pid = int(name.split("-")[2])
            if pid == os.getpid() or not Path(f"/proc/{pid}").exists():
                _remove(name)


@contextmanager
def network() -> Iterator[None]:
    """Create namespaces and links. Meanwhile this thread and its children are on the host `client`."""
    need("ip")
    _remove_leftovers()
    try:
        try:
            _ip("netns", "add", _namespace("switch"))
            _ip("-n", _namespace("switch"), "link", "add", "bridge", "type", "bridge")
        except subprocess.CalledProcessError as error:
            message = f"network namespaces cannot be created here: {error.stderr.strip()}"
            pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
        _ip("-n", _namespace("switch"), "link", "set", "bridge", "up")
        for host in ADDRESSES:
            _plug_in(host)
        hosts = "".join(f"{address(app)} app\n" for app in APPS)
        _etc(_namespace("nginx")).mkdir(parents=True)
        (_etc(_namespace("nginx")) / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        with _inside("client"):
            yield
    finally:
        _remove_leftovers()


def _plug_in(host: str) -> None:
    name, switch = _namespace(host), _namespace("switch")
    _ip("netns", "add", name)
    _ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("-n", switch, "link", "set", host, "master", "bridge", "up")
    _ip("-n", name, "address", "add", f"{address(host)}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", name, "link", "set", device, "up")


@contextmanager
def _inside(host: str) -> Iterator[None]:
    """Move this thread, and threads and processes that it starts, into the host's network."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, there = Path("/proc/thread-self/ns/net"), Path("/run/netns", _namespace(host))
    with here.open() as before, there.open() as after:
        assert libc.setns(after.fileno(), CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert libc.setns(before.fileno(), CLONE_NEWNET) == 0


@contextmanager
def cut_off(host: str) -> Iterator[None]:
    """Disconnect a host: its packets are lost without notice."""
    _ip("-n", _namespace("switch"), "link", "set", host, "down")
    try:
        yield
    finally:
        _ip("-n", _namespace("switch"), "link", "set", host, "up")


@dataclass
class Hosts:
    """Three replicas, nginx and Redis."""

    folder: Path
    settings: dict[str, str]
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    front: str = f"http://{address('nginx')}:{NGINX_PORT}"

    def start(self, host: str, command: list[str], **environment: str) -> None:
        with (self.folder / f"{host}.log").open("a") as log:
            self.processes[host] = subprocess.Popen(
                ["ip", "netns", "exec", _namespace(host), *command],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self, host: str, how: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code. `ip netns exec` was replaced by the program, which gets the signal."""
        process = self.processes.pop(host)
        process.send_signal(how)
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

    def stop_all(self) -> None:
        """Ask all programs to end, then wait for each."""
        for process in self.processes.values():
            process.terminate()
        for host in list(self.processes):
            self.stop(host)

    def start_app(self, app: str) -> None:
        """Start `python -m cifar serve` with its own files: only the registry and Redis are shared."""
        files = self.folder / app
        files.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "cifar", "serve", "--workers", "2"]
        own = {"CIFAR_UPLOADS": str(files / "uploads"), "TMPDIR": str(files)}
        self.start(app, [*command, "--port", str(APP_PORT)], **own, **self.settings)

    def wait_for(self, url: str, host: str) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(httpx2.TransportError):
                if httpx2.get(url, timeout=2).status_code == httpx2.codes.OK:
                    return
            assert self.processes[host].poll() is None, self.log(host)[-2000:]
            time.sleep(0.2)
        pytest.fail(f"{host} was not ready within two minutes: {self.log(host)[-2000:]}")

    def wait_for_app(self, app: str) -> None:
        self.wait_for(f"{self.app(app)}/readyz", app)

    def app(self, app: str) -> str:
        """Return the address of a replica, without nginx."""
        return f"http://{address(app)}:{APP_PORT}"

    def log(self, host: str) -> str:
        return (self.folder / f"{host}.log").read_text()


@contextmanager
def three_replicas(folder: Path, **settings: str) -> Iterator[Hosts]:
    """Run three replicas, nginx and Redis, each on its own host; the test is on another one."""
    redis_server, nginx = need("redis-server"), need("nginx")
    shared = {
        "CIFAR_REDIS_URL": f"redis://{address('redis')}:{REDIS_PORT}/0",
        "CIFAR_TRUSTED_PROXIES": f"{SUBNET}.0/24",
        "CIFAR_ENGINE": "litert",
    }
    with ExitStack() as stack:
        stack.enter_context(network())
        hosts = Hosts(folder, shared | settings)
        stack.callback(hosts.stop_all)
        redis = [redis_server, "--bind", address("redis"), "--protected-mode", "no", "--save", "", "--dir", str(folder)]
        hosts.start("redis", redis)
        for app in APPS:
            hosts.start_app(app)
        files = {"NGINX_RUN_FOLDER": str(folder), "NGINX_TLS_FOLDER": str(folder / "tls"), "NGINX_DRAIN_SECONDS": "1"}
        rendered = render(NGINX_UPSTREAM=f"app:{APP_PORT}", NGINX_TRUSTED_PROXIES=address("client"), **files)
        assert rendered.returncode == 0, rendered.stderr
        (folder / "nginx.conf").write_text(rendered.stdout)
        for app in APPS:
            hosts.wait_for_app(app)
        hosts.start(
            "nginx", [nginx, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "user root;"]
        )
        hosts.wait_for(f"{hosts.front}/healthz", "nginx")
        yield hosts
