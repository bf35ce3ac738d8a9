"""The named and typed endpoints for Gradio's clients. They do not depend on how the page looks.

Gradio publishes the name, the parameters and the docstring of each function at `/gradio_api/info`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from cifar.images.views import ALLOWED_VIEWS
from cifar.serving.gradio.calls import as_cifar_error, requester_of
from cifar.serving.gradio.components import Choice, Integer, Photo, one_or_more_files, read_photo
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.classify import whole_number
from cifar.serving.inference.service import Service


def add_endpoints(service: Service) -> None:
    """Add the endpoints to the `gr.Blocks` that is being built."""

    async def predict(
        image: bytes | None,
        top_k: int | None = None,
        version: int | None = None,
        views: int | str | None = None,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:
        """Classify one image. The answer is that of `POST /predict`.

        Args:
            image: the image file.
            top_k: how many classes to rank.
            version: the model version to use.
            views: average over 1, 2 or 6 views of the image; auto: as many as help. 2: also mirrored. 6: also cropped or moved.
            request: added by Gradio.
        """
        requester = requester_of(request)
        answer = await service.classifier.classify(
            image,
            channel="gradio",
            requester=requester,
            top_k=whole_number("top_k", top_k),
            version=whole_number("version", version),
            views=views,
            record=True,
        )
        return {**answer.as_json(), "request_id": requester and requester.request_id}

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
        explanation = await service.explainer.explain(
            image,
            channel="gradio",
            requester=requester_of(request),
            label=label,
            version=whole_number("version", version),
        )
        return explanation.as_json()

    async def predict_batch(
        files: list[Upload],
        top_k: int | None = None,
        version: int | None = None,
        views: int | str | None = None,
        request: gr.Request | None = None,
    ) -> dict[str, Any]:
        """Classify many images. A file that cannot be read is a row with its error.

        Args:
            files: image files, and zip archives of them.
            top_k: how many classes to rank.
            version: the model version to use.
            views: average over 1, 2 or 6 views of the image; auto: as many as help. 2: also mirrored. 6: also cropped or moved.
            request: added by Gradio.
        """
        return await service.predict_batch(
            files,
            requester=requester_of(request),
            top_k=whole_number("top_k", top_k),
            version=whole_number("version", version),
            views=views,
        )

    async def models() -> dict[str, Any]:
        """List the model versions that can be used."""
        return await service.models()

    image = Photo(visible=False, label="image")
    label = gr.Textbox(visible=False, label="label")
    files = one_or_more_files(visible=False, label="files")
    top_k, version = (Integer(precision=0, visible=False, label=name) for name in ("top_k", "version"))
    views = Choice(list(ALLOWED_VIEWS), value=None, visible=False, label="views")
    _add(predict, image, top_k, version, views)
    _add(explain, image, label, version)
    _add(predict_batch, files, top_k, version, views)
    _add(models)


def _add(function: Callable[..., Awaitable[dict[str, Any]]], *inputs: Component) -> None:
    """Add an endpoint. Gradio's clients get the message of any error."""

    @wraps(function)  # Gradio reads the signature and the docstring
    async def call(*arguments: Any) -> dict[str, Any]:
        values = [await read_photo(value) if isinstance(value, Path) else value for value in arguments]
        try:
            return await function(*values)
        except Exception as error:
            sentence = str(as_cifar_error(error))
        values.clear()  # Gradio keeps what is raised, and so this frame, until the next garbage collection
        raise gr.Error(sentence, print_exception=False)

    gr.Button(visible=False).click(
        call,
        list(inputs),
        gr.JSON(visible=False, label="answer"),
        api_name=function.__name__,
        concurrency_limit=None,  # the service has its own limits
    )
