"""`ood_score`, `in_distribution` and `grade` in every answer: on all channels, from the cache, and in the metrics."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.cli import cifar
from support.databases import real_redis
from support.pictures import encoded, noise
from support.servers import NO_CACHE, wait_until_ready
from support.waiting import until_async

from app import create_app
from cifar.models.manifest import OOD_THRESHOLD
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.serving.inference.cache import AnswerCache
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.process.redis import SharedRedis
from cifar.settings import Settings

UNFAMILIAR = encoded(noise(32, 32))


@pytest.fixture
def familiar(scored_run) -> bytes:
    """An image of the kind that the version was trained on."""
    _, dataset, held_out = scored_run
    return encoded(Image.fromarray(dataset.train_images[held_out[len(held_out) // 2]]))


@pytest.fixture
def versions(scored_version) -> LoadedVersions:
    """The version with an OOD score, loaded."""
    registry = Registry(scored_version.path.parent.parent, scored_version.name)
    versions = LoadedVersions(registry, Settings())
    versions.load_default()
    return versions


def classify(classifier: Classifier, payload: bytes) -> dict:
    return asyncio.run(classifier.classify(payload, channel="rest")).as_json()


@pytest.mark.parametrize("engine", ["tensorflow", "litert"])
def test_a_predictor_separates_familiar_images_from_noise(scored_version, scored_run, engine):
    """Both engines do, and an image gets the same score alone and in a batch."""
    _, dataset, held_out = scored_run
    predictor = Predictor.load(scored_version, engine)
    unfamiliar = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    images = np.concatenate([dataset.train_images[held_out], unfamiliar])
    together = predictor.predict(images, top_k=1)
    assert np.mean([answer.in_distribution for answer in together[:-4]]) > 0.9
    assert [answer.in_distribution for answer in together[-4:]] == [False] * 4
    assert all(answer.in_distribution == (answer.ood_score <= OOD_THRESHOLD) for answer in together)
    (alone,) = predictor.predict(images[-1:], top_k=1)
    assert alone.ood_score == pytest.approx(together[-1].ood_score, rel=1e-3)
    assert predictor.answers(images).shape == (len(images), 4)


def test_the_ood_score_of_an_image_is_the_same_from_the_model_and_from_the_cache(versions, familiar):
    """A cached answer must not lose the score."""
    uncached = Classifier(versions, Settings(), NO_CACHE)
    cached = Classifier(versions, Settings(), AnswerCache(images=5))
    for payload, expected in ((familiar, True), (UNFAMILIAR, False)):
        answer = classify(uncached, payload)
        assert answer["in_distribution"] is expected
        assert answer["ood_score"] == round(answer["ood_score"], 4)
        assert answer["grade"] == ("class" if expected else "none")
        assert classify(cached, payload) == classify(cached, payload) == answer


def test_the_ood_score_is_stored_in_redis_with_the_answer(versions, tmp_path):
    """Another worker that finds the answer there gives the same one."""

    async def run(url: str) -> None:
        redis = SharedRedis(url)
        one, two = (Classifier(versions, Settings(), AnswerCache(images=10, redis=redis)) for _ in range(2))
        first = await one.classify(UNFAMILIAR, channel="rest")
        await until_async(partial(redis.client.keys, "cifar:answer:*"))  # written in the background
        second = await two.classify(UNFAMILIAR, channel="rest")
        assert second.inference_ms is None, "it came from Redis"
        assert second.prediction == first.prediction
        assert second.prediction.in_distribution is False
        await redis.client.aclose()

    with real_redis(tmp_path) as url:
        asyncio.run(run(url))


def test_a_version_without_an_ood_score_answers_null_over_rest(api):
    """Null means that version 1 cannot tell, not that the image is in distribution."""
    answer = api.post("/predict?version=1", files={"image": UNFAMILIAR}).json()
    assert (answer["ood_score"], answer["in_distribution"], answer["grade"]) == (None, None, "class")


def test_the_documentation_of_the_api_explains_both_fields(api):
    """A client that is generated from OpenAPI must know that both may be null."""
    properties = api.get("/openapi.json").json()["components"]["schemas"]["Answer"]["properties"]
    for name in ("ood_score", "in_distribution"):
        assert {"type": "null"} in properties[name]["anyOf"]
        assert "Null" in properties[name]["description"]


def test_images_out_of_distribution_are_marked_in_answers_and_counted_in_metrics(scored_version, familiar):
    """The whole app with a version that has an OOD score, and two images, of which one is out of distribution."""
    settings = Settings(registry=scored_version.path.parent.parent, model_name=scored_version.name)
    with TestClient(create_app(settings, page=False)) as client:
        wait_until_ready(client)
        before = counted(client)
        inside, outside = (client.post("/predict", files={"image": image}).json() for image in (familiar, UNFAMILIAR))
        assert (inside["in_distribution"], outside["in_distribution"]) == (True, False)
        assert inside["ood_score"] < 1 < outside["ood_score"]
        assert counted(client) == before + 1


def counted(client: TestClient) -> float:
    """Return the number of images out of distribution, of all versions. The series must exist from the start."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    values = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "cifar_out_of_distribution_total"
    ]
    assert values
    return sum(values)


def test_the_command_line_warns_that_an_image_is_probably_none_of_the_classes(scored_version, familiar, tmp_path):
    """The warning goes to stderr, so that stdout stays a table; JSON has fields for it."""
    files = {"familiar.png": familiar, "noise.png": UNFAMILIAR}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    registry = {"CIFAR_REGISTRY": str(scored_version.path.parent.parent), "CIFAR_MODEL_NAME": scored_version.name}

    paths = [tmp_path / name for name in files]
    table = cifar("predict", *paths, **registry)
    assert len(table.stdout.splitlines()) == 2
    assert f"cifar: {tmp_path}/noise.png is unlike the training images" in table.stderr
    assert "familiar.png is unlike" not in table.stderr
    rows = json.loads(cifar("predict", *paths, "--json", **registry).stdout)
    assert [row["in_distribution"] for row in rows] == [True, False]
    assert [row["grade"] for row in rows] == ["class", "none"]
    assert rows[0]["ood_score"] < 1 < rows[1]["ood_score"]
