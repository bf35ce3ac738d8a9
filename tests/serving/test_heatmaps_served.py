"""`cifar.serving.inference.heatmaps`: heat maps beside predictions, their limit, and callers that disconnect."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from support.pictures import encoded, noise
from support.servers import CAT, NO_CACHE

from cifar.errors import CallerLeft, Overloaded
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.heatmaps import Explainer, Explanation
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.settings import Settings


class CountingModel:
    """The shipped version. Counts the images that it is asked about."""

    def __init__(self) -> None:
        self.images = 0

    def load(self, version: Version) -> Predictor:
        self._predictor = Predictor.load(version)
        return Predictor(version, self, engine="counting")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        return self._predictor.answers(images)

    async def wait_for(self, images: int) -> None:
        """Return when the model has been asked about so many more images."""
        wanted = self.images + images
        while self.images < wanted:  # noqa: ASYNC110 - the model has no event for it
            await asyncio.sleep(0)


def serve(model: CountingModel, **limits) -> tuple[RecordedClassifier, Explainer]:
    settings = Settings(**limits)
    versions = LoadedVersions(Registry(settings.registry, settings.model_name), settings, load=model.load)
    versions.load_default()
    classifier = RecordedClassifier(Classifier(versions, settings, NO_CACHE))
    return classifier, Explainer(classifier, settings)


def test_heat_maps_over_the_limit_are_refused_at_once():
    """Each costs about eighty predictions. The requests before the limit are answered."""

    async def ask() -> list[object]:
        _, explainer = serve(CountingModel(), max_explained_images=2)
        asked = [explainer.explain(CAT, channel="rest") for _ in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(ask())] == [Explanation, Explanation, Overloaded, Overloaded]


def test_a_prediction_does_not_wait_for_a_heat_map():
    """At most the few images that wait for the model at that moment come before it."""

    async def ask() -> tuple[bool, int]:
        model = CountingModel()
        classifier, explainer = serve(model)
        explaining = asyncio.create_task(explainer.explain(CAT, channel="rest"))
        await model.wait_for(5)
        for _ in range(3):
            await classifier.classify(encoded(noise()), channel="rest")
        overtook = not explaining.done()
        await explaining
        return overtook, explainer.waiting

    assert asyncio.run(ask()) == (True, 0)


def test_a_heat_map_stops_when_its_caller_disconnects():
    """The rest is not computed, and the next caller does not wait for it."""

    async def ask() -> tuple[int, int, int]:
        model = CountingModel()
        classifier, explainer = serve(model)
        loaded = model.images
        gone = asyncio.Event()
        leaving = asyncio.create_task(explainer.explain(CAT, channel="rest", disconnected=gone.wait))
        await model.wait_for(5)
        gone.set()
        with pytest.raises(CallerLeft):
            await leaving
        images = model.images - loaded
        assert (await explainer.explain(CAT, channel="rest")).label == "cat"
        return images, explainer.waiting, classifier.queue.taken

    images, waiting, taken = asyncio.run(ask())
    assert images < 60
    assert (waiting, taken) == (0, 0)
