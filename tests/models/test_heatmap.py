"""`cifar.models.heatmap` and the served driver: maps are judged by how far the score falls without the hottest pixels."""

from __future__ import annotations

import asyncio
import io
import zipfile

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image, ImageFilter
from support.pictures import encoded, noise
from support.servers import NO_CACHE

from cifar.images.decode import open_picture, preprocess, to_picture
from cifar.images.spec import ImageSpec
from cifar.models.heatmap import STEPS, heat, occlusions, overlay
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.batch import Row
from cifar.serving.inference.batcher import Batcher
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.heatmaps import Explanation, heat_map
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.inference.service import Service
from cifar.settings import ROOT, Settings

SPEC = ImageSpec(height=32, width=32, channels=3)


def default(engine: str = "auto", version: int | None = None) -> Predictor:
    settings = Settings()
    return Predictor.load(Registry(settings.registry, settings.model_name).get(version), engine)


def map_of(predictor: Predictor | LooksAtOneCorner, pixels: np.ndarray, label_index: int) -> np.ndarray:
    """Return the heat map from the function that the server uses."""
    batcher = Batcher(predictor.answers, max_images=1)
    return asyncio.run(heat_map(batcher, pixels, label_index, classes=len(predictor.class_names)))


def probabilities(predictor: Predictor, images: np.ndarray) -> np.ndarray:
    return predictor.answers(images)[:, : len(predictor.class_names)]


def samples() -> np.ndarray:
    """100 test images of CIFAR-10, 10 of each class."""
    with zipfile.ZipFile(ROOT / "tests/data/cifar10_200.zip") as archive:
        return np.stack([preprocess(archive.read(name), SPEC, max_pixels=10_000) for name in archive.namelist()[::2]])


def mean_colour(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels.mean((0, 1)), pixels.shape)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.full(pixels.shape, 127)


def blur(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(4)))


def share_right(predictor: Predictor, images: np.ndarray, maps: list[np.ndarray], fill) -> float:
    """Return how often the score of the predicted label falls more without the hottest fifth than without the coolest."""
    right = 0
    for pixels, map_ in zip(images, maps, strict=True):
        (whole,) = probabilities(predictor, pixels[None])
        label, order, fifth = whole.argmax(), np.argsort(map_, axis=None, kind="stable"), map_.size // 5
        masked = np.stack([pixels.copy(), pixels.copy()])
        for image, places in zip(masked, (order[-fifth:], order[:fifth]), strict=True):
            image.reshape(-1, 3)[places] = fill(pixels).reshape(-1, 3)[places]
        without_hottest, without_coolest = probabilities(predictor, masked)[:, label]
        right += without_hottest < without_coolest
    return right / len(images)


@pytest.mark.slow
def test_the_hottest_fifth_matters_more_than_the_coolest_on_four_of_five_images():
    """On 100 test images and with three ways of removing pixels. A random map would reach a half."""
    predictor, images = default(), samples()
    maps = [map_of(predictor, pixels, int(probabilities(predictor, pixels[None]).argmax())) for pixels in images]
    for fill in (mean_colour, grey, blur):
        assert share_right(predictor, images, maps, fill) >= 0.8, fill.__name__
    upside_down = [1 - map_ for map_ in maps]
    assert share_right(predictor, images, upside_down, blur) < 0.2, "the test can fail"


def test_both_engines_draw_the_same_map():
    """The map explains the model, not the library that computes it. Version 2 is int8 on LiteRT, which changes maps a little."""
    pixels = samples()[60]
    by_litert, by_tensorflow = (map_of(default(engine, 1), pixels, 3) for engine in ("litert", "tensorflow"))
    np.testing.assert_allclose(by_litert, by_tensorflow, atol=1e-3)
    in_int8, in_float32 = (map_of(default(engine, 2), pixels, 3) for engine in ("litert", "tensorflow"))
    assert np.corrcoef(in_int8.ravel(), in_float32.ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_the_ood_score_is_not_taken_for_the_probability_of_a_class(scored_version):
    """It is the last column of an answer; heat map and batch must both separate it from the probabilities."""
    settings = Settings(registry=scored_version.path.parent.parent, model_name="colours")
    versions = LoadedVersions(Registry(settings.registry, "colours"), settings)
    versions.load_default()
    service = Service.over(RecordedClassifier(Classifier(versions, settings, NO_CACHE)), settings)
    payload = encoded(noise(32, 32))

    async def ask() -> tuple[Explanation, list[Row]]:
        async with service.batches.open([Upload("a.png", payload)]) as batch:
            rows = [row async for row in batch.rows()]
        return await service.explainer.explain(payload, channel="rest"), rows

    explanation, (row,) = asyncio.run(ask())
    predictor = versions.get().predictor
    pixels = preprocess(payload, predictor.image, max_pixels=10_000)
    answers = probabilities(predictor, np.stack(occlusions(pixels)))
    expected = heat(answers, predictor.class_names.index(explanation.label), *pixels.shape[:2])
    np.testing.assert_array_equal(explanation.heat, expected)
    (prediction,) = predictor.predict(pixels[None], top_k=1)
    assert row.as_json()["ood_score"] == pytest.approx(prediction.ood_score, abs=1e-4)
    assert row.as_json()["in_distribution"] is prediction.in_distribution
    assert explanation.as_json()["grade"] == row.as_json()["grade"] == prediction.grade


class LooksAtOneCorner:
    """A model for greyscale images that are wider than high. It answers `bright` when the top left corner is bright."""

    class_names = ("dark", "bright")
    asked = 0

    def answers(self, images: np.ndarray) -> np.ndarray:
        self.asked += len(images)
        bright = images[:, :5, :8].mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)


def test_the_map_finds_the_only_region_that_a_model_looks_at():
    """The model's reason is known, and its images are not square. The number of classified images is the documented one."""
    pixels = np.zeros((20, 48, 1), np.uint8)
    pixels[:3, :5] = 255
    predictor = LooksAtOneCorner()
    map_ = map_of(predictor, pixels, 1)
    assert (map_.shape, map_.dtype, map_.min(), map_.max()) == ((20, 48), np.float32, 0, 1)
    row, column = np.unravel_index(map_.argmax(), map_.shape)
    assert row < 5
    assert column < 8
    assert map_[10:, 24:].max() == 0
    assert predictor.asked == (STEPS + 1) ** 2 + 1
    of_the_other_label = map_of(predictor, pixels, 0)
    assert of_the_other_label.max() in {0, 1}
    assert not np.array_equal(of_the_other_label, map_)
    assert not map_of(predictor, np.zeros((20, 48, 1), np.uint8), 1).any(), "an empty image has no hot region"


def test_the_overlay_gets_lighter_as_the_map_gets_hotter():
    """A PNG of the picture's size. On a plain grey picture, lightness rises with heat, in the colours of Matplotlib."""
    rising = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))
    shown = Image.open(io.BytesIO(overlay(np.full((80, 640, 3), 100, np.uint8), rising)))
    assert (shown.format, shown.size, shown.mode) == ("PNG", (640, 80), "RGB")
    row = np.asarray(shown)[40].astype(float)
    lightness = row @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness[::20]) > 0).all()
    colours = np.array(mpl.colormaps["inferno"](np.linspace(0, 1, 640)))[:, :3] * 255
    assert np.abs(row[10:-10] - (0.6 * colours + 40)[10:-10]).max() < 8


def test_the_picture_under_the_map_is_upright_and_keeps_its_proportions():
    """It looks like the photo that was sent, only smaller."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    file = encoded(Image.new("RGB", (400, 200), "teal"), "JPEG", exif=exif)
    for side, shape in ((100, (100, 50, 3)), (900, (400, 200, 3))):
        opened = open_picture(file, longest_side=side, max_pixels=100_000)
        assert to_picture(opened, longest_side=side).shape == shape
