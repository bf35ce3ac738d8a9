"""`cifar.serving.inference.cache`: answers are cached by the content of the image file."""

from __future__ import annotations

import asyncio
from functools import partial

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from support.databases import real_redis
from support.pictures import encoded, noise
from support.samples import copy_version
from support.waiting import until_async

from cifar.models.engines import load_engine
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.serving.inference.cache import AnswerCache, file_digest
from cifar.serving.inference.classify import Classification, Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.process.redis import SharedRedis
from cifar.settings import Settings

PHOTO, OTHER = encoded(noise(40, 40, seed=1)), encoded(noise(40, 40, seed=2))


class CountingModel:
    """A version's network that counts how often it is asked."""

    def __init__(self, version: Version) -> None:
        self.calls = 0
        _, self._infer = load_engine(version, "litert", threads=1)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self._infer(images)


@pytest.fixture
def models() -> dict[int, CountingModel]:
    """The networks of the loaded versions, by number."""
    return {}


@pytest.fixture
def versions(tmp_path, small_version, models) -> LoadedVersions:
    """Versions 1 and 2 of one network, which give the same answers."""
    for number in (1, 2):
        copy_version(small_version.path, tmp_path / "shapes" / str(number), version=number)

    def load(version: Version) -> Predictor:
        models[version.number] = CountingModel(version)
        return Predictor(version, models[version.number], engine="counting")

    versions = LoadedVersions(Registry(tmp_path, "shapes"), Settings(model_version=1), load=load)
    versions.load_default()
    return versions


def classify(classifier: Classifier, payload: bytes = PHOTO, **parameters: object) -> Classification:
    return asyncio.run(classifier.classify(payload, channel="rest", **parameters))


@pytest.mark.parametrize("side", [40, 900])
def test_the_model_is_asked_once_about_the_same_file(versions, models, side):
    """This holds for small and large files and for any `top_k`, because the cache holds the model's whole answer."""
    classifier, payload = Classifier(versions, Settings(), AnswerCache(images=10)), encoded(noise(side, side))
    first, second = classify(classifier, payload), classify(classifier, payload, top_k=1)
    assert models[1].calls == 1
    assert first.prediction.class_scores == second.prediction.class_scores
    assert np.array_equal(first.seen, second.seen)
    assert (first.inference_ms is None, second.inference_ms is None) == (False, True)
    assert len(second.prediction.top_k) == 1
    classify(classifier, OTHER)
    assert models[1].calls == 2


@pytest.mark.parametrize("side", [40, 400])
def test_an_image_sent_twice_counts_as_one_miss_and_one_hit(versions, side):
    """Each image is looked up once, also a small file with many pixels, which is decoded in a thread."""
    classifier = Classifier(versions, Settings(), AnswerCache(images=10))
    payload = encoded(Image.new("RGB", (side, side)))

    def counted() -> list[float]:
        labels = ({"store": "local", "result": result} for result in ("miss", "hit"))
        return [REGISTRY.get_sample_value("cifar_cache_total", each) or 0 for each in labels]

    misses, hits = counted()
    for _ in range(2):
        classify(classifier, payload)
    assert counted() == [misses + 1, hits + 1]


def test_a_version_never_gets_the_cached_answer_of_another_version(versions, models):
    """The version is part of the key, and each answer has its number."""
    classifier = Classifier(versions, Settings(), AnswerCache(images=10))
    assert [classify(classifier, version=number).version for number in (1, 2, 1, 2)] == [1, 2, 1, 2]
    assert [models[number].calls for number in (1, 2)] == [1, 1]


def test_a_version_that_is_exported_again_under_its_number_has_other_keys(versions, models):
    """The time of its creation is part of the key."""
    one = versions.get().predictor
    manifest = one.version.manifest.model_copy(update={"created": "2030-01-01T00:00:00Z"})
    again = Predictor(type(one.version)(one.version.path, manifest), models[1], engine="again")
    cache, digest = AnswerCache(images=10), file_digest(PHOTO)
    assert cache.key(digest, one) != cache.key(digest, again)


def test_the_cache_holds_no_more_answers_than_the_setting_allows_and_can_be_off(versions, models):
    """The least recently used answer is dropped; zero turns the cache off."""
    classifier = Classifier(versions, Settings(), AnswerCache(images=1))
    for payload in (PHOTO, OTHER, PHOTO):
        classify(classifier, payload)
    assert models[1].calls == 3
    off = Classifier(versions, Settings(), AnswerCache(images=0))
    classify(off)
    classify(off)
    assert models[1].calls == 5


def test_an_answer_of_one_process_is_found_by_another_in_redis(versions, models, tmp_path):
    """A value in Redis that is no answer is ignored and replaced."""

    async def run(url: str) -> list[float | None]:
        redis = SharedRedis(url)
        one, two, three = (Classifier(versions, Settings(), AnswerCache(images=10, redis=redis)) for _ in range(3))
        first = await one.classify(PHOTO, channel="rest")
        await until_async(partial(redis.client.keys, "cifar:answer:*"))  # written in the background
        (key,) = await redis.client.keys("cifar:answer:*")
        second = await two.classify(PHOTO, channel="rest")
        assert second.prediction == first.prediction
        assert np.array_equal(second.seen, first.seen)
        assert 0 < await redis.client.ttl(key) <= 3600
        content = await redis.client.get(key)
        for nonsense in (b"nonsense", b"\xff" * len(content), content + second.seen.tobytes() * 1000):
            await redis.client.set(key, nonsense)
            third = await three.classify(PHOTO, channel="rest")
            assert third.prediction == first.prediction
            await until_async(partial(is_replaced, redis.client, key, nonsense))
            three = Classifier(versions, Settings(), AnswerCache(images=10, redis=redis))
        await redis.client.aclose()
        return [answer.inference_ms for answer in (first, second, third)]

    with real_redis(tmp_path) as url:
        milliseconds = asyncio.run(run(url))
    assert [ms is None for ms in milliseconds] == [False, True, False]
    assert models[1].calls == 4


async def is_replaced(redis: Redis, key: bytes, nonsense: bytes) -> bool:
    return await redis.get(key) != nonsense
