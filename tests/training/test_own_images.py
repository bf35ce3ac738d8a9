"""Your own images with the four commands of the README: from image files to answers on the page and by the API."""

from __future__ import annotations

import json

import httpx2
import keras
import numpy as np
import pytest
from gradio_client import Client, handle_file
from support import cli
from support.pictures import shapes_folder
from support.servers import running

from cifar.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
KINDS = ["disc", "square", "star"]


def cifar(*arguments: object, **environment: object) -> str:
    """Run a command, which must succeed, and return its stdout."""
    result = cli.cifar(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_three_classes_of_sixty_images_are_trained_exported_and_served(tmp_path):
    """After the four commands of the README, page, REST and gradio_client answer with the names of the folders."""
    shapes = shapes_folder(tmp_path / "shapes", train=60, test=20)
    held = json.loads(cifar("data", shapes, "--image-size", 32, "--json"))
    assert held["image"] == "32x32x3"
    assert held["train_images_by_class"] == dict.fromkeys(KINDS, 60)
    run = tmp_path / "run"
    options = ["--epochs", 5, "--validation-split", 0.2]
    cifar("train", "--data", shapes, "--out", run, *options)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test_images"] == 60
    assert metrics["test_accuracy"] > 0.6, "chance is a third"
    settings = {"CIFAR_REGISTRY": str(tmp_path / "registry"), "CIFAR_MODEL_NAME": "shapes"}
    assert cifar("export", run, **settings).strip() == str(tmp_path / "registry" / "shapes" / "1")
    files = [shapes / "test" / kind / "0.jpeg" for kind in KINDS]
    with running(tmp_path, workers=1, **settings) as server:
        address = server.address
        assert ", ".join(KINDS) in httpx2.get(address).text, "the page must name the classes"
        client = Client(address, verbose=False)
        for file in files:
            by_rest = httpx2.post(f"{address}/predict", files={"image": file.read_bytes()}).json()
            assert by_rest["labels"] == KINDS
            assert by_rest["predicted_class"] == by_rest["top_k"][0]["label"]
            assert by_rest["model"] == {"name": "shapes", "version": 1}
            by_gradio = client.predict(handle_file(file), api_name="/predict")
            assert by_gradio["class_scores"] == by_rest["class_scores"]
        refused = httpx2.post(f"{address}/predict", files={"image": files[0].read_bytes()}, data={"top_k": 4})
        assert refused.status_code == 422
        assert "top_k must be from 1 to 3" in refused.json()["error"]


def test_a_run_can_start_from_another_run_or_version(tmp_path, whole):
    """`--init-from` takes a run or a version with other classes, and config.json records it."""
    shapes = shapes_folder(tmp_path / "shapes", train=10, test=1)
    registry = {"CIFAR_REGISTRY": tmp_path / "registry", "CIFAR_MODEL_NAME": "colours"}
    version = cifar("export", whole("fast"), **registry).strip()
    for name, source in (("of-run", whole("fast")), ("of-version", version)):
        run = tmp_path / name
        assert (
            main(["train", "--data", str(shapes), "--out", str(run), "--epochs", "1", "--init-from", str(source)]) == 0
        )
        assert json.loads((run / "config.json").read_text())["config"]["init_from"] == str(source)
        kernel = keras.saving.load_model(run / "model.keras").get_layer("whiten").kernel
        np.testing.assert_array_equal(
            kernel, keras.saving.load_model(whole("fast") / "model.keras").get_layer("whiten").kernel
        )
    histories = [(tmp_path / name / "history.csv").read_text().splitlines() for name in ("of-run", "of-version")]
    without_seconds = [[line.rsplit(",", 1)[0] for line in history] for history in histories]
    assert without_seconds[0] == without_seconds[1], "a run and its version have the same weights"
