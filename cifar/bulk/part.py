"""Make one part of a bulk run: read and classify its images, and write the rows. A file that fails becomes a row with an error."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cifar.bulk.output import BulkRun, part_paths, write_part
from cifar.cpus import available_cpus
from cifar.errors import CifarError, TooLarge, UnreadableImage
from cifar.images.decode import preprocess_views
from cifar.images.spec import Views
from cifar.images.views import MAX_VIEWS
from cifar.models.engines import engine_of
from cifar.models.predictor import Predictor
from cifar.models.registry import Version
from cifar.settings import Settings


def make_part(run: BulkRun, output: Path, number: int, classifier: BulkClassifier) -> tuple[int, int]:
    """Classify and write one part, and return its number of rows and how many of them hold an error."""
    table = classifier.table(Path(run.root), part_paths(output, number), views=run.views)
    write_part(output, number, table)
    return len(table), len(table) - table["code"].null_count


class BulkClassifier:
    """A loaded version, and threads that decode image files and classify them in batches."""

    def __init__(self, version: Version, settings: Settings, *, threads: int | None = None) -> None:
        """Load the version. `threads` defaults to the number of available processors."""
        self._settings = settings
        threads = threads or available_cpus()
        self._predictor = Predictor.load(version, engine_of(settings), threads=threads)
        self._pool = ThreadPoolExecutor(threads, "bulk")

    def table(self, root: Path, paths: Sequence[str], *, views: Views = 1) -> pa.Table:
        """Classify files, with the mean of this many views, and return one row per file, in the order of `paths`.

        Returns:
            The columns `path`, `label`, `score`, `scores` (in the order of `class_names` in the column's metadata), `ood_score`,
            `in_distribution`, `grade`, `model`, `version`, and `code` and `error` for a file that could not be classified.
        """
        views = self._predictor.views_for(views)
        size = max(1, self._settings.max_batch_images // (MAX_VIEWS if views == "auto" else views))
        batches = [paths[start : start + size] for start in range(0, len(paths), size)]
        rows = [row for rows in self._pool.map(lambda batch: self._rows(root, batch, views), batches) for row in rows]
        return pa.Table.from_pylist(rows, self._schema)

    def _rows(self, root: Path, paths: Sequence[str], views: Views) -> list[dict[str, Any]]:
        """Decode a batch of files, and classify those that could be decoded in one call."""
        manifest = self._predictor.version.manifest
        rows: list[dict[str, Any]] = []
        decoded, pixels = [], []
        for path in paths:
            row: dict[str, Any] = {
                "path": os.fsencode(path).decode("utf-8", "backslashreplace"),  # a file name need not be UTF-8
                "model": manifest.name,
                "version": manifest.version,
            }
            rows.append(row)
            try:
                pixels.append(self._views(root / path, views))
                decoded.append(row)
            except CifarError as error:
                row |= {"code": error.code, "error": str(error)}
        if pixels:
            for row, answer in zip(decoded, self._predictor.answers_of(pixels), strict=True):
                prediction = self._predictor.rank(answer, 1)
                ((row["label"], row["score"]),) = prediction.top_k
                row["scores"] = list(prediction.class_scores.values())
                row["ood_score"], row["in_distribution"] = prediction.ood_score, prediction.in_distribution
                row["grade"] = prediction.grade
        return rows

    def _views(self, file: Path, views: Views) -> np.ndarray:
        limit = self._settings.max_body_bytes
        try:
            # The size is not checked in advance: a device or a growing file does not report its true size. Without O_NONBLOCK,
            # opening a named pipe would wait until another process writes to it.
            with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
                payload = opened.read(limit + 1) or b""  # None for a named pipe without data
        except (OSError, ValueError) as error:  # ValueError: the path contains a zero byte
            raise UnreadableImage(f"The file cannot be read: {getattr(error, 'strerror', None) or error}.") from error
        if len(payload) > limit:
            raise TooLarge(f"The file has more than {limit:,} bytes, the limit CIFAR_MAX_BODY_BYTES.")
        return preprocess_views(payload, self._predictor.image, views, max_pixels=self._settings.max_image_pixels)

    @cached_property
    def _schema(self) -> pa.Schema:
        names = "\n".join(self._predictor.class_names)
        return pa.schema(
            [
                ("path", pa.string()),
                ("label", pa.string()),
                ("score", pa.float32()),
                pa.field("scores", pa.list_(pa.float32()), metadata={"class_names": names}),
                ("ood_score", pa.float32()),
                ("in_distribution", pa.bool_()),
                ("grade", pa.string()),
                ("model", pa.string()),
                ("version", pa.int32()),
                ("code", pa.string()),
                ("error", pa.string()),
            ]
        )
