"""`cifar.images.views`: the views of a picture and the mean of their answers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.pictures import encoded, noise

from cifar.errors import BadParameter
from cifar.images.decode import preprocess, preprocess_views
from cifar.images.spec import ImageSpec
from cifar.images.views import checked_views, mean_of_views, views_of

SPEC = ImageSpec(height=32, width=32, channels=3)
MILLION = 10**6


def moved(image: np.ndarray, by: int) -> np.ndarray:
    """Move an image pixel by pixel down and to the right, with reflection at the border."""

    def source(place: int, size: int) -> int:
        place -= by
        if size == 1:
            return 0
        return -place if place < 0 else 2 * (size - 1) - place if place >= size else place

    height, width = image.shape[:2]
    rows = [[image[source(row, height), source(column, width)] for column in range(width)] for row in range(height)]
    return np.array(rows, image.dtype)


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (5, 9, 3), (1, 7, 1), (2, 2, 3), (1, 1, 3)])
def test_six_views_are_the_image_and_its_mirror_image_each_also_moved_to_two_sides(shape):
    """This holds for any size and number of channels; the first two views, which show the image unmoved, are those of `views=2`."""
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    sides = [image, moved(image, 1), moved(image, -1)]
    np.testing.assert_array_equal(views_of(image, 6), [view for side in sides for view in (side, side[:, ::-1])])
    np.testing.assert_array_equal(views_of(image, 2), [image, image[:, ::-1]])
    np.testing.assert_array_equal(views_of(image, 1), [image])
    assert {views_of(image, views).dtype for views in (1, 2, 6)} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "turned by EXIF"])
def test_six_views_of_a_photograph_are_the_image_its_mirror_image_and_its_four_corners(kind):
    """A corner is four fifths of each side, scaled to the input's size; it has the detail of the photograph, not of the input."""
    upright = Image.fromarray(np.kron(noise(9, 8), np.ones((20, 20, 1), np.uint8)))  # 180 x 160
    file = io.BytesIO()
    if kind == "turned by EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6
        upright.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    else:
        upright.save(file, kind, quality=95, subsampling=0)
    views = preprocess_views(file.getvalue(), SPEC, 6, max_pixels=MILLION)
    whole = preprocess(file.getvalue(), SPEC, max_pixels=MILLION)
    np.testing.assert_array_equal(views[:2], [whole, whole[:, ::-1]])
    width, height = upright.size
    across, down = width * 0.2, height * 0.2
    corners = [(left, top, left + width - across, top + height - down) for top in (0, down) for left in (0, across)]
    for view, box in zip(views[2:], corners, strict=True):
        cropped = np.asarray(upright.resize((32, 32), Image.Resampling.BILINEAR, box=box))
        assert np.abs(view.astype(int) - cropped).mean() < 4, box
        assert np.abs(whole.astype(int) - cropped).mean() > 12, "the test can tell them apart"


@pytest.mark.parametrize(
    ("size", "spec", "crops"),
    [
        ((64, 64), SPEC, True),
        ((63, 300), SPEC, False),
        ((300, 63), SPEC, False),
        ((32, 32), SPEC, False),
        ((200, 100), ImageSpec(height=50, width=100, channels=1), True),
        ((100, 200), ImageSpec(height=50, width=100, channels=1), False),
    ],
)
def test_a_picture_is_a_photograph_if_both_sides_have_twice_the_pixels_of_the_input(size, spec, crops):
    """`auto` takes six views of such a picture and one of a smaller one, of which six views are the moved ones."""
    payload = encoded(noise(*size))
    image = preprocess(payload, spec, max_pixels=MILLION)
    six, automatic = (preprocess_views(payload, spec, views, max_pixels=MILLION) for views in (6, "auto"))
    assert (six.shape, len(automatic)) == ((6, *spec.shape), 6 if crops else 1)
    np.testing.assert_array_equal(six[0], image)
    assert np.array_equal(six, views_of(image, 6)) is not crops
    assert np.array_equal(automatic, six) is crops
    np.testing.assert_array_equal(preprocess_views(payload, spec, 2, max_pixels=MILLION), views_of(image, 2))


@pytest.mark.parametrize("views", [2, 6])
def test_the_mean_of_probabilities_is_that_of_their_logits(views):
    """The mean of the probabilities would be underconfident. The out-of-distribution score has no logits; its mean is taken as it is."""
    logits = np.random.default_rng(views).normal(0, 3, (4, views, 3))
    exponentials = np.exp(logits)
    scores = np.random.default_rng(1).random((4, views, 1))
    softmax = exponentials / exponentials.sum(axis=-1, keepdims=True)
    mean = mean_of_views(np.concatenate([softmax, scores], axis=-1).astype(np.float32), 3)
    expected = np.exp(logits.mean(axis=1)) / np.exp(logits.mean(axis=1)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mean, np.concatenate([expected, scores.mean(axis=1)], axis=1), rtol=1e-4)
    sigmoid = (1 / (1 + np.exp(-logits))).astype(np.float32)
    expected = 1 / (1 + np.exp(-logits.mean(axis=1)))
    np.testing.assert_allclose(mean_of_views(sigmoid, 3, multi_label=True), expected, rtol=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_mean_of_certain_answers_that_contradict_each_other_is_a_number(multi_label):
    """A network can give a probability of exactly zero or one."""
    rows = np.array([[1, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(mean_of_views(rows, 2, multi_label=multi_label), [0.5, 0.5])


def test_views_are_one_of_four_values_as_numbers_or_as_text():
    """Forms and queries have only text; an empty field is the default."""
    values = [None, "", 1, "1", 2, "2", 6, "6", "auto"]
    assert [checked_views(value) for value in values] == [1, 1, 1, 1, 2, 2, 6, 6, "auto"]


@pytest.mark.parametrize("views", [0, 3, -2, 12, "all", "AUTO", "06", 6.0, True, [6], "x" * 99])
def test_any_other_value_of_views_is_refused_with_a_sentence(views):
    """The message names the values that are allowed, and repeats at most 40 characters."""
    with pytest.raises(BadParameter) as raised:
        checked_views(views)
    assert str(raised.value) == f"views must be 1, 2, 6 or auto; got {str(views)[:40]}."
