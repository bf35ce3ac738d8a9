"""Counts each answer and, on request, records it and sends the image to shadow versions."""

from __future__ import annotations

import time

from cifar.serving.auth.principal import Requester
from cifar.serving.inference.classify import Classification, Classifier
from cifar.serving.inference.queue_slots import Disconnected
from cifar.serving.inference.recording import Records
from cifar.serving.inference.shadow import Shadows
from cifar.serving.process.metrics import count_answer


class RecordedClassifier:
    """Classifies image files for all channels. Use it from one event loop."""

    def __init__(self, classifier: Classifier, records: Records | None = None, shadows: Shadows | None = None) -> None:
        self.versions = classifier.versions
        self.queue = classifier.queue
        self.decoder = classifier.decoder
        self.waiting_bytes = classifier.waiting_bytes
        self.records = records
        self._classifier = classifier
        self._shadows = shadows

    async def classify(
        self,
        payload: bytes | None,
        *,
        channel: str,
        requester: Requester | None = None,
        top_k: int | None = None,
        version: int | None = None,
        views: object = None,
        disconnected: Disconnected = None,
        record: bool = False,
    ) -> Classification:
        """Classify one image file and count the answer. For the other arguments and the errors see `Classifier.classify`.

        `requester` is None outside a request, as in a test. `record` means: store the prediction, so that feedback can refer to it, and ask
        shadow versions too.
        """
        started = time.perf_counter()
        answer = await self._classifier.classify(
            payload,
            channel=channel,
            user=requester.user if requester else "",
            caller=requester.caller if requester else "",
            top_k=top_k,
            version=version,
            views=views,
            disconnected=disconnected,
        )
        count_answer(channel, answer.version, answer.prediction)
        if payload and record and requester:
            if self._shadows and version is None and answer.inference_ms is not None:
                self._shadows.ask(requester.request_id, answer)
            if self.records:
                await self.records.add(
                    answer,
                    payload,
                    requester=requester,
                    channel=channel,
                    started=started,
                    named=version is not None,
                )
        return answer
