"""`cifar.serving.inference.batcher`: how images wait, are joined into batches and are taken back."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from support.waiting import until_async

from cifar.images.views import views_of
from cifar.serving.inference.batcher import Batcher


class SumModel:
    """Answers each image with the sum of its pixels, remembers the batches, and waits while its gate is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append([int(image.sum()) for image in images])
        self.entered.set()
        assert self.gate.wait(20)
        return images.reshape(len(images), -1).sum(axis=1, keepdims=True).astype(np.float32)


class ErrorModel(SumModel):
    """Fails for an image with the sum 13."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if 13 in [int(image.sum()) for image in images]:
            raise ValueError("thirteen")
        return super().__call__(images)


def image(value: int) -> np.ndarray:
    pixels = np.zeros((2, 2, 1), np.uint8)
    pixels[0, 0, 0] = value
    return pixels


def picture(value: int, views: int = 1) -> np.ndarray:
    return views_of(image(value), views)


async def busy(model: SumModel, batcher: Batcher) -> asyncio.Future:
    """Keep the model busy with one image until its gate opens."""
    model.gate.clear()
    first = batcher.submit(picture(200), channel="first")
    await asyncio.to_thread(model.entered.wait, 20)
    return first


def test_an_idle_model_answers_an_image_at_once_and_alone():
    """There is no batching delay: images that come one by one are answered one by one."""
    model = SumModel()

    async def ask() -> list[float]:
        batcher = Batcher(model, max_images=8)
        return [(await batcher.submit(picture(value), channel="rest")).row[0] for value in (1, 2, 3)]

    assert asyncio.run(ask()) == [1, 2, 3]
    assert model.batches == [[1], [2], [3]]


def test_waiting_images_are_joined_and_each_gets_its_own_answer():
    """While the model computes, the next batch grows, but not beyond the limit."""
    model = SumModel()

    async def ask() -> list[float]:
        batcher = Batcher(model, max_images=4)
        first = await busy(model, batcher)
        others = [batcher.submit(picture(value), channel="rest") for value in range(10)]
        model.gate.set()
        return [answer.row[0] for answer in await asyncio.gather(first, *others)]

    assert asyncio.run(ask()) == [200, *range(10)]
    assert model.batches == [[200], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_channels_take_turns_so_that_none_can_block_the_others():
    """One image of the page does not wait behind a hundred images of a program."""
    model = SumModel()

    async def ask() -> None:
        batcher = Batcher(model, max_images=4)
        first = await busy(model, batcher)
        rest = [batcher.submit(picture(value), channel="rest") for value in range(100, 110)]
        page = [batcher.submit(picture(value), channel="page") for value in (1, 2, 3)]
        model.gate.set()
        await asyncio.gather(first, *rest, *page)

    asyncio.run(ask())
    assert model.batches[1] == [100, 1, 101, 2]
    assert model.batches[2] == [102, 3, 103, 104]


def test_a_cancelled_image_takes_no_place_in_the_batch():
    """The model does no work for a cancelled request."""
    model = SumModel()

    async def ask() -> list[float]:
        batcher = Batcher(model, max_images=2)
        first = await busy(model, batcher)
        waiting = [batcher.submit(picture(value), channel="rest") for value in range(4)]
        for gone in waiting[:2]:
            gone.cancel()
        model.gate.set()
        return [answer.row[0] for answer in await asyncio.gather(first, *waiting[2:])]

    assert asyncio.run(ask()) == [200, 2, 3]
    assert model.batches == [[200], [2, 3]]


def test_an_error_of_the_model_reaches_its_batch_only_and_the_next_is_served():
    """Each image of the failed batch gets the error, and no other image does."""
    model = ErrorModel()

    async def ask() -> list[object]:
        batcher = Batcher(model, max_images=2)
        first = await busy(model, batcher)
        waiting = [batcher.submit(picture(value), channel="rest") for value in (13, 1, 2)]
        model.gate.set()
        await first
        return await asyncio.gather(*waiting, return_exceptions=True)

    *failed, fine = asyncio.run(ask())
    assert [str(error) for error in failed] == ["thirteen", "thirteen"]
    assert fine.row[0] == 2


def test_the_views_of_an_image_are_one_batch_with_those_of_others_and_keep_the_limit():
    """Each image gets the rows of its own views. An image with more views than the limit is a batch of its own."""
    model = SumModel()

    async def ask() -> list[list[float]]:
        batcher = Batcher(model, max_images=4)
        first = await busy(model, batcher)
        views = {1: 1, 2: 2, 3: 2, 4: 6, 5: 1}
        others = [batcher.submit(picture(value, count), channel="rest") for value, count in views.items()]
        model.gate.set()
        return [answer.rows[:, 0].tolist() for answer in await asyncio.gather(first, *others)]

    first, one, two, three, four, five = asyncio.run(ask())
    assert model.batches == [[200], [1, 2, 2], [3, 3], model.batches[3], [5]]
    assert (first, one, two, three, five) == ([200], [1], [2, 2], [3, 3], [5])
    assert len(four) == len(model.batches[3]) == 6


def test_a_quick_model_answers_only_as_many_views_in_the_event_loop_as_it_may():
    """More views would delay the other requests, so they go to a thread."""
    model = SumModel()

    async def ask() -> list[bool]:
        batcher = Batcher(model, max_images=1, max_in_loop=2)
        return [batcher.at_once(picture(7, views), channel="rest") is not None for views in (1, 2, 6)]

    assert asyncio.run(ask()) == [True, True, False]
    assert model.batches == [[7], [7, 7]]


def test_as_many_batches_are_computed_at_once_as_the_engine_allows():
    """There are `parallel` threads, and no more."""
    model = SumModel()

    async def ask() -> int:
        batcher = Batcher(model, max_images=1, parallel=2)
        model.gate.clear()
        answers = [batcher.submit(picture(value), channel="rest") for value in range(5)]
        await until_async(lambda: asyncio.sleep(0.1, len(model.batches) >= 2))
        inside = len(model.batches)
        model.gate.set()
        await asyncio.gather(*answers)
        return inside

    assert asyncio.run(ask()) == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_thousand_images_each_get_their_own_answer(channels):
    """Under load no answer goes to another image."""
    model = SumModel()

    async def ask() -> list[float]:
        batcher = Batcher(model, max_images=32, parallel=2)
        asked = [batcher.submit(picture(value % 251), channel=str(value % channels)) for value in range(1000)]
        return [answer.row[0] for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [value % 251 for value in range(1000)]
    assert max(map(len, model.batches)) == 32
