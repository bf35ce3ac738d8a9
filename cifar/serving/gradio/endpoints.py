"""The endpoints for Gradio's clients: named, typed, and independent of what the page looks like."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import gradio as gr

from cifar.errors import OUR_FAULT, CifarError
from cifar.serving.auth.principal import Requester
from cifar.serving.gradio.components import Files, Integer, OneOrMoreFiles, Photo
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.service import Service

log = logging.getLogger(__name__)


def add_endpoints(service: Service) -> None:
    """Add the endpoints to the page that is being laid out."""
    _add_predict(service)
    _add_explain(service)
    _add_predict_batch(service)
    _add_models(service)


def sentence(error: Exception) -> str:
    """What a caller reads of an error; what has no sentence is logged."""
    if isinstance(error, CifarError):
        return str(error)
    log.error("a call to the page failed", exc_info=error)
    return OUR_FAULT


@asynccontextmanager
async def _said() -> AsyncIterator[None]:
    """Turns any error into its sentence for Gradio."""
    try:
        yield
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def _add(function: Any, *inputs: Any) -> None:
    gr.Button(visible=False).click(
        function,
        list(inputs),
        gr.JSON(visible=False, label="answer"),
        api_name=function.__name__,
        concurrency_limit=None,  # the service has its own
    )


def requester_of(request: gr.Request | None) -> Requester | None:
    """Who asks through Gradio, which gives its functions the request that came."""
    return request and Requester.of(request.request.scope)


def _integer(name: str) -> Integer:
    return Integer(precision=0, visible=False, label=name)


def _add_predict(service: Service) -> None:
    async def predict(
        image: bytes | None,
        top_k: int | None = None,
        version: int | None = None,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:
        """Classify one image. The answer is that of `POST /predict`.

        Args:
            image: the image file.
            top_k: how many classes to rank.
            version: the model version to ask.
            request: what Gradio adds.
        """
        async with _said():
            requester = requester_of(request)
            answer = await service.classifier.classify(
                image, channel="gradio", requester=requester, top_k=top_k, version=version, record=True
            )
            return {**answer.as_json(), "request_id": requester and requester.request_id}

    _add(predict, Photo(visible=False, label="image"), _integer("top_k"), _integer("version"))


def _add_explain(service: Service) -> None:
    async def explain(
        image: bytes | None,
        label: str | None = None,
        version: int | None = None,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:
        """Say which part of an image a label's score rests on. The answer is that of `POST /explain`.

        Args:
            image: the image file.
            label: one of the model's classes; without it, the most probable one.
            version: the model version to ask.
            request: what Gradio adds.
        """
        async with _said():
            explanation = await service.explainer.explain(
                image, channel="gradio", requester=requester_of(request), label=label, version=version
            )
            return explanation.as_json()

    _add(explain, Photo(visible=False, label="image"), gr.Textbox(visible=False, label="label"), _integer("version"))


def _add_predict_batch(service: Service) -> None:
    async def predict_batch(
        files: list[Upload],
        top_k: int | None = None,
        version: int | None = None,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:
        """Classify many images. A file that cannot be read is a row with its error.

        Args:
            files: image files, and zip archives of them.
            top_k: how many classes to rank.
            version: the model version to ask.
            request: what Gradio adds.
        """
        async with _said():
            return await service.predict_batch(files, requester=requester_of(request), top_k=top_k, version=version)

    several = Files(file_count="multiple", visible=False, label="files")
    several.data_model = (
        OneOrMoreFiles  # Gradio reads a component's options from the signature of its `__init__`: it has none of ours
    )
    _add(
        predict_batch,
        several,
        _integer("top_k"),
        _integer("version"),
    )


def _add_models(service: Service) -> None:
    async def models() -> dict[str, Any]:
        """List the model versions that can be asked."""
        async with _said():
            return await service.models()

    _add(models)
