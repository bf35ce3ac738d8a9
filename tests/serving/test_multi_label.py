"""A multi-label version: each class has a probability of its own, in every place where answers are shown or used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import keras
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from support.pictures import encoded
from support.samples import copy_version
from support.servers import NO_CACHE, wait_until_ready
from support.waiting import until_async

from app import create_app
from cifar.cli.main import main
from cifar.errors import DataError
from cifar.models.heatmap import heat
from cifar.models.predictor import Prediction, Predictor
from cifar.models.registry import Registry, Version
from cifar.models.rollout import RolloutLog
from cifar.serving.inference.classify import Classification, Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.inference.service import Service
from cifar.serving.inference.shadow import ShadowComparison, Shadows
from cifar.serving.page.answer import answer_html
from cifar.serving.page.model_tab import model_html
from cifar.settings import Settings
from cifar.training.data.dataset import Dataset
from cifar.training.export.source import read_source
from cifar.training.export.write import export
from cifar.training.report.evaluate import evaluate

COLOURS = ("red", "green", "blue")
YELLOW = encoded(Image.new("RGB", (16, 16), (255, 255, 0)))


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """A network whose classes red, green and blue are probable where the image has much of that colour."""
    dense = keras.layers.Dense(3, activation="sigmoid")
    model = keras.Sequential(
        [
            keras.layers.Input((16, 16, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            dense,
        ]
    )
    dense.set_weights([np.eye(3) * 6, np.full(3, -3.0)])
    return model


@pytest.fixture(scope="module")
def version(network, tmp_path_factory) -> Version:
    """Version 1 of `network`, exported without an option that says what it is."""
    registry = tmp_path_factory.mktemp("multi-label")
    network.save(registry / "given.keras")
    source = read_source(registry / "given.keras", Settings(), class_names=COLOURS, input_range=(0.0, 255.0))
    return export(source, registry / "models", "colours")


@pytest.fixture(scope="module")
def client(version, tmp_path_factory) -> Iterator[TestClient]:
    settings = Settings(
        registry=version.path.parent.parent, model_name="colours", records_folder=tmp_path_factory.mktemp("records")
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def predict(client: TestClient, payload: bytes) -> dict:
    return client.post("/predict", content=payload, headers={"Content-Type": "image/png"}).json()


def test_an_answer_has_the_probabilities_of_keras_and_no_softmax(client, network):
    """A yellow image is red and green. A softmax over sigmoids would halve both."""
    answer = predict(client, YELLOW)
    pixels = np.zeros((1, 16, 16, 3), np.float32)
    pixels[..., :2] = 255
    (expected,) = network.predict(pixels, verbose=0)
    np.testing.assert_allclose(answer["class_scores"], expected, atol=1e-5)
    assert sum(answer["class_scores"]) > 1.9
    assert [each["label"] for each in answer["top_k"]] == ["red", "green", "blue"]
    assert (answer["predicted_class"], answer["in_distribution"]) == ("red", None)
    call = client.post("/v1/models/colours:predict", json={"instances": [[[[1, 1, 0]] * 16] * 16]}).json()
    np.testing.assert_allclose(call["predictions"][0], expected, atol=1e-5)


def test_several_views_are_averaged_for_each_class_by_itself(client):
    """A mirrored yellow image is yellow, so the answer stays; the probabilities must not be made to add up to 1."""
    scores = predict(client, YELLOW)["class_scores"]
    for views in (2, 6):
        answer = client.post(f"/predict?views={views}", content=YELLOW, headers={"Content-Type": "image/png"}).json()
        assert answer["class_scores"] == pytest.approx(scores, abs=1e-5)


def test_the_manifest_and_the_descriptions_say_multi_label(version, client, capsys):
    """A client of single-label versions relies on probabilities that add up to 1. An old reader must not misread the manifest."""
    assert (version.manifest.task, version.manifest.format) == ("multi_label", 2)
    described = client.get("/openapi.json").json()["components"]["schemas"]["Answer"]["properties"]["class_scores"]
    assert "multi-label" in described["description"]
    assert main(["inspect", str(version.path)]) == 0
    assert "multi-label: each class has a probability of its own" in capsys.readouterr().out
    settings = Settings(registry=version.path.parent.parent, model_name="colours")
    versions = LoadedVersions(Registry(settings.registry, "colours"), settings)
    versions.load_default()
    service = Service.over(RecordedClassifier(Classifier(versions, settings, NO_CACHE)), settings)
    assert asyncio.run(service.models())["versions"][0]["task"] == "multi_label"
    assert "Each class has a probability of its own" in model_html(version.manifest)
    assert "how probable each of its 3 classes is: red, green, blue" in client.get("/").text


def test_a_single_label_version_keeps_the_format_that_older_releases_read(small_version):
    """Only what they would misread is refused by them."""
    assert (small_version.manifest.task, small_version.manifest.format) == ("single_label", 1)


def test_feedback_is_refused_because_it_names_one_right_class(client):
    """Otherwise the A/B report would show an accuracy that means nothing."""
    request_id = predict(client, YELLOW)["request_id"]
    refused = client.post("/feedback", json={"request_id": request_id, "label": "red"})
    assert refused.status_code == 422
    assert "Version 1 is multi-label: an image can show several of its classes" in refused.json()["error"]


def test_the_page_shows_each_bar_by_itself_and_asks_for_no_feedback(version):
    """One right class cannot be named."""
    prediction = Prediction(
        {"red": 0.95, "green": 0.94, "blue": 0.05}, [("red", 0.95), ("green", 0.94)], multi_label=True
    )
    answer = Classification("colours", 1, prediction, np.zeros((1, 8, 8, 3), np.uint8), 1.25, "digest")
    page = answer_html(answer, manifest=version.manifest, explains=True, request_id="a")
    assert "--share:0.9500" in page
    assert "--share:0.9400" in page
    assert "Each class has a probability of its own" in page
    assert "data-request" not in page


def test_a_heat_map_depends_on_the_odds_of_its_own_class(client):
    """The left half is red, the right half green. The classes do not compete, so the map of red covers the left half alone."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8, 0], pixels[:, 8:, 1] = 255, 255
    payload = encoded(Image.fromarray(pixels))
    form = {"files": {"image": ("a.png", payload)}, "data": {"label": "green"}}
    answer = client.post("/explain", **form).json()
    assert answer["label"] == "green"
    map_ = np.array(answer["heat"])
    assert map_[:, 9:].mean() > 3 * map_[:, :7].mean()


def test_a_saturated_probability_does_not_turn_rounding_into_heat():
    """In float32 a sigmoid rounds to 1; one step below 1 is no sign of importance."""
    rows = np.full((82, 2), 1, np.float32)
    rows[40:50, 0] = np.nextafter(np.float32(1), np.float32(0))
    assert not heat(rows, 0, 16, 16, multi_label=True).any()


def test_the_distance_to_a_shadow_version_is_that_of_the_class_that_differs_most(version, tmp_path):
    """The total variation distance of two distributions does not exist for probabilities that do not add up to 1."""
    registry = Registry(tmp_path, "colours")
    for number in (1, 2):
        copy_version(version.path, registry.base / str(number), version=number)
    log, found = RolloutLog(registry), list[ShadowComparison]()
    log.promote(1, by="ada", check_loadable=Predictor.load)
    log.label("canary", 2, by="ada")
    log.split({"stable": 100}, shadow={"canary": 100}, by="ada")
    versions = LoadedVersions(registry, Settings())
    versions.load_default()
    prediction = Prediction({"red": 0.953, "green": 0.653, "blue": 0.047}, [("red", 0.953)], multi_label=True)
    seen = np.zeros((16, 16, 3), np.uint8)
    seen[..., :2] = 255
    answer = Classification("colours", 1, prediction, seen[None], 1.0, "digest")

    async def ask() -> None:
        shadows = Shadows(versions, on_comparison=found.append)
        shadows.ask("a", answer)
        await until_async(lambda: asyncio.sleep(0, not shadows.pending))

    asyncio.run(ask())
    assert found[0].distance == pytest.approx(0.3, abs=0.01)


def test_accuracy_is_refused_where_a_data_set_has_one_class_for_each_image(version):
    """The class of an image says nothing about the other classes that it may show."""
    images, labels = np.zeros((3, 16, 16, 3), np.uint8), np.arange(3)
    dataset = Dataset("colours", COLOURS, images, labels, images, labels)
    with pytest.raises(DataError, match="Version 1 is multi-label"):
        evaluate(Predictor.load(version), dataset)
