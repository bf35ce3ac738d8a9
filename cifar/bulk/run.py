"""Start or resume a bulk run, on this machine or on a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from cifar.bulk.output import BulkRun, describe, missing_parts, resume_run, start_run
from cifar.bulk.part import BulkClassifier, make_part
from cifar.errors import BulkError
from cifar.images.spec import Views
from cifar.models.registry import Version
from cifar.settings import Settings

PART_IMAGES = 10_000
"""Images per part. One part is in memory at a time, and the work on it is lost if the run is killed."""
_LOG_INTERVAL_SECONDS = 30.0
"""Seconds between progress lines if stderr is not a terminal."""

Runner = Literal["local", "ray"]
MakeParts = Callable[[BulkRun, Path, Sequence[int], Version, Settings], Iterator[tuple[int, int]]]
"""Makes the numbered parts, and yields for each its number of rows and how many of them hold an error."""


def predict_many(
    source: Path,
    output: Path,
    version: Version,
    settings: Settings,
    *,
    runner: Runner = "local",
    resume: bool = False,
    part_images: int | None = None,
    views: Views = 1,
) -> int:
    """Classify all images of a folder or of a file of paths (`listing.paths`); see `cifar.bulk` for the output folder.

    The listing assigns each image to a part, and each part is written atomically. A run that was killed can therefore be resumed
    with either runner, without losing or repeating a row. The runner `local` takes the processors of this machine, and `ray` a Ray
    cluster whose machines all have the same paths. Without `resume`, `output` may not exist. For `views` see `to_views`. The
    result is the number of rows written by this call that hold an error.

    Raises:
        BulkError: the input cannot be listed; the output cannot be created or resumed; Ray is not installed or failed; or no
            file could be read as an image. In the last case the output, whose rows hold the errors, remains.
        VersionUnusable: the version's files do not match its manifest, in which case no output is created; or it cannot be loaded.
        OSError: for example, the disk is full; the parts that were written remain.
    """
    version.verify()
    requested = describe(source, version, settings, views)
    run = resume_run(requested, output) if resume and output.exists() else None
    make_parts = _make_parts(runner)  # fails without Ray, so it comes before anything is written
    run = run or start_run(requested, output, part_images=part_images or PART_IMAGES)
    numbers = missing_parts(run, output)
    missing_images = sum(run.part_size(number) for number in numbers)
    interval = 0.5 if sys.stderr.isatty() else _LOG_INTERVAL_SECONDS
    errors = 0
    with tqdm(total=run.images, initial=run.images - missing_images, unit=" images", mininterval=interval) as bar:
        for part_rows, part_errors in make_parts(run, output.resolve(), numbers, version, settings) if numbers else ():
            bar.update(part_rows)
            errors += part_errors
    if still_missing := missing_parts(run, output):
        raise BulkError(f"{output} lacks {len(still_missing)} of {run.parts} parts. Continue with --resume.")
    if errors == run.images:
        raise BulkError(
            f"None of the {errors:,} files could be read as an image; the column error of {output} holds the reason for each. "
            "--input takes a folder of images, or a file of paths."
        )
    return errors


def _make_parts_locally(
    run: BulkRun, output: Path, numbers: Sequence[int], version: Version, settings: Settings
) -> Iterator[tuple[int, int]]:
    classifier = BulkClassifier(version, settings)
    for number in numbers:
        yield make_part(run, output, number, classifier)


def _make_parts(runner: Runner) -> MakeParts:
    if runner == "local":
        return _make_parts_locally
    try:
        from cifar.bulk.ray_runner import make_parts_on_ray
    except ModuleNotFoundError as error:
        raise BulkError("Ray is not installed: pip install -r requirements-ray.txt.") from error
    return make_parts_on_ray
