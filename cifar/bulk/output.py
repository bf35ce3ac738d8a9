"""The output folder of a bulk run: created with its listing, filled part by part, and resumed only for the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cifar.bulk.listing import paths, root_of
from cifar.errors import BulkError
from cifar.files import new_folder, remove_leftovers, replacing, sha256
from cifar.images.spec import Views
from cifar.models.registry import Version
from cifar.settings import Settings

_RUN = "_run.json"
_LISTING = "_listing"


@dataclass(frozen=True)
class BulkRun:
    """The parameters of a bulk run, as in `_run.json`."""

    input: str
    input_sha256: str | None
    """SHA-256 of a file of paths; None for a folder, whose files may change after it was listed."""
    root: str
    """The folder that relative paths refer to."""
    model: str
    version: int
    version_sha256: str
    """SHA-256 of the version's manifest, which in turn holds the SHA-256 of every other file of the version."""
    max_body_bytes: int
    max_image_pixels: int
    views: Views = 1
    images: int = 0
    part_images: int = 0

    @property
    def parts(self) -> int:
        """Number of parts. They are numbered from 1."""
        return -(-self.images // self.part_images)

    def part_size(self, number: int) -> int:
        return min(self.part_images, self.images - (number - 1) * self.part_images)


def describe(source: Path, version: Version, settings: Settings, views: Views = 1) -> BulkRun:
    """Return the parameters of the requested run. `images` and `part_images` are 0 until the input is listed."""
    if not source.exists():
        raise BulkError(f"{source} does not exist. --input takes a folder of images, or a file of paths.")
    return BulkRun(
        input=str(source.resolve()),
        input_sha256=None if source.is_dir() else sha256(source),
        root=str(root_of(source)),
        model=version.name,
        version=version.number,
        version_sha256=sha256(version.path / "manifest.json"),
        max_body_bytes=settings.max_body_bytes,
        max_image_pixels=settings.max_image_pixels,
        views=views,
    )


def start_run(requested: BulkRun, output: Path, *, part_images: int) -> BulkRun:
    """List the input and create the output folder, which appears together with the whole listing or not at all.

    Raises:
        BulkError: the output exists or lies within the input, or the input holds no files.
    """
    if output.exists():
        raise BulkError(f"{output} exists. Choose another --output, or continue the run with --resume.")
    if output.resolve().is_relative_to(requested.root) and Path(requested.input).is_dir():
        raise BulkError(f"{output} lies within the input {requested.input}. Choose another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(output) as folder:
        (folder / _LISTING).mkdir()
        images = _write_listing(paths(Path(requested.input)), folder / _LISTING, part_images)
        if not images:
            raise BulkError(f"{requested.input} holds no files to classify.")
        run = replace(requested, images=images, part_images=part_images)
        (folder / _RUN).write_text(json.dumps(asdict(run), indent=2))
    return run


def resume_run(requested: BulkRun, output: Path) -> BulkRun:
    """Return the run of an existing output folder, and remove the temporary files that it left when it was killed.

    Raises:
        BulkError: the folder holds no run, or a run with another input, another version or other limits. The message names the
            difference.
    """
    try:
        run = BulkRun(**json.loads((output / _RUN).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BulkError(f"{output} is not a bulk run: it has no valid {_RUN}. Choose another --output.") from error
    for name, before in asdict(run).items():
        now = getattr(requested, name)
        if name not in {"images", "part_images"} and before != now:
            raise BulkError(
                f"{output} belongs to another run: {name} was {before}, is {now}. Repeat the original parameters, or start a new run."
            )
    remove_leftovers(output)
    return run


def missing_parts(run: BulkRun, output: Path) -> list[int]:
    """Return the numbers of the parts that are not written yet.

    Raises:
        BulkError: a part is damaged, or does not have the number of rows that the run expects.
    """
    numbers = []
    for number in range(1, run.parts + 1):
        path = _part_path(output, number)
        try:
            rows = pq.read_metadata(path).num_rows
        except FileNotFoundError:
            numbers.append(number)
            continue
        except (OSError, ValueError) as error:
            raise BulkError(f"{path} is damaged. Remove it, and continue with --resume.") from error
        if rows != run.part_size(number):
            raise BulkError(
                f"{path} has {rows} rows instead of {run.part_size(number)}. Remove it, and continue with --resume."
            )
    return numbers


def part_paths(output: Path, number: int) -> list[str]:
    with (output / _LISTING / f"{number:06}.txt").open(encoding="ascii") as lines:
        return [json.loads(line) for line in lines]


def write_part(output: Path, number: int, table: pa.Table) -> None:
    """Write one part. Writing a part twice is harmless: the second file, with the same rows, replaces the first."""
    with replacing(_part_path(output, number)) as temporary:
        pq.write_table(table, temporary)


def _part_path(output: Path, number: int) -> Path:
    return output / f"part-{number:06}.parquet"


def _write_listing(found: Iterator[str], folder: Path, part_images: int) -> int:
    images = 0
    while part := list(islice(found, part_images)):
        number = images // part_images + 1
        (folder / f"{number:06}.txt").write_text("".join(f"{json.dumps(path)}\n" for path in part))
        images += len(part)
    return images
