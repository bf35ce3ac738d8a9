"""Fixtures that several test files share: settings, running servers, small models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from inspect import signature
from pathlib import Path

import httpcore2
import httpx
import httpx._transports.default as httpx_transports
import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, sync_playwright
from support.node import install_js_client
from support.samples import open_records, write_a_day, write_two_versions
from support.servers import Server, need, running, wait_until_ready

from cifar.files import locked
from cifar.models.registry import Registry, Version
from cifar.settings import ROOT, Settings
from cifar.training.data.dataset import Dataset

# HTTP clients wait five seconds for an answer by default, which is too short where tests share two cores.
for get in (httpx2.get, httpx.get):  # `gradio_client` uses httpx
    signature(get).parameters["timeout"].default.read = 60

# Each client reads the certificates of all authorities, which takes 20 ms. The tests make thousands of clients.
httpcore2.default_ssl_context = cache(httpcore2.default_ssl_context)
httpx_transports.create_ssl_context = cache(httpx_transports.create_ssl_context)

# The machine's settings must not reach the tests; uploads and records go to temporary folders.
for name in [name for name in os.environ if name.startswith("CIFAR_") or name in {"PORT", "MODEL_VERSION"}]:
    del os.environ[name]
os.environ["CIFAR_UPLOADS"] = tempfile.mkdtemp(prefix="cifar-tests-")
os.environ["CIFAR_RECORDS_FOLDER"] = tempfile.mkdtemp(prefix="cifar-tests-")
Settings.model_config["env_file"] = None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seed", type=int, help="first seed of the generated files; default: another one each time")
    parser.addoption("--fuzz-seconds", type=float, default=3, help="how long to generate files; default: 3")


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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with one process and default settings."""
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server.address
        assert server.errors() == [], "no request of any test caused an error of the server's"


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two workers and default settings. A test may kill a worker, and then waits for its successor."""
    with running(tmp_path_factory.mktemp("two-workers"), workers=2) as server:
        yield server


@pytest.fixture(scope="session")
def two_version_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the two versions of `write_two_versions`, the first by default, and a day's records."""
    folder = tmp_path_factory.mktemp("two-versions")
    registry = write_two_versions(folder / "registry")
    engine = open_records(Settings(records_folder=folder / "records"))
    write_a_day(engine)
    engine.dispose()
    chosen = {"CIFAR_REGISTRY": str(registry), "MODEL_VERSION": "1", "CIFAR_RECORDS_FOLDER": str(folder / "records")}
    chosen["CIFAR_OPERATOR_TABS"] = "true"
    with running(folder, **chosen) as server:
        yield server.address
        assert server.errors() == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, with a camera that shows a test picture."""
    path = need("chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--use-fake-ui-for-media-stream"]
        yield playwright.chromium.launch(executable_path=path, args=[*options, "--use-fake-device-for-media-stream"])


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder of a test run that `make` fills. Of several test processes the first one fills it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with locked(folder / f"{name}.lock"):
        if not (folder / f"{name}.done").exists():
            (folder / name).mkdir(exist_ok=True)  # it exists if the first attempt failed
            make(folder / name)
            (folder / f"{name}.done").touch()
    return folder / name


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Gradio's JavaScript client."""
    return once(tmp_path_factory, "node", install_js_client)


@pytest.fixture(scope="session")
def small_version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Version 1 of a 64x64 model of 3 classes, trained by Keras 2 and exported by this project."""

    def make(registry: Path) -> None:
        from cifar.training.export.source import read_source
        from cifar.training.export.write import export

        source = read_source(
            ROOT / "tests/data/keras2_64px_3classes_logits.h5",
            Settings(registry=registry),
            class_names=("circle", "square", "star"),
            input_range=(0, 1),
            logits=True,
        )
        export(source, registry, "shapes")

    return Registry(once(tmp_path_factory, "small", make), "shapes").get(1)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns a finished run of an architecture. The first call trains it."""
    from support.runs import colours, config

    from cifar.training.run.train import train

    def run_of(arch: str) -> Path:
        def make(folder: Path) -> None:
            train(config(arch, seed=5), colours(), folder / "run", h5=True)

        return once(tmp_path_factory, arch, make) / "run"

    return run_of


@pytest.fixture(scope="session")
def scored_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset, np.ndarray]:
    """A finished run on images that are red, green or blue, its data set, and the positions of the held-out images."""
    from support.runs import colours

    from cifar.training.data.split import split_validation
    from cifar.training.run.config import TrainConfig
    from cifar.training.run.train import train

    dataset = colours(600)
    config = TrainConfig(epochs=2, batch_size=16, validation_split=0.2, seed=5)
    run = once(tmp_path_factory, "scored", lambda folder: train(config, dataset, folder / "run")) / "run"
    return run, dataset, split_validation(dataset.train_labels, config.validation_split, config.seed)[1]


@pytest.fixture(scope="session")
def scored_version(tmp_path_factory: pytest.TempPathFactory, scored_run) -> Version:
    """The export of `scored_run`: a version with an out-of-distribution score."""

    def make(registry: Path) -> None:
        from cifar.training.export.source import read_source
        from cifar.training.export.write import export

        export(read_source(scored_run[0], Settings(registry=registry)), registry, "colours")

    return Registry(once(tmp_path_factory, "scored-registry", make), "colours").get(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need a training, a browser or a server of their own as slow.

    Tests of training take longest. They come first, so that no process is left with them at the end.
    """
    expensive = {"browser", "whole", "scored_run", "scored_version", "closed_server", "two_workers"}
    items.sort(key=lambda item: item.path.parent.name != "training")
    for item in items:
        if expensive & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
