"""Answers kept by the image's digest."""

from __future__ import annotations

import asyncio
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support.pictures import encoded, noise
from support.servers import real_redis

from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.serving.inference.cache import AnswerCache
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.process.metrics import CACHE
from cifar.serving.process.redis import SharedRedis, shared_redis
from cifar.settings import Settings

PHOTO, OTHER = encoded(noise(40, 40, seed=1)), encoded(noise(40, 40, seed=2))


@pytest.fixture
def versions(tmp_path, small_version) -> LoadedVersions:
    """Versions 1 and 2 of one network, which says the same of everything."""
    for number in (1, 2):
        folder = tmp_path / "shapes" / str(number)
        shutil.copytree(small_version.path, folder)
        manifest = json.loads((folder / "manifest.json").read_text()) | {"version": number}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    registry = Registry(tmp_path, "shapes")
    versions = LoadedVersions(registry, Settings(model_version=1))
    versions.load_default()
    for number in (1, 2):
        count_calls(versions.get(number).predictor)
    return versions


def count_calls(predictor: Predictor) -> None:
    """Count how often the model is asked."""
    infer, predictor.calls = predictor._infer, 0

    def counting(images: np.ndarray) -> np.ndarray:
        predictor.calls += 1
        return infer(images)

    predictor._infer = counting


def cache(images: int = 10, redis: SharedRedis | None = None) -> AnswerCache:
    return AnswerCache(images=images, lifetime_seconds=60, redis=redis)


def ask(classifier: Classifier, payload: bytes = PHOTO, **parameters: object):
    return asyncio.run(classifier.classify(payload, channel="rest", **parameters))


@pytest.mark.parametrize("quick", [True, False])
def test_the_same_file_is_asked_of_the_model_once(versions, quick):
    """At once or in turn; the number of labels is the answer's affair, not the model's."""
    predictor = versions.get().predictor
    predictor.quick = quick
    classifier = Classifier(versions, Settings(), cache())
    first, second = ask(classifier), ask(classifier, top_k="1")
    assert predictor.calls == 1
    assert first.prediction.class_scores == second.prediction.class_scores
    assert np.array_equal(first.seen, second.seen)
    assert (first.inference_ms is None, second.inference_ms is None) == (False, True)
    assert len(second.prediction.top_k) == 1
    ask(classifier, OTHER)
    assert predictor.calls == 2


@pytest.mark.parametrize("side", [40, 400])
def test_an_image_asked_twice_counts_as_one_miss_and_one_hit(versions, side):
    """Also one that is small as a file and too large to be decoded at once: it is looked for twice."""
    versions.get().predictor.quick = True
    classifier, payload = Classifier(versions, Settings(), cache()), encoded(Image.new("RGB", (side, side)))

    def counted() -> list[float]:
        return [CACHE.labels("local", result)._value.get() for result in ("miss", "hit")]

    misses, hits = counted()
    for _ in range(2):
        ask(classifier, payload)
    assert counted() == [misses + 1, hits + 1]


def test_no_answer_crosses_from_one_version_to_another(versions):
    """The same file, another version: another answer, and its number on it."""
    classifier = Classifier(versions, Settings(), cache())
    assert [ask(classifier, version=number).version for number in (1, 2, 1, 2)] == [1, 2, 1, 2]
    assert [versions.get(number).predictor.calls for number in (1, 2)] == [1, 1]


def test_a_version_exported_anew_under_its_number_is_another_one(versions):
    """What counts is when it was made, not what it is called."""
    one = versions.get().predictor
    manifest = one.version.manifest.model_copy(update={"created": "2030-01-01T00:00:00Z"})
    again = Predictor(type(one.version)(one.version.path, manifest), one._infer, engine="again")
    assert cache().key(PHOTO, one) != cache().key(PHOTO, again)


def test_the_cache_holds_no_more_than_the_setting_and_can_be_off(versions):
    """The longest unused goes; zero keeps nothing."""
    predictor = versions.get().predictor
    classifier = Classifier(versions, Settings(), cache(images=1))
    for payload in (PHOTO, OTHER, PHOTO):
        ask(classifier, payload)
    assert predictor.calls == 3
    off = Classifier(versions, Settings(), cache(images=0))
    ask(off)
    ask(off)
    assert predictor.calls == 5


def test_an_answer_of_one_process_is_known_to_another_through_redis(versions, tmp_path):
    """Slow models gain from it; what is not an answer under its name is passed over."""
    predictor = versions.get().predictor
    predictor.quick = False

    async def run(url: str) -> list[float | None]:
        redis = shared_redis(Settings(redis_url=url))
        one = Classifier(versions, Settings(), cache(redis=redis))
        two = Classifier(versions, Settings(), cache(redis=redis))
        three = Classifier(versions, Settings(), cache(redis=redis))
        first = await one.classify(PHOTO, channel="rest")
        await asyncio.gather(*one._cache._sharing)
        second = await two.classify(PHOTO, channel="rest")
        assert second.prediction == first.prediction
        assert np.array_equal(second.seen, first.seen)
        (key,) = await redis.client.keys("cifar:answer:*")
        assert 0 < await redis.client.ttl(key) <= 3600
        await redis.client.set(key, b"nonsense")
        third = await three.classify(PHOTO, channel="rest")
        assert third.prediction == first.prediction
        await asyncio.gather(*three._cache._sharing)
        await redis.client.aclose()
        return [answer.inference_ms for answer in (first, second, third)]

    with real_redis(tmp_path) as url:
        took = asyncio.run(run(url))
    assert [ms is None for ms in took] == [False, True, False]
    assert predictor.calls == 2
