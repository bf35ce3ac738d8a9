"""The same parts on a Ray cluster: Ray Data hands out their numbers, and each worker classifies and writes whole parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from cifar.bulk.output import Run
from cifar.bulk.part import Classifier
from cifar.bulk.run import make_part
from cifar.errors import BulkError
from cifar.models.registry import Version
from cifar.settings import Settings


class _Worker:
    """One processor's classifier; Ray makes as many as the cluster has room for."""

    def __init__(self, run: Run, output: Path, version: Version, settings: Settings) -> None:
        self._run, self._output = run, output
        self._classifier = Classifier(version, settings, threads=1)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        rows, errors = make_part(self._run, self._output, int(row["number"]), self._classifier)
        return {"rows": rows, "errors": errors}


def on_ray(
    run: Run, output: Path, left: Sequence[int], version: Version, settings: Settings
) -> Iterator[tuple[int, int]]:
    """Make the parts in `left`, wherever Ray has processors: the cluster of `RAY_ADDRESS`, else one on this machine.

    Raises:
        BulkError: a worker failed more often than Ray tries again; the parts that are there are kept.
    """
    if not left:
        return
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        numbers = ray.data.from_items([{"number": number} for number in left], override_num_blocks=len(left))
        made = numbers.map(
            _Worker,
            fn_constructor_args=(run, output, version, settings),
            concurrency=(1, min(processors, len(left))),
            num_cpus=1,
        )
        for row in made.iter_rows():
            yield int(row["rows"]), int(row["errors"])
    except ray.exceptions.RayError as error:
        raise BulkError(f"Ray failed: {str(error).strip().splitlines()[-1]} Go on with --resume.") from error
