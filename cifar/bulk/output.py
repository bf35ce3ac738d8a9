"""The folder of a bulk run: begun whole, gone on with when nothing has changed, and made of whole parts."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cifar.bulk.listing import paths, root_of
from cifar.errors import BulkError
from cifar.files import sha256
from cifar.models.registry import Version
from cifar.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

_RUN = "_run.json"
_LISTING = "_listing"


@dataclass(frozen=True)
class Run:
    """What was asked for, and how it is cut."""

    input: str
    input_sha256: str | None
    """Of a manifest; a folder is listed once, and what comes into it later is not in the run."""
    root: str
    model: str
    version: int
    version_sha256: str
    """Of the version's manifest, which has the sum of every file."""
    max_body_bytes: int
    max_image_pixels: int
    images: int = 0
    part_images: int = 0

    @property
    def parts(self) -> int:
        """How many parts it has, numbered from 1."""
        return -(-self.images // self.part_images)


def describe(source: Path, version: Version, settings: Settings) -> Run:
    """The run that is asked for now, not yet listed."""
    if not source.exists():
        raise BulkError(f"{source} is not there: --input takes a folder of images, or a file of paths.")
    digest = None if source.is_dir() else sha256(source)
    manifest = sha256(version.path / "manifest.json")
    return Run(
        input=str(source.resolve()),
        input_sha256=digest,
        root=str(root_of(source)),
        model=version.name,
        version=version.number,
        version_sha256=manifest,
        max_body_bytes=settings.max_body_bytes,
        max_image_pixels=settings.max_image_pixels,
    )


def begin(wanted: Run, output: Path, *, part_images: int) -> Run:
    """List the input and make the folder; it appears with the whole listing or not at all.

    Raises:
        BulkError: there is something already, or nothing to classify, or the input would list the output.
    """
    if output.exists():
        raise BulkError(f"{output} exists. Choose another --output, or go on with it: --resume.")
    if output.resolve().is_relative_to(wanted.root) and Path(wanted.input).is_dir():
        raise BulkError(f"{output} lies in {wanted.input}, whose files are to be classified. Choose another --output.")
    temporary = output.with_name(f".tmp.{output.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
    try:
        (temporary / _LISTING).mkdir(parents=True)
        images = _write_listing(paths(Path(wanted.input)), temporary / _LISTING, part_images)
        if not images:
            raise BulkError(f"{wanted.input} holds no files to classify.")
        run = Run(**{**asdict(wanted), "images": images, "part_images": part_images})
        _write(temporary / _RUN, json.dumps(asdict(run), indent=2))
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return run


def go_on(wanted: Run, output: Path) -> Run:
    """The run that is in the folder, when it is the one asked for.

    Raises:
        BulkError: it is none, or was made from another input or by another version; says which.
    """
    try:
        run = Run(**json.loads((output / _RUN).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BulkError(f"{output} is no bulk run: it has no {_RUN}. Choose another --output.") from error
    for name, before in asdict(run).items():
        now = getattr(wanted, name)
        if name not in {"images", "part_images"} and before != now:
            raise BulkError(
                f"{output} was made with other settings: {name} was {before}, is {now}. Repeat them, or start another."
            )
    for left in output.glob(".tmp.*"):
        left.unlink(missing_ok=True)
    return run


def missing(run: Run, output: Path) -> list[int]:
    """The numbers of the parts that are still to be made.

    Raises:
        BulkError: a part was damaged since, or is of another run.
    """
    import pyarrow.parquet as pq

    left = []
    for number in range(1, run.parts + 1):
        try:
            rows = pq.read_metadata(part_path(output, number)).num_rows
        except FileNotFoundError:
            left.append(number)
            continue
        except (OSError, ValueError) as error:
            raise BulkError(f"{part_path(output, number)} is damaged. Remove it, and go on with --resume.") from error
        if rows != rows_of(run, number):
            raise BulkError(
                f"{part_path(output, number)} has {rows} rows instead of {rows_of(run, number)}. Remove it."
            )
    return left


def rows_of(run: Run, number: int) -> int:
    """How many images a part has."""
    return min(run.part_images, run.images - (number - 1) * run.part_images)


def listed(output: Path, number: int) -> list[str]:
    """The paths of one part."""
    with (output / _LISTING / f"{number:06}.txt").open(encoding="ascii") as lines:
        return [json.loads(line) for line in lines]


def write_part(output: Path, number: int, table: pa.Table) -> None:
    """Write one part whole. Its name is its place in the listing, so to write it twice does not repeat a row."""
    import pyarrow.parquet as pq

    # Two machines of a cluster may have been given the same part.
    temporary = output / f".tmp.{number:06}.{socket.gethostname()}.{os.getpid()}"
    try:
        pq.write_table(table, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(part_path(output, number))
    finally:
        temporary.unlink(missing_ok=True)


def part_path(output: Path, number: int) -> Path:
    """Where a part is, or will be."""
    return output / f"part-{number:06}.parquet"


def _write_listing(found: Iterator[str], folder: Path, part_images: int) -> int:
    images = 0
    while part := list(islice(found, part_images)):
        number = images // part_images + 1
        _write(folder / f"{number:06}.txt", "".join(f"{json.dumps(path)}\n" for path in part))
        images += len(part)
    return images


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
