"""`cifar.predictor`: one loaded version."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cifar.errors import BadParameter, VersionUnusable
from cifar.predictor import Predictor
from cifar.registry import Registry
from cifar.settings import Settings


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    settings = Settings()
    return Predictor.load(Registry(settings.registry, settings.model_name).get(1))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)


def test_probabilities_add_to_one(predictor, images):
    """A row is a distribution over the classes."""
    probabilities = predictor.probabilities(images)
    assert probabilities.shape == (24, 10)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_top_k_is_sorted_and_class_scores_keep_the_classes_order(predictor, images):
    """The first label is the most probable one."""
    (prediction,) = predictor.predict(images[:1], top_k=4)
    scores = [score for _, score in prediction.top_k]
    assert len(scores) == 4
    assert scores == sorted(prediction.class_scores.values(), reverse=True)[:4]
    assert list(prediction.class_scores) == predictor.class_names


@pytest.mark.parametrize("top_k", [0, -1, 11])
def test_top_k_out_of_range_is_refused(predictor, images, top_k):
    """The sentence gives the range."""
    with pytest.raises(BadParameter, match="from 1 to 10"):
        predictor.predict(images, top_k=top_k)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
    ids=["floats", "no_batch", "other_size", "channels_first", "empty"],
)
def test_another_dtype_or_shape_is_refused(predictor, wrong):
    """Floats in [0, 1] would be cut to black and still be answered."""
    with pytest.raises(BadParameter, match=r"Expected uint8 images of shape \(n, 32, 32, 3\)"):
        predictor.probabilities(wrong)


def test_threads_share_one_predictor_and_get_their_own_answers(predictor, images):
    """Each of 200 answers from 8 threads is the one for its image."""
    alone = [predictor.probabilities(image[None])[0] for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: predictor.probabilities(images[i % 24][None])[0], range(200)))
    for i, answer in enumerate(together):
        np.testing.assert_allclose(answer, alone[i % 24], atol=1e-6)


def test_a_changed_version_is_not_loaded(tmp_path, small_version):
    """Checksums are compared before TensorFlow sees a byte."""
    import shutil

    folder = tmp_path / "shapes" / "1"
    shutil.copytree(small_version.path, folder)
    (folder / "saved_model.pb").write_bytes(b"not a graph")
    with pytest.raises(VersionUnusable, match="not the file that was exported"):
        Predictor.load(Registry(tmp_path, "shapes").get(1))
