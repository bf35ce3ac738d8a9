"""Compare methods of drawing heat maps: how well they find the pixels that matter, and with how many questions.

    python benchmarks/explaining.py --data data/cifar10-jpeg-edition/test --images 200

The folder holds images by class, `<class>/*.jpg`. Each method draws a map of the label that the model predicts. Then the
hottest fifth of the pixels is removed, and the coolest fifth. A map is right when the first lowers the label's score more.
Pixels are removed in three ways, so that no method is judged only by its own way. The first row is the function that the
server uses, `heat_map`. Prints Markdown, which docs/explain.md quotes.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from cifar.cpus import available_cpus
from cifar.images.decode import preprocess
from cifar.models.predictor import Predictor
from cifar.models.rollout import RolloutLog
from cifar.serving.inference.batcher import Batcher
from cifar.serving.inference.heatmaps import heat_map
from cifar.settings import load_settings

Heat = Callable[[Predictor, np.ndarray, int], np.ndarray]


def mean(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels.mean((0, 1)), pixels.shape)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.full(pixels.shape, 127.0)


def blur(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels.squeeze()).filter(ImageFilter.GaussianBlur(min(pixels.shape[:2]) / 8))
    return np.asarray(image, np.float64).reshape(pixels.shape)


FILLS = (mean, grey, blur)


def without(pixels: np.ndarray, masks: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """The image with `fill` where a mask is 1; masks are `(n, height, width)` in [0, 1]."""
    share = masks[..., None]
    return np.rint(pixels * (1 - share) + fill * share).astype(np.uint8)


def log_odds(scores: np.ndarray) -> np.ndarray:
    scores = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(scores / (1 - scores))


def occlusion(windows: int, steps: int, fill: Callable[[np.ndarray], np.ndarray]) -> Heat:
    """Occlusion by a square of `windows / steps` of the side, which moves by `1 / steps` of the side."""

    def heat(predictor: Predictor, pixels: np.ndarray, label: int) -> np.ndarray:
        height, width = pixels.shape[:2]
        masks = []
        for row in np.linspace(0, height, steps + 1):
            for column in np.linspace(0, width, steps + 1):
                mask = np.zeros((height, width))
                reach = windows / steps / 2
                rows = slice(max(0, round(row - reach * height)), round(row + reach * height))
                mask[rows, max(0, round(column - reach * width)) : round(column + reach * width)] = 1
                masks.append(mask)
        stack = np.array(masks)
        falls = -log_odds(predictor.answers(without(pixels, stack, fill(pixels)))[:, label])
        return np.tensordot(falls, stack, 1) / stack.sum(0)

    return heat


def rise(masks: int, grid: int, fill: Callable[[np.ndarray], np.ndarray]) -> Heat:
    """RISE (https://arxiv.org/abs/1806.07421): random smooth masks, each weighted by the score that remains."""

    def heat(predictor: Predictor, pixels: np.ndarray, label: int) -> np.ndarray:
        random = np.random.default_rng(0)
        height, width = pixels.shape[:2]
        stack = []
        for _ in range(masks):
            cells = Image.fromarray((random.random((grid + 1, grid + 1)) < 0.5).astype(np.float32))
            tall, wide = -(-height // grid), -(-width // grid)
            large = np.asarray(cells.resize((wide * (grid + 1), tall * (grid + 1)), Image.Resampling.BILINEAR))
            down, right = random.integers(0, tall), random.integers(0, wide)
            stack.append(large[down : down + height, right : right + width])
        removed = np.array(stack)
        scores = log_odds(predictor.answers(without(pixels, removed, fill(pixels)))[:, label])
        centred = removed - removed.mean(0)
        return -np.tensordot(scores - scores.mean(), centred, 1) / (centred**2).sum(0)

    return heat


def ridge(masks: int, grid: int, fill: Callable[[np.ndarray], np.ndarray]) -> Heat:
    """LIME on squares (https://arxiv.org/abs/1602.04938): a linear model of the score over randomly removed squares."""

    def heat(predictor: Predictor, pixels: np.ndarray, label: int) -> np.ndarray:
        height, width = pixels.shape[:2]
        gone = (np.random.default_rng(0).random((masks, grid, grid)) < 0.5).astype(float)
        rows, columns = np.arange(height) * grid // height, np.arange(width) * grid // width
        scores = log_odds(predictor.answers(without(pixels, gone[:, rows][:, :, columns], fill(pixels)))[:, label])
        cells = gone.reshape(masks, -1) - 0.5
        worth = np.linalg.solve(cells.T @ cells + 0.5 * np.eye(grid * grid), cells.T @ (scores.mean() - scores))
        return worth.reshape(grid, grid)[rows][:, columns]

    return heat


@cache
def batcher_of(predictor: Predictor) -> Batcher:
    return Batcher(predictor.answers, max_images=1, parallel=available_cpus())


def served(predictor: Predictor, pixels: np.ndarray, label: int) -> np.ndarray:
    """The function that the server uses."""
    return asyncio.run(heat_map(batcher_of(predictor), pixels, label, classes=len(predictor.class_names)))


def chance(_predictor: Predictor, pixels: np.ndarray, _label: int) -> np.ndarray:
    return np.random.default_rng(int(pixels.sum())).random(pixels.shape[:2])


METHODS: dict[str, tuple[Heat, int]] = {
    "**occlusion, 3/8 by 1/8, blur: the served `heat_map`**": (served, 82),
    "occlusion, 3/8 by 1/8, mean colour": (occlusion(3, 8, mean), 81),
    "occlusion, 1/4 by 1/8, blur": (occlusion(2, 8, blur), 81),
    "occlusion, 1/2 by 1/4, blur": (occlusion(2, 4, blur), 25),
    "occlusion, 1/3 by 1/6, blur": (occlusion(2, 6, blur), 49),
    "RISE, 8x8 cells, blur": (rise(100, 8, blur), 100),
    "RISE, 5x5 cells, mean colour": (rise(100, 5, mean), 100),
    "RISE, 5x5 cells, mean colour, more": (rise(400, 5, mean), 400),
    "LIME, 8x8 squares, mean colour": (ridge(100, 8, mean), 100),
    "LIME, 5x5 squares, mean colour": (ridge(100, 5, mean), 100),
    "chance": (chance, 0),
}


def falls(predictor: Predictor, pixels: np.ndarray, label: int, heat: np.ndarray) -> np.ndarray:
    """Return how far the score falls without the hottest and without the coolest fifth: `(fills, 2)`."""
    order, fifth = np.argsort(heat, axis=None, kind="stable"), heat.size // 5
    masks = np.zeros((2, heat.size))
    masks[0, order[-fifth:]] = masks[1, order[:fifth]] = 1
    (whole,) = predictor.answers(pixels[None])
    masked = [without(pixels, masks.reshape(2, *heat.shape), fill(pixels)) for fill in FILLS]
    scores = predictor.answers(np.concatenate(masked))[:, label]
    return whole[label] - scores.reshape(len(FILLS), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    settings = load_settings()
    predictor = Predictor.load(RolloutLog.of(settings).stable_version(), "litert")
    files = sorted(arguments.data.glob("*/*.jpg"))
    chosen = np.random.default_rng(1).choice(len(files), arguments.images, replace=False)
    images = [
        preprocess(files[at].read_bytes(), predictor.image, max_pixels=settings.max_image_pixels) for at in chosen
    ]
    labels = predictor.answers(np.stack(images))[:, : len(predictor.class_names)].argmax(1)
    version = predictor.version
    print(f"{version.name} version {version.number}, {len(images)} images, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| method | questions | ms | right: mean | right: grey | right: blur | fall, hottest | fall, coolest |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (heat, questions) in METHODS.items():
        seconds, rows = [], []
        for pixels, label in zip(images, labels, strict=True):
            started = time.perf_counter()
            map_ = heat(predictor, pixels, label)
            seconds.append(time.perf_counter() - started)
            rows.append(falls(predictor, pixels, label, map_))
        fell = np.array(rows)  # images, fills, (hottest, coolest)
        right = " | ".join(f"{100 * share:.1f} %" for share in (fell[..., 0] > fell[..., 1]).mean(0))
        hottest, coolest = fell.mean((0, 1))
        print(
            f"| {name} | {questions} | {1000 * np.median(seconds):.1f} | {right} | {hottest:.3f} | {coolest:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
