"""What a process can do, whoever asks: the page, Gradio's clients, REST or MCP. All share its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cifar.errors import CifarError
from cifar.models.manifest import Manifest
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.batch import Batches, Row, counts
from cifar.serving.inference.classify import Classifier
from cifar.serving.inference.heatmaps import Explainer
from cifar.serving.process.analytics import Analytics
from cifar.settings import Settings


@dataclass(frozen=True)
class Service:
    """The functions that are offered. Use it from one event loop."""

    classifier: Classifier
    explainer: Explainer
    batches: Batches
    experiment: Analytics | None
    """None where nothing is recorded."""

    @classmethod
    def over(cls, classifier: Classifier, settings: Settings) -> Service:
        """Build the others on one classifier."""
        records, registry = classifier.records, classifier.versions.registry
        experiment = Analytics(records.recorder.engine, registry, settings) if records else None
        return cls(classifier, Explainer(classifier, settings), Batches(classifier, settings), experiment)

    async def predict_batch(
        self,
        uploads: Sequence[Upload],
        *,
        requester: Requester | None = None,
        top_k: object = None,
        version: object = None,
    ) -> dict[str, Any]:
        """Classify many files and wait for all: `rows`, images by label (`counts`), and the model that spoke.

        Raises:
            CifarError: see `Batches.open` and `Batch.rows`.
        """
        async with self.batches.open(uploads) as batch:
            rows = [row async for row in batch.rows(requester=requester, top_k=top_k, version=version)]
        return {"rows": [row.as_json() for row in rows], "counts": counts(rows), "model": _model(rows)}

    async def models(self) -> dict[str, Any]:
        """The versions in the registry, the newest first, their labels, and which one is stable."""
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
            except CifarError:  # it cannot be served, and `python -m cifar models` says why
                continue
        return described


def _model(rows: list[Row]) -> dict[str, Any] | None:
    return next(({"name": row.answer.model_name, "version": row.answer.version} for row in rows if row.answer), None)


def _description(manifest: Manifest) -> dict[str, Any]:
    """What a caller needs to know of a version. Tables and curves stay in the manifest."""
    return {
        "version": manifest.version,
        "created": manifest.created,
        "class_names": manifest.class_names,
        "image": manifest.image.model_dump(),
        "metrics": {name: value for name, value in manifest.metrics.items() if isinstance(value, int | float | str)},
    }
