"""`cifar.serving.inference.batcher`: who waits, who is joined, who leaves."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from cifar.serving.inference.batcher import Batcher


class SumModel:
    """Answers each image with its sum, and remembers the batches. Waits at its gate when that is closed."""

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
    """Fails on an image of 13."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if 13 in [int(image.sum()) for image in images]:
            raise ValueError("thirteen")
        return super().__call__(images)


def image(value: int) -> np.ndarray:
    pixels = np.zeros((2, 2, 1), np.uint8)
    pixels[0, 0, 0] = value
    return pixels


async def busy(model: SumModel, batcher: Batcher) -> asyncio.Future:
    """Have the model at work on an image of its own, until its gate opens."""
    model.gate.clear()
    first = batcher.submit(image(200), channel="first")
    await asyncio.to_thread(model.entered.wait, 20)
    return first


def test_an_image_that_meets_an_idle_model_is_answered_alone_and_at_once():
    """Nobody waits for company: what comes one by one is answered one by one."""
    model = SumModel()

    async def ask() -> list[float]:
        batcher = Batcher(model, largest=8)
        return [(await batcher.submit(image(value), channel="rest")).row[0] for value in (1, 2, 3)]

    assert asyncio.run(ask()) == [1, 2, 3]
    assert model.batches == [[1], [2], [3]]


def test_images_that_wait_are_joined_and_each_gets_its_own_answer():
    """While the model computes the next batch gathers; no batch is larger than the limit."""
    model = SumModel()

    async def ask() -> list[float]:
        batcher = Batcher(model, largest=4)
        first = await busy(model, batcher)
        others = [batcher.submit(image(value), channel="rest") for value in range(10)]
        model.gate.set()
        return [answer.row[0] for answer in await asyncio.gather(first, *others)]

    assert asyncio.run(ask()) == [200, *range(10)]
    assert model.batches == [[200], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_routes_take_turns_so_that_one_cannot_keep_the_others_out():
    """The page's one image does not wait behind a hundred of a program's."""
    model = SumModel()

    async def ask() -> None:
        batcher = Batcher(model, largest=4)
        first = await busy(model, batcher)
        rest = [batcher.submit(image(value), channel="rest") for value in range(100, 110)]
        page = [batcher.submit(image(value), channel="page") for value in (1, 2, 3)]
        model.gate.set()
        await asyncio.gather(first, *rest, *page)

    asyncio.run(ask())
    assert model.batches[1] == [100, 1, 101, 2]
    assert model.batches[2] == [102, 3, 103, 104]


def test_who_leaves_while_waiting_takes_no_place_in_the_batch():
    """A cancelled request costs the model nothing."""
    model = SumModel()

    async def ask() -> list[float]:
        batcher = Batcher(model, largest=2)
        first = await busy(model, batcher)
        waiting = [batcher.submit(image(value), channel="rest") for value in range(4)]
        for gone in waiting[:2]:
            gone.cancel()
        model.gate.set()
        return [answer.row[0] for answer in await asyncio.gather(first, *waiting[2:])]

    assert asyncio.run(ask()) == [200, 2, 3]
    assert model.batches == [[200], [2, 3]]


def test_a_model_that_fails_tells_those_it_failed_and_serves_the_next():
    """An error reaches each image of its batch, and no other."""
    model = ErrorModel()

    async def ask() -> list[object]:
        batcher = Batcher(model, largest=2)
        first = await busy(model, batcher)
        waiting = [batcher.submit(image(value), channel="rest") for value in (13, 1, 2)]
        model.gate.set()
        await first
        return await asyncio.gather(*waiting, return_exceptions=True)

    *failed, fine = asyncio.run(ask())
    assert [str(error) for error in failed] == ["thirteen", "thirteen"]
    assert fine.row[0] == 2


def test_two_batches_are_computed_at_once_where_the_engine_allows_it():
    """`parallel` threads, and no more."""
    model = SumModel()

    async def ask() -> int:
        batcher = Batcher(model, largest=1, parallel=2)
        model.gate.clear()
        answers = [batcher.submit(image(value), channel="rest") for value in range(5)]
        await asyncio.sleep(0.2)
        inside = len(model.batches)
        model.gate.set()
        await asyncio.gather(*answers)
        return inside

    assert asyncio.run(ask()) == 2


@pytest.mark.parametrize("routes", [1, 3])
def test_a_thousand_images_each_get_their_own_answer(routes):
    """Under load no answer goes to a neighbour."""
    model = SumModel()

    async def ask() -> list[float]:
        batcher = Batcher(model, largest=32, parallel=2)
        asked = [batcher.submit(image(value % 251), channel=str(value % routes)) for value in range(1000)]
        return [answer.row[0] for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [value % 251 for value in range(1000)]
    assert max(map(len, model.batches)) == 32
