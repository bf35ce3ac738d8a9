"""`cifar.serving.inference.classify`: one path for all images, with a bounded queue and a time limit."""

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
from cifar.images.decode import preprocess
from cifar.images.spec import ImageSpec
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.serving.inference.classify import Classifier, decode_small, whole_number
from cifar.serving.inference.loaded import LoadedVersions
from cifar.settings import Settings

PHOTO = encoded(noise(40, 40))
SPEC = ImageSpec(height=64, width=64, channels=3)


class GatedModel:
    """Gives every class the same probability, once its gate is open, and counts the images that it was asked about."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.images = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        assert self.gate.wait(20)
        return np.full((len(images), 3), 1 / 3, np.float32)


@pytest.fixture
def registry(small_version) -> Registry:
    """A registry with one 64x64 model of three classes."""
    return Registry(small_version.path.parent.parent, "shapes")


@pytest.fixture
def versions(registry) -> LoadedVersions:
    """The model, loaded."""
    versions = LoadedVersions(registry, Settings())
    versions.load_default()
    return versions


@pytest.fixture
def model() -> GatedModel:
    return GatedModel()


@pytest.fixture
def gated_versions(registry, model) -> LoadedVersions:
    """The same version, but answered by `model`, for one image at a time."""
    one_thread = Settings(workers=256)
    versions = LoadedVersions(registry, one_thread, load=lambda version: Predictor(version, model, engine="gated"))
    versions.load_default()
    return versions


def test_a_small_and_a_large_image_get_the_answer_of_the_model_to_the_decoded_image(versions):
    """Small files are decoded in the event loop and large ones in a thread; the answers must not depend on that."""
    classifier = Classifier(versions, Settings(), NO_CACHE)
    predictor = versions.get().predictor
    for payload in (PHOTO, encoded(noise(900, 900)), encoded(noise(200, 300), "JPEG")):
        (expected,) = predictor.predict(preprocess(payload, SPEC, max_pixels=10**7)[None], top_k=2)
        answer = asyncio.run(classifier.classify(payload, channel="rest", top_k=2))
        assert answer.prediction == expected
        assert len(answer.as_json()["top_k"]) == 2


def test_only_images_that_decode_in_about_a_millisecond_are_decoded_in_the_event_loop():
    """Many pixels, or a JPEG with many scans, would delay the other requests."""
    progressive = io.BytesIO()
    noise(100, 100).save(progressive, "JPEG", progressive=True)
    plain = Image.new("RGB", (400, 400))
    for payload, small in (
        (PHOTO, True),
        (encoded(noise(100, 100), "JPEG"), True),
        (encoded(Image.new("RGB", (1024, 1024)), "JPEG"), True),
        (encoded(plain), False),
        (progressive.getvalue(), False),
        (encoded(noise(200, 200)), False),
    ):
        assert (decode_small(payload, SPEC, max_pixels=10**7) is not None) is small


def test_images_beyond_the_queue_limit_are_refused_at_once(gated_versions, model):
    """The images that wait already are answered; the new ones get a 503."""
    classifier = Classifier(gated_versions, Settings(max_waiting_images=3), NO_CACHE)

    async def classify_five():
        tasks = [asyncio.create_task(classifier.classify(PHOTO, channel="rest")) for _ in range(5)]
        await asyncio.sleep(0.1)
        model.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(classify_five())
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert [type(error) for error in refused] == [Overloaded, Overloaded]
    assert "3 images are waiting" in str(refused[0])
    assert (refused[0].status, refused[0].retry_after_seconds) == (503, 1)
    assert model.images == 3
    assert classifier.queue.taken == 0


def test_an_image_that_waits_too_long_is_refused_and_leaves_the_queue(gated_versions, model):
    """No request hangs, and the model does not compute answers that nobody waits for."""
    classifier = Classifier(gated_versions, Settings(max_wait_seconds=0.1), NO_CACHE)

    async def classify_four():
        tasks = [asyncio.create_task(classifier.classify(PHOTO, channel="rest")) for _ in range(4)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        model.gate.set()
        await asyncio.sleep(0.1)
        return answers

    answers = asyncio.run(classify_four())
    assert [type(error) for error in answers] == [WaitedTooLong] * 4
    assert "within 0.1 seconds" in str(answers[0])
    assert model.images == 1, "three had not reached the model"
    assert classifier.queue.taken == 0


def test_an_image_is_removed_from_the_queue_when_its_client_disconnects(gated_versions, model):
    """The queue slot of a closed connection is free for another image."""
    classifier = Classifier(gated_versions, Settings(), NO_CACHE)

    async def classify_two():
        first = asyncio.create_task(classifier.classify(PHOTO, channel="rest"))
        gone = asyncio.Event()
        second = asyncio.create_task(classifier.classify(PHOTO, channel="rest", disconnected=gone.wait))
        await asyncio.sleep(0.05)
        gone.set()
        with pytest.raises(CallerLeft):
            await second
        model.gate.set()
        return await first

    assert asyncio.run(classify_two()).prediction.top_k[0][1] == pytest.approx(1 / 3)
    assert model.images == 1
    assert classifier.queue.taken == 0


def test_whole_numbers_are_parsed_where_a_request_comes_in():
    """Forms send digits, JSON sends numbers, and a slider sends nothing when it was not moved."""
    assert [whole_number("top_k", value) for value in (None, "", 3, "3", "-1")] == [None, None, 3, 3, -1]
    for value in ("many", "1.5", 1.5, True, "9" * 10, [3]):
        with pytest.raises(BadParameter, match="top_k must be a whole number"):
            whole_number("top_k", value)
