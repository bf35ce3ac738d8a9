"""A bulk run from beginning to end, on whichever runner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from cifar.bulk.output import Run, begin, describe, go_on, listed, missing, rows_of, write_part
from cifar.bulk.part import Classifier
from cifar.errors import BulkError
from cifar.models.registry import Version
from cifar.settings import Settings

Runner = Literal["local", "ray"]
Make = Callable[[Run, Path, Sequence[int], Version, Settings], Iterator[tuple[int, int]]]
"""Makes the parts of these numbers; gives the rows of each, and how many of them hold an error."""
_SECONDS_BETWEEN_LINES = 30.0
"""In a log, where the bar cannot be drawn over itself."""


def predict_many(
    source: Path, output: Path, version: Version, settings: Settings, *, runner: Runner = "local", resume: bool = False
) -> int:
    """Classify all images of a folder or a manifest; see the package for what is in `output`.

    Each part has a fixed piece of the listing and is written whole, so a run that was killed at any point goes on with
    what is missing, on either runner: no row is lost, none is there twice.

    Args:
        source: a folder of images, or a file of paths; see `listing.paths`.
        output: a new folder, or with `resume` perhaps one that was begun.
        version: what answers.
        settings: engine and limits.
        runner: `local` for this machine's processors, `ray` for a Ray cluster, which sees all folders under the same names.
        resume: go on where the folder is there.

    Returns:
        How many rows of this call hold an error.

    Raises:
        BulkError: the input cannot be listed, the output cannot be gone on with, or Ray is not installed or failed;
            or not one image of this call could be read: the rows that say so are kept.
        VersionUnusable: the version cannot be loaded; then there is no output.
        OSError: no space is left, for example; whole parts are kept.
    """
    from tqdm import tqdm

    version.verify()
    wanted = describe(source, version, settings)
    run = go_on(wanted, output) if resume and output.exists() else None
    make = _runner(runner)  # before anything is written
    run = run or begin(wanted, output, part_images=settings.bulk_part_images)
    left = missing(run, output)
    to_do = sum(rows_of(run, number) for number in left)
    interval = 0.5 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    errors = 0
    with tqdm(total=run.images, initial=run.images - to_do, unit=" images", mininterval=interval) as bar:
        for rows, wrong in make(run, output.resolve(), left, version, settings):
            bar.update(rows)
            errors += wrong
    if still := missing(run, output):
        raise BulkError(f"{output} lacks {len(still)} of {run.parts} parts. Go on with --resume.")
    if errors == run.images:
        raise BulkError(
            f"None of the {errors:,} files was an image that can be read: {output} says of each why, in its column error. "
            "--input takes a folder of images, or a file of paths."
        )
    return errors


def make_part(run: Run, output: Path, number: int, classifier: Classifier) -> tuple[int, int]:
    """Classify and write one part; returns its rows and how many of them hold an error."""
    table = classifier.table(Path(run.root), listed(output, number))
    write_part(output, number, table)
    return len(table), len(table) - table["code"].null_count


def _on_this_machine(
    run: Run, output: Path, left: Sequence[int], version: Version, settings: Settings
) -> Iterator[tuple[int, int]]:
    if left:
        classifier = Classifier(version, settings)
        for number in left:
            yield make_part(run, output, number, classifier)


def _runner(name: Runner) -> Make:
    if name == "local":
        return _on_this_machine
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError as error:
        raise BulkError("Ray is not installed: pip install -r requirements-ray.txt.") from error
    from cifar.bulk.ray_runner import on_ray

    return on_ray
