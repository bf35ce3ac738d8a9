"""Tests of the image, built and run by docker or podman: contents, isolation, shutdown and reload."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client, handle_file
from support.nginx import certificate_in
from support.pictures import encoded, noise
from support.servers import SHARED, free_port
from support.waiting import until

from cifar import CLASS_NAMES, __version__
from cifar.settings import ROOT

IMAGE = "localhost/cifar-space:test"
BASE_IMAGE = SHARED / "container/base-image.sh"
LOCKED_IN = [
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "all",
    "--security-opt",
    "no-new-privileges",
    "--memory",
    "1g",
]
GRACE_SECONDS = 10
"""Docker waits this long between SIGTERM and SIGKILL."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass
class Engine:
    """docker, or podman with its own environment and options."""

    program: str
    build: list[str]
    environment: dict[str, str]

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the engine."""
        result = subprocess.run(
            [self.program, *arguments],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or result.returncode == 0, f"{arguments}: {result.stdout[-1000:]} {result.stderr[-2000:]}"
        return result


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Docker if it runs; otherwise podman with a replacement of the base image.

    Without either the tests are skipped, or fail where CI=true, which has the replacement.
    """
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0:
        return Engine(docker, ["build"], {})
    if not BASE_IMAGE.exists():
        message = "docker does not run here, and there is no replacement"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    folder = Path(tempfile.gettempdir()) / "cifar-container"  # kept, so that a second run reuses the layers
    subprocess.run(["bash", BASE_IMAGE, folder], check=True, capture_output=True)
    lines = (folder / "env.sh").read_text().splitlines()
    environment = dict(shlex.split(word)[0].split("=", 1) for line in lines[:1] for word in line.split()[1:])
    build = shlex.split(lines[1].split("=", 1)[1])[0].split()
    return Engine("podman", ["build", *build], environment)


@pytest.fixture(scope="module")
def image(engine) -> str:
    """The name of the built target `serve`."""
    engine(*engine.build, "--target", "serve", "--tag", IMAGE, ".")
    return IMAGE


@dataclass
class Container:
    """A running container and its address."""

    engine: Engine
    name: str
    address: str

    def sh(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command inside."""
        return self.engine("exec", self.name, "sh", "-c", command, check=False)

    def pid_of(self, words: str) -> int:
        """Return the lowest process id in the container whose command line begins with `words`."""
        found = self.sh(
            "for p in /proc/[0-9]*; do printf '%s %s\n' ${p#/proc/} \"$(tr '\\0' ' ' < $p/cmdline)\"; done"
        ).stdout.splitlines()
        return min(int(line.split()[0]) for line in found if line.split(" ", 1)[1].startswith(words))

    def exit_code(self) -> int:
        """Wait until the container ends."""
        return int(self.engine("wait", self.name).stdout)

    def log(self) -> str:
        result = self.engine("logs", self.name)
        return result.stdout + result.stderr


@contextmanager
def started(
    container: Container, image: str, settings: dict[str, str], *options: str, command: Sequence[str] = ()
) -> Iterator[None]:
    """Run a container and wait until it is ready. It is removed at the end."""
    variables = [f"--env={key}={value}" for key, value in settings.items()]
    arguments = ["--detach", "--name", container.name, "--network", "host", *LOCKED_IN, *variables, *options]
    container.engine("run", *arguments, image, *command)
    try:
        until(lambda: ready(container.address), container.log)
        yield
    finally:
        container.engine("rm", "--force", container.name)


@contextmanager
def running(engine: Engine, image: str) -> Iterator[Container]:
    """Run the whole service in one container, on free ports of this machine."""
    port = free_port()
    container = Container(engine, f"cifar-test-{port}", f"http://127.0.0.1:{port}")
    with started(container, image, {"PORT": str(port), "CIFAR_PORT": str(free_port())}):
        yield container


def ready(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def container(engine, image) -> Iterator[Container]:
    """A container for all tests that do not change it."""
    with running(engine, image) as container:
        yield container


def test_every_process_runs_as_uid_1000_without_a_capability(container):
    """An intruder has no rights and cannot get any."""
    for line in container.sh("grep -hE '^(Uid|Cap|NoNewPrivs)' /proc/[0-9]*/status").stdout.splitlines():
        name, *values = line.split()
        assert set(values) == {"Uid:": {"1000"}, "NoNewPrivs:": {"1"}}.get(name, {"0" * 16}), line
    assert "CapEff:\t0000000000000000" in container.sh("cat /proc/1/status").stdout


def test_nothing_can_be_written_outside_tmp(container):
    """Code, models and home folders are read-only."""
    for folder in ("/", "/app", "/app/saved_model", "/opt/venv", "/home/cifar", "/etc/nginx", "/var/lib/nginx", "/run"):
        assert container.sh(f"touch {folder}/x").returncode != 0, folder
    assert container.sh("touch /tmp/x && rm /tmp/x").returncode == 0


def test_page_predict_and_gradio_client_are_answered(container):
    """A real image gets the same answer over REST and gradio_client."""
    assert httpx2.get(f"{container.address}/health").json() == {"status": "healthy", "model_loaded": True}
    assert "gradio" in httpx2.get(container.address).text
    cat = ROOT / "examples/cat.jpg"
    answer = httpx2.post(f"{container.address}/predict", files={"image": cat.read_bytes()}).json()
    assert answer["predicted_class"] == "cat"
    client = Client(container.address, verbose=False)
    assert client.predict(handle_file(cat), api_name="/predict")["class_scores"] == answer["class_scores"]


def test_the_image_contains_every_file_that_the_page_loads(container):
    """Each address in the HTML of the page exists, although parts of Gradio were removed."""
    page = httpx2.get(container.address).text
    addresses = {part.split('"')[0] for part in page.split('"./')[1:]}
    assert len([address for address in addresses if address.startswith("assets/")]) >= 2
    for address in addresses:
        assert httpx2.get(f"{container.address}/{address}").status_code == 200, address


def test_only_nginx_can_be_reached(container):
    """The app listens on the loopback address only."""
    listening = container.sh("cat /proc/net/tcp").stdout.splitlines()[1:]
    ports = {line.split()[1] for line in listening if line.split()[7] == "1000" and line.split()[3] == "0A"}
    assert {address.split(":")[0] for address in ports} == {"00000000", "0100007F"}
    assert httpx2.get(f"{container.address}/metrics").status_code == 404


def test_the_image_has_labels_a_user_and_a_health_check(engine, container):
    """The metadata is complete, and the health check tells a running service from a stopped one."""
    (metadata,) = json.loads(engine("image", "inspect", IMAGE).stdout)
    labels = metadata["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert {"title", "description", "licenses"} <= {name.rsplit(".", 1)[1] for name in labels}
    assert metadata["Config"]["User"] == "1000:1000"
    assert (metadata["Config"].get("Healthcheck") or metadata["Healthcheck"])["Test"] == [
        "CMD",
        "python",
        "deploy/container/health.py",
    ]
    assert container.sh("python deploy/container/health.py").returncode == 0
    assert container.sh("PORT=1 python deploy/container/health.py").returncode != 0


def test_the_image_has_no_tensorflow_and_no_build_tools(container):
    """The image stays small, and an intruder finds no tools."""
    site = "/opt/venv/lib/python3.11/site-packages"
    for package in ("tensorflow", "keras", "matplotlib", "pip", "setuptools"):
        assert container.sh(f"ls -d {site}/{package}").returncode != 0, package
    for program in ("gcc", "cc", "g++", "make", "ld", "git", "curl", "wget"):
        assert container.sh(f"command -v {program}").returncode != 0, program
    for folder in ("tests", "benchmarks", ".git", ".venv", "docs", "runs"):
        assert container.sh(f"ls -d /app/{folder}").returncode != 0, folder


@pytest.mark.parametrize(
    ("victim", "words", "kind", "code"),
    [("nginx", "nginx: master", "TERM", 1), ("gunicorn", "python -m gunicorn", "KILL", 137)],
    ids=["nginx", "gunicorn"],
)
def test_the_container_ends_when_nginx_or_gunicorn_ends(engine, image, victim, words, kind, code):
    """The exit code is that of the ended process, or 1 if it was 0, and the log names it."""
    with running(engine, image) as container:
        container.sh(f"kill -{kind} {container.pid_of(words)}")
        assert container.exit_code() == code
        assert f"start: {victim} ended unexpectedly; the container exits with {code}" in container.log()


def test_stopping_under_load_loses_no_request(engine, image):
    """Eight large images are being classified and a page is open: each image gets its answer."""
    slow = encoded(noise(6000, 5000), "JPEG", quality=10)  # eight of one caller may wait: see CIFAR_MAX_WAITING_BYTES
    with running(engine, image) as container:

        def ask(_: int) -> int:
            return httpx2.post(f"{container.address}/predict", files={"image": slow}, timeout=60).status_code

        opened = threading.Event()

        def stay() -> None:
            with httpx2.stream("GET", f"{container.address}/gradio_api/heartbeat/abc", timeout=60) as stream:
                opened.set()
                for _ in stream.iter_raw():
                    pass

        with ThreadPoolExecutor(9) as pool:
            page = pool.submit(stay)
            assert opened.wait(60)
            asked = [pool.submit(ask, i) for i in range(8)]
            wait(asked, return_when=FIRST_COMPLETED)  # by then all have arrived
            pending = sum(not answer.done() for answer in asked)
            began = time.monotonic()
            engine("stop", "--time", str(GRACE_SECONDS), container.name)
            print(f"{pending} of 8 pending when stopped; stopped in {time.monotonic() - began:.1f} s")
            assert [answer.result() for answer in asked] == [200] * 8
            assert page.exception() is None or isinstance(page.exception(), httpx2.RemoteProtocolError)
        assert pending >= 2, "the stop came while requests were pending"
        assert container.exit_code() == 0, "137 would mean that the grace period was too short"


def test_a_mounted_certificate_is_used(engine, image, tmp_path):
    """NGINX_TLS_PORT speaks HTTPS, and plain HTTP redirects there."""
    certificate_in(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "tls.key").chmod(0o644)
    port, tls_port = free_port(), free_port()
    container = Container(engine, f"cifar-test-{port}", f"http://127.0.0.1:{port}")
    settings = {"PORT": str(port), "NGINX_TLS_PORT": str(tls_port), "CIFAR_PORT": str(free_port())}
    with started(container, image, settings, f"--volume={tmp_path}:/etc/cifar/tls:ro"):
        trusted = ssl.create_default_context(cafile=tmp_path / "tls.crt")
        assert httpx2.get(f"https://localhost:{tls_port}/health", verify=trusted).json()["model_loaded"]
        assert httpx2.get(container.address).status_code == 308
        assert container.sh("python deploy/container/health.py").returncode == 0


def test_a_reload_restarts_all_workers_and_loses_no_request(engine, image):
    """SIGHUP to the container replaces the workers of nginx and gunicorn; every request meanwhile is answered."""
    with running(engine, image) as container:

        def workers() -> set[str]:
            found = container.sh(
                "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | grep -qE 'worker|gunicorn' && echo $p; done"
            )
            return set(found.stdout.split())

        before = workers()
        engine("kill", "--signal", "HUP", container.name)
        statuses = set()
        deadline = time.monotonic() + 120
        with httpx2.Client(timeout=30) as client:
            while not statuses or len(workers() - before) < 4 or len(workers() & before) > 1:
                assert time.monotonic() < deadline, container.log()
                for _ in range(10):
                    statuses.add(client.get(f"{container.address}/readyz").status_code)
        assert statuses == {200}, f"{statuses}\n{container.log()}"


def test_a_wrong_setting_ends_the_container_with_a_sentence(engine, image):
    """The message names the setting, of the app or of nginx."""
    wrong = {
        "CIFAR_WORKERS=many": "cifar: CIFAR_WORKERS=",
        "CIFAR_MODEL_NAME=dogs": "cifar: No version of dogs",
        "NGINX_HOSTS=a b": "start: NGINX_HOSTS=",
    }
    for setting, words in wrong.items():
        result = engine("run", "--rm", "--network", "none", *LOCKED_IN, "--env", setting, image, check=False)
        assert result.returncode != 0
        assert words in result.stdout + result.stderr
        assert "Traceback" not in result.stdout + result.stderr


def test_three_apps_behind_one_nginx_keep_sessions_and_replace_each_other(engine, image):
    """As with `compose up --scale app=3`: a client address stays with one app, and when that dies, others answer."""
    port = str(free_port())
    apps = [f"127.0.0.{i}" for i in (2, 3, 4)]
    with ExitStack() as stack:
        for address in apps:
            settings = {"CIFAR_HOST": address, "CIFAR_PORT": port, "CIFAR_WORKERS": "1"}
            app = Container(engine, f"cifar-test-{port}-{address}", f"http://{address}:{port}")
            stack.enter_context(started(app, image, settings, command=["deploy/container/start", "app"]))
        front_port = str(free_port())
        front = Container(engine, f"cifar-test-{front_port}", f"http://127.0.0.1:{front_port}")
        names = [f"--add-host=app:{address}" for address in apps]
        settings = {"PORT": front_port, "NGINX_UPSTREAM": f"app:{port}"}
        stack.enter_context(started(front, image, settings, *names, command=["deploy/container/start", "nginx"]))
        client = Client(front.address, verbose=False)
        for name in CLASS_NAMES:
            answer = client.predict(handle_file(ROOT / f"examples/{name}.jpg"), api_name="/predict")
            assert answer["predicted_class"] == name
        assert front.sh("python deploy/container/health.py").returncode == 0

        def answered(caller: int) -> int:
            transport = httpx2.HTTPTransport(local_address=f"127.0.2.{caller}")
            with httpx2.Client(transport=transport, timeout=30) as http:
                cat = (ROOT / "examples/cat.jpg").read_bytes()
                return http.post(f"{front.address}/predict", files={"image": cat}).status_code

        assert {answered(caller) for caller in range(1, 31)} == {200}
        used = set(re.findall(r'"upstream":"(127\.0\.0\.\d):', front.log()))
        assert used == set(apps)
        engine("kill", f"cifar-test-{port}-{apps[0]}")
        assert {answered(caller) for caller in range(1, 31)} == {200}
