"""The records of one process: it logs predictions and shadow comparisons, keeps images, and stores feedback."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from cifar.errors import CifarError, MissingScope, RecordsUnavailable, RequestNotFound
from cifar.images.decode import brightness_and_contrast
from cifar.models.registry import Registry
from cifar.records.feedback import store_feedback
from cifar.records.recorder import Recorder
from cifar.records.values import Row
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.classify import Classification
from cifar.serving.inference.shadow import ShadowComparison
from cifar.serving.process.lifespan import while_serving
from cifar.serving.process.metrics import FEEDBACK, IMAGES_NOT_KEPT, RECORDS_DROPPED
from cifar.settings import Settings

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""Interval at which records are moved from the journal into the database."""
_OTHER_HOSTS_SECONDS = 1.5 * FLUSH_SECONDS
"""Time after which a prediction made on another host is in the database."""
_MAX_WAIT_SECONDS = 2.0
"""Longest wait of feedback for a thread. The threads are busy as long only while the database hangs, where each attempt takes seconds."""


class Records:
    """Records the answers of one process and takes feedback. Use it from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._recorder = Recorder(settings, flush_seconds=FLUSH_SECONDS, on_drop=RECORDS_DROPPED.inc)
        self._registry = settings.registry
        self._several_hosts = settings.database_url is not None
        # not the threads that decode images: these ones block while the database hangs
        self._threads = ThreadPoolExecutor(2, "feedback")
        self.engine = self._recorder.engine
        self.dependency = self._recorder.dependency

    async def add(
        self,
        answer: Classification,
        payload: bytes,
        *,
        requester: Requester,
        channel: str,
        started: float,
        named: bool = False,
    ) -> None:
        """Record an answer that is about to be sent. When this returns, the record survives the process.

        The image file, `payload`, is stored only with the setting `keep_uploads`. `started` is when the classification began, by
        `time.perf_counter`. The A/B test leaves out the answers to requests that `named` the version.
        """
        images = self._recorder.images
        if images and not await asyncio.to_thread(images.put, answer.digest, payload):
            IMAGES_NOT_KEPT.inc()
        label, score = answer.prediction.top_k[0]
        brightness, contrast = brightness_and_contrast(answer.seen)
        self._recorder.add(
            {
                "request_id": requester.request_id,
                "model": answer.model_name,
                "version": answer.version,
                "route": channel,
                "user": self._recorder.user_hash(requester.user),
                "label": label,
                "score": score,
                "scores": answer.prediction.class_scores,
                "ood_score": answer.prediction.ood_score,
                "in_distribution": answer.prediction.in_distribution,
                "digest": answer.digest,
                "brightness": brightness,
                "contrast": contrast,
                "seconds": time.perf_counter() - started,
                "named": named,
                "source": self._recorder.user_hash(requester.caller),
            }
        )

    def add_comparison(self, comparison: ShadowComparison) -> None:
        """Record how the answer of a shadow version compares with the answer that was sent."""
        row = asdict(comparison)
        del row["request_id"]
        self._recorder.add_comparison(row)

    async def store_feedback(
        self, request_id: str, label: object, note: object, *, requester: Requester | None
    ) -> dict[str, Any]:
        """Store the correct label of a prediction, one of the version's classes or `none`. It replaces earlier feedback on the prediction.

        Feedback may be given by the user of the prediction, and with the scope `admin`. Return `request_id`, `label`, `note` and `at`, as stored.

        Raises:
            MissingScope: the requester lacks the scope `feedback`.
            RequestNotFound: the requester has no such prediction.
            BadParameter: there is no such label, or the note is not usable.
            RecordsUnavailable: the records cannot be read or written at the moment.
        """
        if requester is None or "feedback" not in requester.scopes:
            raise MissingScope("Feedback needs the scope feedback.")
        try:
            row = await self._store(request_id, label, note, requester)
        except RequestNotFound:
            if not self._several_hosts:
                raise
            await asyncio.sleep(_OTHER_HOSTS_SECONDS)
            row = await self._store(request_id, label, note, requester)
        FEEDBACK.inc()
        at = datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="milliseconds")
        return {"request_id": row["request_id"], "label": row["label"], "note": row["note"], "at": at}

    async def _store(self, request_id: str, label: object, note: object, requester: Requester) -> Row:
        unavailable = RecordsUnavailable("Feedback cannot be stored now; predictions go on. Try again later.")
        if self.dependency.failing:
            raise unavailable
        store = partial(
            store_feedback,
            self.engine,
            self._recorder.find,
            request_id,
            label,
            note,
            by=self._recorder.user_hash(requester.user),
            for_any_user="admin" in requester.scopes,
            is_multi_label=self._is_multi_label,
        )
        came_at = time.monotonic()

        def store_in_time() -> Row:
            if time.monotonic() - came_at > _MAX_WAIT_SECONDS:
                raise unavailable
            return store()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, store_in_time)
        except (SQLAlchemyError, OSError) as error:
            log.warning("feedback could not be stored: %s", type(error).__name__)
            raise unavailable from error

    def _is_multi_label(self, prediction: Row) -> bool:
        try:
            version = Registry(self._registry, prediction["model"]).get(prediction["version"])
        except CifarError:  # the version was removed
            return False
        return version.manifest.is_multi_label

    def record_while_serving(self, api: FastAPI) -> None:
        """Start recording with the server, and write the last records when it stops."""

        @asynccontextmanager
        async def recording() -> AsyncIterator[None]:
            self._recorder.start()
            try:
                yield
            finally:
                await asyncio.to_thread(self._recorder.stop)

        while_serving(api, recording)
