"""Records of this process's answers, and what callers say of them: `POST /feedback`, and the same for Gradio's clients and MCP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from cifar.errors import MissingScope, RecordsUnavailable, RequestNotFound
from cifar.images.decode import statistics
from cifar.models.predictor import Prediction
from cifar.records.feedback import give
from cifar.records.recorder import Recorder
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.shadow import Comparison
from cifar.serving.process.lifespan import while_serving
from cifar.serving.process.metrics import FEEDBACK, IMAGES_NOT_KEPT, RECORDS_DROPPED
from cifar.settings import Settings

log = logging.getLogger(__name__)

_AGAIN = 1.5
"""In flushes of the journal: when another host's prediction must have arrived."""


class Records:
    """Records the answers of one process, and takes feedback. Use it from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.recorder = Recorder(settings, on_drop=RECORDS_DROPPED.inc)
        """What stores them; `add_comparison` is there."""
        self._database = ThreadPoolExecutor(2, "feedback")
        """Its own threads: a database that does not answer must hold up nobody's images."""

    def add(
        self,
        prediction: Prediction,
        pixels: np.ndarray,
        *,
        requester: Requester,
        channel: str,
        model: str,
        version: int,
        digest: str,
        seconds: float,
    ) -> None:
        """Record an answer that is about to leave.

        Args:
            prediction: the answer.
            pixels: the model's input, `uint8`.
            requester: who asked.
            channel: the way it came.
            model: who answered.
            version: of it.
            digest: of the file.
            seconds: from the whole request to the answer.
        """
        label, score = prediction.top_k[0]
        brightness, contrast = statistics(pixels)
        self.recorder.add(
            {
                "request_id": requester.request_id,
                "model": model,
                "version": version,
                "route": channel,
                "user": self.recorder.user(requester.user),
                "label": label,
                "score": score,
                "scores": prediction.class_scores,
                "ood_score": prediction.ood_score,
                "in_distribution": prediction.in_distribution,
                "digest": digest,
                "brightness": brightness,
                "contrast": contrast,
                "seconds": seconds,
            }
        )

    def compared(self, comparison: Comparison) -> None:
        """Record what a shadow version said beside the one that answered."""
        self.recorder.add_comparison(
            model=comparison.model,
            version=comparison.version,
            shadow_version=comparison.shadow_version,
            agrees=comparison.agrees,
            distance=comparison.distance,
        )

    @property
    def keeps_images(self) -> bool:
        """Whether `keep` is to be called."""
        return self.recorder.kept is not None

    async def keep(self, digest: str, payload: bytes) -> None:
        """Keep an image, where the settings say so and the limits allow it."""
        kept = self.recorder.kept
        if kept and not await asyncio.to_thread(kept.keep, digest, payload):
            IMAGES_NOT_KEPT.inc()

    async def give(
        self, request_id: str, label: object, note: object, *, requester: Requester | None
    ) -> dict[str, Any]:
        """Store what was right, in place of what the same caller said before.

        Args:
            request_id: of the answer.
            label: one of the version's classes, or `none`.
            note: at most `max_feedback_note_characters`, or None.
            requester: who says so: who asked, or a caller with the scope `admin`.

        Returns:
            `request_id`, `label`, `note` and `at`, as stored.

        Raises:
            MissingScope: they may give no feedback.
            RequestNotFound: they have no such prediction.
            BadParameter: there is no such label, or the note is none.
            RecordsUnavailable: the records cannot be read or written now.
        """
        if requester is None or "feedback" not in requester.scopes:
            raise MissingScope("Feedback needs the scope feedback.")
        try:
            row = await self._give(request_id, label, note, requester)
        except RequestNotFound:
            if self._settings.database_url is None:
                raise
            await asyncio.sleep(_AGAIN * self._settings.records_flush_seconds)  # another host may have answered
            row = await self._give(request_id, label, note, requester)
        FEEDBACK.inc()
        at = datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="milliseconds")
        return {"request_id": row["request_id"], "label": row["label"], "note": row["note"], "at": at}

    async def _give(self, request_id: str, label: object, note: object, requester: Requester) -> dict[str, Any]:
        if self.recorder.dependency.failing:
            raise _unavailable()
        work = partial(
            give,
            self.recorder,
            request_id,
            label,
            note,
            by=self.recorder.user(requester.user),
            for_anybody="admin" in requester.scopes,
            most_characters=self._settings.max_feedback_note_characters,
        )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._database, work)
        except (SQLAlchemyError, OSError) as error:
            log.warning("feedback could not be stored: %s", type(error).__name__)
            raise _unavailable() from error

    def while_serving(self, api: FastAPI) -> None:
        """Begin with the server, and end after it."""

        @asynccontextmanager
        async def recording() -> AsyncIterator[None]:
            self.recorder.start()
            try:
                yield
            finally:
                await asyncio.to_thread(self.recorder.stop)

        while_serving(api, recording)


def _unavailable() -> RecordsUnavailable:
    return RecordsUnavailable("Feedback cannot be stored now; predictions go on. Try again later.")
