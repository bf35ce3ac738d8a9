"""Answers from several views of an image: the same on every engine, cached and recorded as they are."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from support.pictures import encoded, noise
from support.samples import copy_version, open_records, records_settings
from support.servers import NO_CACHE, wait_until_ready
from support.waiting import until

from app import create_app
from cifar.errors import BadParameter
from cifar.images.decode import preprocess_views
from cifar.images.views import mean_of_views
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.models.rollout import RolloutLog
from cifar.records.reader import read_predictions
from cifar.records.tables import comparisons
from cifar.serving.inference.cache import AnswerCache
from cifar.serving.inference.classify import Classification, Classifier
from cifar.serving.inference.loaded import LoadedVersions
from cifar.settings import ROOT, Settings

PHOTO = encoded(noise(90, 70))
"""At least twice as large as the input of version 2, and not of the small version."""


def loaded(version: Version, **settings: object) -> LoadedVersions:
    versions = LoadedVersions(Registry(version.path.parent.parent, version.name), Settings(**settings))
    versions.load_default()
    return versions


def classify(classifier: Classifier, **parameters: object) -> Classification:
    return asyncio.run(classifier.classify(PHOTO, channel="rest", **parameters))


@pytest.fixture
def shipped() -> Version:
    """The shipped default version: 32x32, with an out-of-distribution score."""
    return Registry(ROOT / "saved_model", "cifar_classifier").get(2)


def reference(predictor: Predictor, views: int) -> np.ndarray:
    """Answer each view in a call of its own, and average the answers."""
    inputs = preprocess_views(PHOTO, predictor.image, views, max_pixels=10**6)
    rows = [predictor.answers(np.ascontiguousarray(view[None]))[0] for view in inputs]
    return mean_of_views(np.stack(rows), len(predictor.class_names))


@pytest.mark.parametrize("engine", ["litert", pytest.param("tensorflow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("views", [2, 6])
def test_several_views_are_averaged_on_every_engine_and_for_every_size(shipped, small_version, engine, views):
    """Version 2 has a size of 32 pixels and an out-of-distribution score, the small version 64 pixels and none."""
    for version in (shipped, small_version):
        versions = loaded(version, engine=engine, model_version=version.number)
        predictor = versions.get().predictor
        answer = classify(Classifier(versions, Settings(), NO_CACHE), views=views)
        expected = predictor.rank(reference(predictor, views), 1)
        assert answer.prediction.class_scores == pytest.approx(expected.class_scores, abs=1e-5)
        assert answer.prediction.ood_score == pytest.approx(expected.ood_score, abs=1e-3)
        assert len(answer.inputs) == views
        assert answer.seen.shape == version.manifest.image.shape, "what the page shows is the image itself"


def test_the_cache_never_gives_an_answer_for_another_number_of_views(shipped):
    """The number of views is part of the key; the second answer of each number comes from the cache, with its views."""
    classifier = Classifier(loaded(shipped), Settings(), AnswerCache(images=10))
    first = [classify(classifier, views=views) for views in (None, 2, 6)]
    second = [classify(classifier, views=views) for views in (1, 2, 6)]
    assert [answer.inference_ms is None for answer in [*first, *second]] == [False] * 3 + [True] * 3
    scores = [answer.prediction.class_scores for answer in first]
    assert [answer.prediction.class_scores for answer in second] == scores
    assert len({scores["cat"] for scores in scores}) == 3
    assert [len(answer.inputs) for answer in second] == [1, 2, 6]


def test_the_record_and_the_shadow_version_have_the_mean_of_as_many_views(small_version, tmp_path):
    """Two copies of a version agree exactly, and the database has the answer that was sent."""
    for number in (1, 2):
        copy_version(small_version.path, tmp_path / "shapes" / str(number), version=number)
    log = RolloutLog(Registry(tmp_path, "shapes"))
    log.promote(1, by="ada", check_loadable=lambda _: None)
    log.label("canary", 2, by="ada")
    log.split({"stable": 100}, shadow={"canary": 100}, by="ada")
    settings = records_settings(tmp_path, registry=tmp_path, model_name="shapes")
    engine = open_records(settings)

    def distances() -> list[float]:
        with engine.connect() as connection:
            return list(connection.execute(select(comparisons.c.distance)).scalars())

    with TestClient(create_app(settings, page=False)) as client:
        wait_until_ready(client)
        answer, plain = (client.post("/predict", files={"image": PHOTO}, data={"views": n}).json() for n in (6, 1))
        until(lambda: len(distances()) >= 2)
    recorded = {row["request_id"]: row["scores"] for row in read_predictions(engine)}
    for sent in (answer, plain):
        assert list(recorded[sent["request_id"]].values()) == pytest.approx(sent["class_scores"], abs=1e-5)
    assert answer["class_scores"] != plain["class_scores"]
    assert distances() == [0, 0]


@pytest.mark.parametrize(("automatic", "views"), [(6, 6), (1, 1), (None, 1)])
def test_auto_is_several_views_only_for_a_version_that_was_measured_to_gain(shipped, tmp_path, automatic, views):
    """The mirror image of a letter is another letter, so nobody is given views that the export found to be worse."""
    copy_version(shipped.path, tmp_path / "cifar_classifier" / "1", version=1)
    manifest = tmp_path / "cifar_classifier" / "1" / "manifest.json"
    measured = {"automatic": automatic, "images": 9, "source": "x", "accuracy": 0.5, "accuracy_with_mirror": 0.5}
    content = json.loads(manifest.read_text()) | {"views": automatic and measured}
    manifest.write_text(json.dumps(content))
    versions = loaded(Registry(tmp_path, "cifar_classifier").get(1), model_version=1)
    assert len(classify(Classifier(versions, Settings(), NO_CACHE), views="auto").inputs) == views


def test_another_number_of_views_is_refused_before_the_image_is_read(shipped):
    """The error is about the call, so it comes even if the image is none."""
    classifier = Classifier(loaded(shipped), Settings(), NO_CACHE)
    with pytest.raises(BadParameter, match="views must be 1, 2, 6 or auto; got 4"):
        asyncio.run(classifier.classify(b"just text", channel="rest", views=4))
