"""The named and typed endpoints for Gradio's clients. They do not depend on how the page looks.

Gradio publishes the name, the parameters and the docstring of each function at `/gradio_api/info`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import gradio as gr

from cifar.serving.gradio.calls import as_cifar_error, requester_of
from cifar.serving.gradio.components import Integer, Photo, one_or_more_files
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.classify import whole_number
from cifar.serving.inference.service import Service


def add_endpoints(service: Service) -> None:
    """Add the endpoints to the `gr.Blocks` that is being built."""
    _add_predict(service)
    _add_explain(service)
    _add_predict_batch(service)
    _add_models(service)


@asynccontextmanager
async def _errors_for_gradio() -> AsyncIterator[None]:
    """Turn any error into a `gr.Error` with its message."""
    try:
        yield
    except Exception as error:
        raise gr.Error(str(as_cifar_error(error)), print_exception=False) from error


def _add(function: Any, *inputs: Any) -> None:
    gr.Button(visible=False).click(
        function,
        list(inputs),
        gr.JSON(visible=False, label="answer"),
        api_name=function.__name__,
        concurrency_limit=None,  # the service has its own limits
    )


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
            version: the model version to use.
            request: added by Gradio.
        """
        async with _errors_for_gradio():
            requester = requester_of(request)
            answer = await service.classifier.classify(
                image,
                channel="gradio",
                requester=requester,
                top_k=whole_number("top_k", top_k),
                version=whole_number("version", version),
                record=True,
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
        """Show which parts of an image support a label (occlusion sensitivity). The answer is that of `POST /explain`.

        Args:
            image: the image file.
            label: one of the model's classes. By default, the most probable one.
            version: the model version to use.
            request: added by Gradio.
        """
        async with _errors_for_gradio():
            explanation = await service.explainer.explain(
                image,
                channel="gradio",
                requester=requester_of(request),
                label=label,
                version=whole_number("version", version),
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
            version: the model version to use.
            request: added by Gradio.
        """
        async with _errors_for_gradio():
            return await service.predict_batch(
                files,
                requester=requester_of(request),
                top_k=whole_number("top_k", top_k),
                version=whole_number("version", version),
            )

    _add(predict_batch, one_or_more_files(visible=False, label="files"), _integer("top_k"), _integer("version"))


def _add_models(service: Service) -> None:
    async def models() -> dict[str, Any]:
        """List the model versions that can be used."""
        async with _errors_for_gradio():
            return await service.models()

    _add(models)
