"""`cifar.models.heatmap`: the heat map, judged by what happens without the pixels that it names."""

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

from cifar.errors import BadParameter
from cifar.images.decode import picture, preprocess
from cifar.images.spec import ImageSpec
from cifar.models.heatmap import STEPS, explain, overlay
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.batch import Row
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.heatmaps import Explanation
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.inference.service import Service
from cifar.settings import ROOT, Settings

SPEC = ImageSpec(height=32, width=32, channels=3)


def default(engine: str = "auto") -> Predictor:
    settings = Settings()
    return Predictor.load(Registry(settings.registry, settings.model_name).get(), engine)


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
    """How often taking out the hottest fifth lowers the score of the given label more than taking out the coolest."""
    right = 0
    for pixels, heat in zip(images, maps, strict=True):
        (whole,) = predictor.probabilities(pixels[None])
        label, order, fifth = whole.argmax(), np.argsort(heat, axis=None, kind="stable"), heat.size // 5
        masked = np.stack([pixels.copy(), pixels.copy()])
        for image, places in zip(masked, (order[-fifth:], order[:fifth]), strict=True):
            image.reshape(-1, 3)[places] = fill(pixels).reshape(-1, 3)[places]
        without_hottest, without_coolest = predictor.probabilities(masked)[:, label]
        right += without_hottest < without_coolest
    return right / len(images)


@pytest.mark.slow
def test_the_hottest_fifth_matters_more_than_the_coolest_on_four_of_five_images():
    """The promise of the map, on 100 test images and with three ways of taking pixels out; chance would be a half."""
    predictor, images = default(), samples()
    maps = [explain(predictor, pixels, int(predictor.probabilities(pixels[None]).argmax())) for pixels in images]
    for fill in (mean_colour, grey, blur):
        assert share_right(predictor, images, maps, fill) >= 0.8, fill.__name__
    upside_down = [1 - heat for heat in maps]
    assert share_right(predictor, images, upside_down, blur) < 0.2, "the test can fail"


@pytest.mark.slow
def test_a_map_has_the_size_of_the_image_and_goes_up_to_one():
    """`(height, width)` `float32` in [0, 1], whatever label is asked for."""
    predictor, pixels = default(), samples()[0]
    maps = [explain(predictor, pixels, label) for label in range(10)]
    for heat in maps:
        assert heat.shape == (32, 32)
        assert heat.dtype == np.float32
        assert heat.min() >= 0
        assert heat.max() == pytest.approx(1) or not heat.any()
    assert not np.array_equal(maps[0], maps[1]), "each label has a map of its own"


def test_both_engines_draw_the_same_map():
    """What is served is explained, whichever library computes it."""
    pixels = samples()[60]
    by_litert, by_tensorflow = (explain(default(engine), pixels, 3) for engine in ("litert", "tensorflow"))
    np.testing.assert_allclose(by_litert, by_tensorflow, atol=1e-3)


@pytest.mark.slow
def test_the_score_of_another_kind_takes_no_part_in_a_map(scored_version):
    """A version that also says how unlike its training images a picture is: that is no class, in none of the ways to ask."""
    settings = Settings(registry=scored_version.path.parent.parent, model_name="colours")
    versions = LoadedVersions(Registry(settings.registry, "colours"), settings)
    versions.load_default()
    service = Service.over(Classifier(versions, settings, NO_CACHE), settings)
    payload = encoded(noise(32, 32))

    async def ask() -> tuple[Explanation, list[Row]]:
        async with service.batches.open([Upload("a.png", payload)]) as batch:
            rows = [row async for row in batch.rows()]
        return await service.explainer.explain(payload, channel="rest"), rows

    explanation, (row,) = asyncio.run(ask())
    predictor = versions.get().predictor
    pixels = preprocess(payload, predictor.image, max_pixels=10_000)
    wanted = explain(predictor, pixels, predictor.class_names.index(explanation.label))
    np.testing.assert_array_equal(explanation.heat, wanted)
    (prediction,) = predictor.predict(pixels[None], top_k=1)
    assert row.as_json()["ood_score"] == pytest.approx(prediction.ood_score, abs=1e-4)
    assert row.as_json()["in_distribution"] is prediction.in_distribution


class LooksAtOneCorner:
    """A model of greyscale images that are wider than high: bright at the top left means class 1."""

    class_names = ("dark", "bright")
    asked = 0

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        self.asked += len(images)
        bright = images[:, :5, :8].mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)


def test_the_map_finds_the_one_place_that_a_model_looks_at():
    """Of a model whose reason is known, the map names it, for images of any size, and asks as often as it says."""
    pixels = np.zeros((20, 48, 1), np.uint8)
    pixels[:3, :5] = 255
    predictor = LooksAtOneCorner()
    heat = explain(predictor, pixels, 1)
    assert heat.shape == (20, 48)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert row < 5
    assert column < 8
    assert heat[10:, 24:].max() == 0
    assert predictor.asked == (STEPS + 1) ** 2 + 1
    assert explain(predictor, pixels, 0).max() in {0, 1}
    assert not explain(predictor, np.zeros((20, 48, 1), np.uint8), 1).any(), "nothing there, nothing hot"


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_none_is_refused_with_a_sentence(label):
    """NumPy would count -1 from the end."""
    with pytest.raises(BadParameter, match=rf"index is from 0 to 9; got {label}"):
        explain(default(), samples()[0], label)


def test_the_overlay_gets_lighter_as_the_map_gets_hotter():
    """A PNG of the picture's size; on an even picture lightness follows heat, by Matplotlib's colours."""
    heat = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))
    shown = Image.open(io.BytesIO(overlay(np.full((80, 640, 3), 100, np.uint8), heat)))
    assert (shown.format, shown.size, shown.mode) == ("PNG", (640, 80), "RGB")
    row = np.asarray(shown)[40].astype(float)
    lightness = row @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness[::20]) > 0).all()
    map_ = np.array(mpl.colormaps["inferno"](np.linspace(0, 1, 640)))[:, :3] * 255
    assert np.abs(row[10:-10] - (0.6 * map_ + 40)[10:-10]).max() < 8


def test_the_picture_for_people_is_upright_and_keeps_its_proportions():
    """What the map is laid over looks like the photo that was sent, only smaller."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (400, 200), "teal").save(buffer, "JPEG", exif=exif)
    assert picture(buffer.getvalue(), longest_side=100, max_pixels=100_000).shape == (100, 50, 3)
    assert picture(buffer.getvalue(), longest_side=900, max_pixels=100_000).shape == (400, 200, 3)
