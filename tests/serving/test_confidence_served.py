"""`ood_score` and `in_distribution`: in every answer, by every way in, kept with it, and counted."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.pictures import encoded, noise
from support.servers import NO_CACHE, real_redis, wait_until_ready

from cifar.models.manifest import OOD_THRESHOLD
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.serving.inference.cache import AnswerCache
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.process.redis import shared_redis
from cifar.settings import ROOT, Settings

STRANGE = encoded(noise(32, 32))


@pytest.fixture
def familiar(scored_run) -> bytes:
    """An image of the kind that the version was trained on."""
    _, dataset, held_out = scored_run
    return encoded(Image.fromarray(dataset.train_images[held_out[len(held_out) // 2]]))


@pytest.fixture
def versions(scored_version) -> LoadedVersions:
    """The version with scores, loaded."""
    registry = Registry(scored_version.path.parent.parent, scored_version.name)
    versions = LoadedVersions(registry, Settings())
    versions.load_default()
    return versions


def ask(classifier: Classifier, payload: bytes) -> dict:
    return asyncio.run(classifier.classify(payload, channel="rest")).as_json()


@pytest.mark.parametrize("engine", ["tensorflow", "litert"])
def test_a_predictor_tells_the_familiar_from_the_strange(scored_version, scored_run, engine):
    """On either engine, in a batch as alone; probabilities keep their shape."""
    _, dataset, held_out = scored_run
    predictor = Predictor.load(scored_version, engine)
    strange = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    images = np.concatenate([dataset.train_images[held_out], strange])
    together = predictor.predict(images, top_k=1)
    assert np.mean([answer.in_distribution for answer in together[:-4]]) > 0.9
    assert [answer.in_distribution for answer in together[-4:]] == [False] * 4
    assert all(answer.in_distribution == (answer.ood_score <= OOD_THRESHOLD) for answer in together)
    (alone,) = predictor.predict(images[-1:], top_k=1)
    assert alone.ood_score == pytest.approx(together[-1].ood_score, rel=1e-3)
    assert predictor.answers(images).shape == (len(images), 4)


@pytest.mark.parametrize("quick", [True, False])
def test_the_score_is_answered_at_once_in_turn_and_from_the_cache(versions, familiar, quick):
    """The same file, the same score, whether the model was asked or not."""
    versions.get().predictor.quick = quick
    fresh = Classifier(versions, Settings(), NO_CACHE)
    kept = Classifier(versions, Settings(), AnswerCache(images=5, lifetime_seconds=60, redis=None))
    for payload, expected in ((familiar, True), (STRANGE, False)):
        answer = ask(fresh, payload)
        assert answer["in_distribution"] is expected
        assert answer["ood_score"] == round(answer["ood_score"], 4)
        assert ask(kept, payload) == ask(kept, payload) == answer


def test_redis_keeps_the_score_with_the_answer(versions, tmp_path):
    """Another worker that finds the answer there says the same of it."""
    versions.get().predictor.quick = False

    async def run(url: str) -> None:
        redis = shared_redis(Settings(redis_url=url))
        one, two = (AnswerCache(images=10, lifetime_seconds=60, redis=redis) for _ in range(2))
        first = await Classifier(versions, Settings(), one).classify(STRANGE, channel="rest")
        await asyncio.gather(*one._sharing)
        second = await Classifier(versions, Settings(), two).classify(STRANGE, channel="rest")
        assert second.inference_ms is None, "it came from Redis"
        assert second.prediction == first.prediction
        assert second.prediction.in_distribution is False
        await redis.client.aclose()

    with real_redis(tmp_path) as url:
        asyncio.run(run(url))


def test_a_version_without_scores_answers_null_by_rest_and_by_gradio(api):
    """Null is not `in distribution`: version 1 does not know."""
    answer = api.post("/predict?version=1", files={"image": STRANGE}).json()
    assert (answer["ood_score"], answer["in_distribution"]) == (None, None)


def test_the_documentation_of_the_api_explains_both_fields(api):
    """Whoever generates a client from OpenAPI sees that both may be null, and what they mean."""
    properties = api.get("/openapi.json").json()["components"]["schemas"]["Answer"]["properties"]
    for name in ("ood_score", "in_distribution"):
        assert {"type": "null"} in properties[name]["anyOf"]
        assert "Null" in properties[name]["description"]


def test_rest_and_metrics_tell_the_share_out_of_distribution(scored_version, familiar):
    """The whole app on a version with scores: two images of which one is strange, and a counter that says so."""
    from app import create_app

    settings = Settings(registry=scored_version.path.parent.parent, model_name=scored_version.name)
    with TestClient(create_app(settings)) as client:
        wait_until_ready(client)
        before = counted(client)
        inside, outside = (client.post("/predict", files={"image": image}).json() for image in (familiar, STRANGE))
        assert (inside["in_distribution"], outside["in_distribution"]) == (True, False)
        assert inside["ood_score"] < 1 < outside["ood_score"]
        assert counted(client) == before + 1


def counted(client: TestClient) -> float:
    """How many images were out of distribution, of this process's versions, their series being there from the first."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    values = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "cifar_out_of_distribution_total"
    ]
    assert values
    return sum(values)


def test_the_command_line_says_in_words_that_an_image_is_of_none_of_the_classes(scored_version, familiar, tmp_path):
    """Words on stderr, so that the table stays one; fields in JSON."""
    files = {"familiar.png": familiar, "strange.png": STRANGE}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    registry = {"CIFAR_REGISTRY": str(scored_version.path.parent.parent), "CIFAR_MODEL_NAME": scored_version.name}

    def predict(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cifar", "predict", *(str(tmp_path / name) for name in files), *options]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, **registry}, capture_output=True, text=True, check=True
        )

    table = predict()
    assert len(table.stdout.splitlines()) == 2
    assert f"cifar: {tmp_path}/strange.png is unlike the training images" in table.stderr
    assert "familiar.png is unlike" not in table.stderr
    rows = json.loads(predict("--json").stdout)
    assert [row["in_distribution"] for row in rows] == [True, False]
    assert rows[0]["ood_score"] < 1 < rows[1]["ood_score"]
