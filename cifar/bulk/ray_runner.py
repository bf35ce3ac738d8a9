"""Make the parts of a bulk run on a Ray cluster: Ray Data distributes their numbers, and each worker makes whole parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from cifar.bulk.output import BulkRun
from cifar.bulk.part import BulkClassifier, make_part
from cifar.errors import BulkError
from cifar.models.registry import Version
from cifar.settings import Settings


class _RayWorker:
    """Makes whole parts on one processor. Ray creates at most one such worker per processor of the cluster."""

    def __init__(self, run: BulkRun, output: Path, version: Version, settings: Settings) -> None:
        self._run, self._output = run, output
        self._classifier = BulkClassifier(version, settings, threads=1)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        rows, errors = make_part(self._run, self._output, int(row["number"]), self._classifier)
        return {"rows": rows, "errors": errors}


def make_parts_on_ray(
    run: BulkRun, output: Path, numbers: Sequence[int], version: Version, settings: Settings
) -> Iterator[tuple[int, int]]:
    """Make the numbered parts, as `MakeParts` says, on the cluster of `RAY_ADDRESS`, or on a local cluster without that variable.

    Raises:
        BulkError: Ray or a worker failed, also after Ray's retries; the parts that were written remain.
    """
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        items = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        made = items.map(
            _RayWorker,
            fn_constructor_args=(run, output, version, settings),
            concurrency=(1, min(processors, len(numbers))),
            num_cpus=1,
        )
        for row in made.iter_rows():
            yield int(row["rows"]), int(row["errors"])
    except ray.exceptions.RayError as error:
        raise BulkError(f"Ray failed: {str(error).strip().splitlines()[-1]} Continue with --resume.") from error
