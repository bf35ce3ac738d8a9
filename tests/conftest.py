"""What several test files need: settings that touch nothing of the user's, a small version, running servers."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, sync_playwright
from recorded import open_records, write_a_day
from two_versions import write_two_versions

from cifar.serving.cache import AnswerCache
from cifar.settings import ROOT, Settings

# httpx waits five seconds by itself. That is no promise of ours, and much where tests share two cores.
httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 60

NO_CACHE = AnswerCache(images=0, lifetime_seconds=1, redis=None)

# Settings of the machine must not reach the tests; uploads and records go to folders of their own.
for name in [name for name in os.environ if name.startswith("CIFAR_") or name in {"PORT", "MODEL_VERSION"}]:
    del os.environ[name]
os.environ["CIFAR_UPLOADS"] = tempfile.mkdtemp(prefix="cifar-tests-")
os.environ["CIFAR_RECORDS_FOLDER"] = tempfile.mkdtemp(prefix="cifar-tests-")
Settings.model_config["env_file"] = None

SHARED = ROOT.parent / "shared"
"""Larger data for those who have it; the default tests pass without."""


def need(program: str, *, also_in: Iterable[Path] = ()) -> str:
    """The path of a system program, looked for in other folders too. Without it the test is skipped, or under CI=true fails."""
    if path := shutil.which(program, path=os.pathsep.join([os.environ["PATH"], *map(str, also_in)])):
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"{program} is not installed; .ci/run should have done it")
    pytest.skip(f"{program} is not installed; .ci/run has the packages")


@contextmanager
def real_redis(folder: Path, port: int = 0) -> Iterator[str]:
    """A real Redis without persistence; yields its address."""
    port = port or free_port()
    command = [need("redis-server"), "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not listens(port):
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(20)


def heeding_ctrl_c(command: list[object], **options: object) -> subprocess.Popen[str]:
    """A process that hears SIGINT: a shell starts what runs in the background deaf to it, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Of the ports that the system gives to nobody by itself, a thousand for each process of tests: nobody else takes one before it is used.
_PLACE = 1 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw"))
_PORTS = itertools.cycle(range(20_000 + 1_000 * _PLACE, 21_000 + 1_000 * _PLACE))


def free_port() -> int:
    """A port that nobody listens on."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("an endless row of ports came to its end")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with an empty registry and an empty cache."""
    return Settings(registry=tmp_path / "registry", data_cache=tmp_path / "cache")


@pytest.fixture(scope="session")
def api() -> Iterator[TestClient]:
    """The whole app with the shipped model, in this process, ready."""
    from app import create_app

    with TestClient(create_app(Settings()), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def wait_until_ready(client: TestClient | httpx.Client) -> None:
    """Wait until the model is loaded; its absence for two minutes is a failure."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if client.get("/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:  # nobody listens yet, or TensorFlow is being imported
            pass
        time.sleep(0.2)
    pytest.fail("the server was not ready within two minutes")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`python app.py` as a user starts it, on a free port; yields its address."""
    folder = tmp_path_factory.mktemp("server")
    with (folder / "log").open("w") as log, _app(log, folder) as process:
        address = f"http://127.0.0.1:{process.port}"
        with httpx.Client(base_url=address) as client:
            wait_until_ready(client)
        yield address
    text = (folder / "log").read_text()
    ours = [line for line in text.splitlines() if " ERROR " in line]
    assert ours == [], "no request of any test was an error of the server's"


class _app:  # noqa: N801 - reads as a function where it is used
    """`python app.py` as a context: ended by SIGTERM, which must suffice."""

    def __init__(self, log, folder: Path, **settings: str) -> None:
        self.port = free_port()
        environment = {**os.environ, "PORT": str(self.port), "CIFAR_UPLOADS": str(folder / "uploads"), **settings}
        self.process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, with a camera that shows a test picture."""
    path = need("chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--use-fake-ui-for-media-stream"]
        yield playwright.chromium.launch(executable_path=path, args=[*options, "--use-fake-device-for-media-stream"])


@pytest.fixture(scope="session")
def two_version_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`python app.py` with the two versions of `two_versions.py`, the first by default, and records; yields its address."""
    folder = tmp_path_factory.mktemp("two-versions")
    registry = write_two_versions(folder / "registry")
    engine = open_records(Settings(records_folder=folder / "records"))
    write_a_day(engine)
    engine.dispose()
    chosen = {"CIFAR_REGISTRY": str(registry), "MODEL_VERSION": "1", "CIFAR_RECORDS_FOLDER": str(folder / "records")}
    with (
        (folder / "log").open("w") as log,
        _app(log, folder, **chosen) as process,
    ):
        address = f"http://127.0.0.1:{process.port}"
        with httpx.Client(base_url=address) as client:
            wait_until_ready(client)
        yield address
    assert [line for line in (folder / "log").read_text().splitlines() if " ERROR " in line] == []


@pytest.fixture(scope="session")
def small_version(tmp_path_factory: pytest.TempPathFactory):
    """Version 1 of a 64x64 model of 3 classes, made by Keras 2, exported by our own command's function."""
    from cifar.training.export import export
    from cifar.training.source import read_source

    settings = Settings(registry=tmp_path_factory.mktemp("small"))
    source = read_source(
        ROOT / "tests/data/keras2_64px_3classes_logits.h5",
        settings,
        class_names=("circle", "square", "star"),
        logits=True,
    )
    return export(source, settings.registry, "shapes")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """A finished run of each network, trained when it is first asked for."""
    from test_train import colours, config

    from cifar.training.train import train

    runs = {}

    def of(arch: str) -> Path:
        if arch not in runs:
            runs[arch] = tmp_path_factory.mktemp(arch) / "run"
            train(config(arch, seed=5), colours(), runs[arch], h5=True)
        return runs[arch]

    return of


@pytest.fixture(scope="session")
def scored_run(tmp_path_factory: pytest.TempPathFactory):
    """A finished run on pictures that are red, green or blue, its data set, and the positions of the held-out images."""
    from test_train import colours

    from cifar.training.data import split_validation
    from cifar.training.train import train
    from cifar.training.work import TrainConfig

    dataset = colours(600)
    config = TrainConfig(epochs=2, batch_size=16, validation_split=0.2, seed=5)
    run = tmp_path_factory.mktemp("scored") / "run"
    train(config, dataset, run)
    return run, dataset, split_validation(dataset.train_labels, config.validation_split, config.seed)[1]


@pytest.fixture(scope="session")
def scored_version(tmp_path_factory: pytest.TempPathFactory, scored_run):
    """That run, exported: a version that tells what is out of distribution."""
    from cifar.training.export import export
    from cifar.training.source import read_source

    settings = Settings(registry=tmp_path_factory.mktemp("scored-registry"))
    return export(read_source(scored_run[0], settings), settings.registry, "colours")


_COSTLY_FIXTURES = {"browser", "whole", "scored_run", "scored_version"}


_ALONE = {
    f"test_{name}"
    for name in [
        "break",
        "container",
        "feedback",
        "limits",
        "live_versions",
        "monitoring",
        "nginx",
        "nginx_hostile",
        "several_hosts",
        "tfserving",
        "uploads",
        "workers",
    ]
}
"""Files that watch several processes under load, or kill them: beside another test, their patience would measure that one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that needs a browser or a training is slow, whatever it does itself; some files run alone."""
    for item in items:
        if item.path.stem in _ALONE:
            item.add_marker(pytest.mark.alone)
        if _COSTLY_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
