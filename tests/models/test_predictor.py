"""`cifar.models.predictor`: one loaded version."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cifar.errors import BadParameter, VersionUnusable
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.settings import ROOT, Settings


def load(engine: str) -> Predictor:
    settings = Settings()
    return Predictor.load(Registry(settings.registry, settings.model_name).get(1), engine)


@pytest.fixture(scope="module", params=["tensorflow", "litert"])
def predictor(request) -> Predictor:
    """The shipped version 1, on each engine."""
    return load(request.param)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)


def test_probabilities_add_to_one(predictor, images):
    """Each row is a probability distribution over the classes."""
    probabilities = predictor.answers(images)
    assert probabilities.shape == (24, 10)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_top_k_is_sorted_and_class_scores_are_in_class_order(predictor, images):
    """The first label is the most probable one."""
    (prediction,) = predictor.predict(images[:1], top_k=4)
    scores = [score for _, score in prediction.top_k]
    assert len(scores) == 4
    assert scores == sorted(prediction.class_scores.values(), reverse=True)[:4]
    assert list(prediction.class_scores) == predictor.class_names


@pytest.mark.parametrize("top_k", [0, -1, 11])
def test_top_k_out_of_range_is_refused(predictor, images, top_k):
    """The message gives the range."""
    with pytest.raises(BadParameter, match="from 1 to 10"):
        predictor.predict(images, top_k=top_k)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(np.zeros((1, 32, 32, 3), np.float32), id="floats"),
        pytest.param(np.zeros((32, 32, 3), np.uint8), id="no_batch"),
        pytest.param(np.zeros((1, 64, 64, 3), np.uint8), id="other_size"),
        pytest.param(np.zeros((1, 3, 32, 32), np.uint8), id="channels_first"),
        pytest.param(np.zeros((0, 32, 32, 3), np.uint8), id="empty"),
    ],
)
def test_another_dtype_or_shape_is_refused(predictor, wrong):
    """Floats in [0, 1] would be rounded down to black, and the answer would look normal."""
    with pytest.raises(BadParameter, match=r"Expected uint8 images of shape \(n, 32, 32, 3\)"):
        predictor.answers(wrong)


def test_threads_share_one_predictor_and_each_gets_the_answer_to_its_image(predictor, images):
    """200 calls from 8 threads: each answer equals the one to the same image alone."""
    alone = [predictor.answers(image[None])[0] for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: predictor.answers(images[i % 24][None])[0], range(200)))
    for i, answer in enumerate(together):
        np.testing.assert_allclose(answer, alone[i % 24], atol=1e-6)


def test_both_engines_give_the_same_answers(images):
    """Within the tolerance of the export."""
    np.testing.assert_allclose(load("litert").answers(images), load("tensorflow").answers(images), atol=5e-5)


def test_the_engine_auto_is_litert_if_the_version_has_a_litert_file(tmp_path, small_version):
    """Otherwise it is TensorFlow, for example for a network with operations that LiteRT lacks."""
    assert load("auto").engine == "litert"
    folder = tmp_path / "shapes" / "1"
    shutil.copytree(small_version.path, folder, ignore=shutil.ignore_patterns("assets.extra"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: file for name, file in manifest["files"].items() if not name.startswith("assets.extra/")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    without = Registry(tmp_path, "shapes").get(1)
    assert Predictor.load(without, "auto").engine == "tensorflow"
    with pytest.raises(VersionUnusable, match="but litert cannot run it"):
        Predictor.load(without, "litert")


def test_serving_with_litert_imports_no_tensorflow():
    """TensorFlow costs hundreds of megabytes and need not be installed: a fresh interpreter predicts without it."""
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None\n"  # imports fail as if they were not installed
        "from cifar.cli.main import main; sys.exit(main(['predict', 'examples/cat.jpg']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split()[1] == "cat"


@pytest.mark.slow
def test_serving_with_tensorflow_imports_no_keras():
    """TensorFlow imports one of the two versions of Keras unless it is kept from it. An export in the same process has both."""
    code = (
        "import os, sys; os.environ['CIFAR_ENGINE'] = 'tensorflow'\n"
        "from cifar.cli.main import main; main(['predict', 'examples/cat.jpg'])\n"
        "print(*[name for name in ('keras', 'tf_keras') if name in sys.modules], 'TF_USE_LEGACY_KERAS' in os.environ)\n"
        "import keras, tf_keras, tensorflow; print(keras.__version__[0], tf_keras.__version__[0], tensorflow.keras.__version__[0])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split()[1] == "cat"
    assert result.stdout.splitlines()[1:] == ["False", "3 2 3"]


def test_an_engine_that_is_not_installed_is_named(monkeypatch):
    """The message says what to do."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(VersionUnusable, match=r"engine tensorflow is not installed .* make training"):
        load("tensorflow")
