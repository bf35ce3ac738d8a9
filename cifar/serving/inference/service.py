"""The functions of the server, which all channels share: classification, heat maps, batches, the list of versions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cifar.errors import CifarError
from cifar.models.manifest import Manifest
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.batch import Batches, count_by_label
from cifar.serving.inference.heatmaps import Explainer
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.process.analytics import Analytics
from cifar.settings import Settings


@dataclass(frozen=True)
class Service:
    """The functions of one process. Use it from one event loop."""

    classifier: RecordedClassifier
    explainer: Explainer
    batches: Batches
    analytics: Analytics | None
    """None when predictions are not recorded."""

    @classmethod
    def over(cls, classifier: RecordedClassifier, settings: Settings) -> Service:
        """Build all functions on one classifier, so that they share its limits."""
        records, registry = classifier.records, classifier.versions.registry
        analytics = Analytics(records.engine, registry, settings) if records else None
        return cls(classifier, Explainer(classifier, settings), Batches(classifier, settings), analytics)

    async def predict_batch(
        self,
        uploads: Sequence[Upload],
        *,
        requester: Requester | None = None,
        top_k: int | None = None,
        version: int | None = None,
        views: object = None,
    ) -> dict[str, Any]:
        """Classify many files and wait for all of them.

        Returns:
            `rows`, one for each file; `counts`, images by label (`none` for those of that grade); and `model`, the version that answered.

        Raises:
            CifarError: see `Batches.open` and `Batch.rows`.
        """
        async with self.batches.open(uploads, requester.caller if requester else "") as batch:
            found = batch.rows(requester=requester, top_k=top_k, version=version, views=views)
            rows = [row async for row in found]
        answer = next((row.answer for row in rows if row.answer), None)
        model = {"name": answer.model_name, "version": answer.version} if answer else None
        return {"rows": [row.as_json() for row in rows], "counts": count_by_label(rows), "model": model}

    async def models(self) -> dict[str, Any]:
        """Describe the versions in the registry, the newest first, with labels and traffic."""
        versions = self.classifier.versions
        return {
            "name": versions.default.name,
            "default": versions.default.number,
            "labels": versions.labels,
            "traffic": versions.traffic,
            "versions": await asyncio.to_thread(self._described),
        }

    def _described(self) -> list[dict[str, Any]]:
        registry = self.classifier.versions.registry
        described = []
        for number in reversed(registry.numbers()):
            try:
                described.append(_description(registry.get(number).manifest))
            except CifarError:  # it cannot be served, and `python -m cifar models` tells why
                continue
        return described


def _description(manifest: Manifest) -> dict[str, Any]:
    """Describe a version for API clients. Tables and curves stay in the manifest."""
    return {
        "version": manifest.version,
        "created": manifest.created,
        "class_names": manifest.class_names,
        "task": manifest.task,
        "image": manifest.image.model_dump(),
        "metrics": {name: value for name, value in manifest.metrics.items() if isinstance(value, int | float | str)},
    }
