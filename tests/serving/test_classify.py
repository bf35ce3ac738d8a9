"""`cifar.serving.inference.classify`: at once or in turn, never too many, never too long."""

from __future__ import annotations

import asyncio
import io
import threading

import numpy as np
import pytest
from PIL import Image
from support.pictures import encoded, noise
from support.servers import NO_CACHE

from cifar.errors import BadParameter, CallerLeft, Overloaded, WaitedTooLong
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.serving.inference.batcher import Batcher
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.loaded import LoadedVersions, Served
from cifar.serving.process.metrics import VersionCounts
from cifar.settings import Settings


class GatedModel:
    """Answers evenly, once its gate is open; counts who came in."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.inside = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.inside += len(images)
        assert self.gate.wait(20)
        return np.full((len(images), 3), 1 / 3, np.float32)


@pytest.fixture
def versions(small_version) -> LoadedVersions:
    """The 64x64 model, loaded."""
    registry = Registry(small_version.path.parent.parent, "shapes")
    versions = LoadedVersions(registry, Settings())
    versions.load_default()
    return versions


@pytest.fixture
def model(versions) -> GatedModel:
    """A slow model in place of the loaded one."""
    model = GatedModel()
    predictor = Predictor(versions.default, model, engine="gated")
    versions._state.live[1] = Served(predictor, Batcher(model, largest=1), VersionCounts(1, predictor.class_names))
    return model


PHOTO = encoded(noise(40, 40))


def test_an_image_gets_the_same_answer_at_once_or_in_turn(versions):
    """Small and large files, on a version that is quick or slow."""
    classifier = Classifier(versions, Settings(), NO_CACHE)
    predictor = versions.get().predictor
    for payload in (PHOTO, encoded(noise(900, 900)), encoded(noise(200, 300), "JPEG")):
        answers = []
        for quick in (True, False):
            predictor.quick = quick
            answers.append(asyncio.run(classifier.classify(payload, channel="rest", top_k="2")).as_json())
        assert answers[0] == answers[1]
        assert len(answers[0]["top_k"]) == 2


def test_only_what_takes_about_a_millisecond_is_decoded_in_the_event_loop(versions):
    """Many pixels, or a JPEG in many scans, would keep the other requests waiting."""
    classifier = Classifier(versions, Settings(), NO_CACHE)
    predictor = versions.get().predictor
    progressive = io.BytesIO()
    noise(100, 100).save(progressive, "JPEG", progressive=True)
    plain = Image.new("RGB", (400, 400))
    assert classifier._decode_at_once(PHOTO, predictor) is not None
    assert classifier._decode_at_once(encoded(noise(100, 100), "JPEG"), predictor) is not None
    assert classifier._decode_at_once(encoded(Image.new("RGB", (1024, 1024)), "JPEG"), predictor) is not None
    assert classifier._decode_at_once(encoded(plain), predictor) is None
    assert classifier._decode_at_once(progressive.getvalue(), predictor) is None


def test_more_images_than_may_wait_are_refused_at_once(versions, model):
    """503 for the newcomer, an answer for those who were there before."""
    classifier = Classifier(versions, Settings(max_waiting_images=3), NO_CACHE)

    async def ask():
        asked = [asyncio.create_task(classifier.classify(PHOTO, channel="rest")) for _ in range(5)]
        await asyncio.sleep(0.1)
        model.gate.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert [type(error) for error in refused] == [Overloaded, Overloaded]
    assert "3 images are waiting" in str(refused[0])
    assert (refused[0].status, refused[0].retry_after_seconds) == (503, 1)
    assert model.inside == 3
    assert classifier._waiting == 0


def test_who_waits_longer_than_the_limit_is_told_and_leaves(versions, model):
    """No request hangs; the model is not asked for somebody who is gone."""
    classifier = Classifier(versions, Settings(max_wait_seconds=0.1), NO_CACHE)

    async def ask():
        asked = [asyncio.create_task(classifier.classify(PHOTO, channel="rest")) for _ in range(4)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        model.gate.set()
        await asyncio.sleep(0.1)
        return answers

    answers = asyncio.run(ask())
    assert [type(error) for error in answers] == [WaitedTooLong] * 4
    assert "within 0.1 seconds" in str(answers[0])
    assert model.inside == 1, "three had not reached the model"
    assert classifier._waiting == 0


def test_a_caller_who_leaves_takes_their_image_along(versions, model):
    """Closing the connection frees the place in the line."""
    classifier = Classifier(versions, Settings(), NO_CACHE)

    async def ask():
        first = asyncio.create_task(classifier.classify(PHOTO, channel="rest"))
        gone = asyncio.Event()
        second = asyncio.create_task(classifier.classify(PHOTO, channel="rest", disconnected=gone.wait))
        await asyncio.sleep(0.05)
        gone.set()
        with pytest.raises(CallerLeft):
            await second
        model.gate.set()
        return await first

    assert asyncio.run(ask()).prediction.top_k[0][1] == pytest.approx(1 / 3)
    assert model.inside == 1
    assert classifier._waiting == 0


def test_a_wrong_number_of_labels_is_refused_in_both_ways(versions):
    """Nine of three classes."""
    classifier = Classifier(versions, Settings(), NO_CACHE)
    for quick in (True, False):
        versions.get().predictor.quick = quick
        with pytest.raises(BadParameter, match="from 1 to 3"):
            asyncio.run(classifier.classify(PHOTO, channel="rest", top_k="9"))
