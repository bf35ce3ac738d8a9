"""`POST /predict`: classify one image.

The route is declared once, to FastAPI, which documents it. It reads the request itself, because the image and the parameters may come in a
form or as a raw body with a query. Requests for exactly this path reach it directly: see `Api.direct`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import request_response

from cifar.errors import BadParameter, BadRequest, MissingImage
from cifar.images.decode import begins_like_an_image
from cifar.models.grades import Grade
from cifar.serving.asgi import Endpoint, disconnected, read_unpacked_body
from cifar.serving.auth.principal import Requester
from cifar.serving.auth.signin import documented
from cifar.serving.inference.classify import whole_number
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.rest.forms import Part, read_form
from cifar.serving.rest.json_pieces import decode_image, parse_json
from cifar.serving.rest.openapi import VERSION, VIEWS, ModelVersion, failures, image_request
from cifar.settings import Settings

CLASSIFICATION = "image-classification"
"""Hugging Face's task. A request in its form is answered in its form: a list of labels and scores."""
_CLASSIFICATION_TOP_K = 5
"""Number of labels that the task returns by default, whatever the setting `default_top_k` says."""
_HUB_CLIENTS = ("hf_hub/", "@huggingface/")
"""In the User-Agent of Hugging Face's clients, which send a file as the body when they send no parameters."""
_FORM = "application/x-www-form-urlencoded"
_NO_TYPE = ("", _FORM)
"""The types of a body whose sender chose none. The second one is what `curl --data-binary` adds."""
_MAX_VALUE_BYTES = 200
"""Of a parameter in a form. To decode 20 MB that are not UTF-8 takes 80 ms."""
_THREAD_BYTES = 64 * 1024
"""Longer JSON is parsed in a thread."""
_SEVERAL = (
    "Several files came, and POST /predict classifies one. Send many to the endpoint /predict_batch "
    "(gradio_client or POST /gradio_api/call/predict_batch), or one request for each."
)
_TASK = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "string", "description": "The file in base64."},
        "parameters": {"description": 'An object, such as `{"top_k": 3}`.'},
    },
    "description": "Hugging Face's image-classification task, which is answered with a list of labels and scores.",
}


class Ranked(BaseModel):
    """One class and its probability."""

    label: str
    score: float


class Answer(BaseModel):
    """The classification of one image."""

    predicted_class: str
    confidence: float
    class_scores: list[float] = Field(
        description="The probability of each class, in the order of `labels`. They add up to 1, except for a multi-label version, "
        "where each class has its own."
    )
    labels: list[str] = Field(description="The classes of the version, in class order.")
    top_k: list[Ranked]
    ood_score: float | None = Field(
        description="Distance from the training images: 0 for a typical one, above 1 for the 5 % least typical. Null: the version has no such score."
    )
    in_distribution: bool | None = Field(
        description="False: the image is unlike the training images, whatever the probabilities say. Null: the version has no such score."
    )
    grade: Grade = Field(
        description="How far the answer can be relied on. `class`: it is the first class. `unsure`: it looks like the first class. "
        "`none`: it is probably none of the classes; never from a version without `ood_score`."
    )
    model: ModelVersion
    request_id: str


class _PlainRoute(APIRoute):
    """A route that FastAPI documents and Starlette answers: without dependency injection, from the request to the response."""

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = request_response(endpoint)


def add_predict(api: FastAPI, classifier: RecordedClassifier, settings: Settings) -> Endpoint:
    """Add the route, and return its function."""
    classes = len(classifier.versions.default.manifest.class_names)
    parameters = {
        "top_k": {"type": "integer", "minimum": 1, "maximum": classes, "description": "Number of classes to rank."},
        "version": VERSION,
        "views": VIEWS,
        "record": {
            "type": "boolean",
            "default": True,
            "description": "False: the prediction is not recorded, and there can be no feedback on it.",
        },
    }

    request_body = image_request(parameters)
    request_body["requestBody"]["content"]["application/json"] = {"schema": _TASK}
    router = APIRouter(route_class=_PlainRoute)

    @router.post(
        "/predict",
        response_model=Answer | list[Ranked],
        responses=failures(),
        dependencies=documented(settings),
        openapi_extra=request_body,
    )
    async def predict(request: Request) -> Response:
        """Classify one image: a multipart field `image`, or the file itself as the body."""
        image, values = await read_image(request, tuple(parameters), settings.max_body_bytes, task=True)
        record = values.get("record", "true")
        if record not in {"true", "false"}:
            raise BadParameter(f"record must be true or false; got {record[:40]!r}.")
        answer = await classifier.classify(
            image,
            channel="rest",
            requester=Requester.of(request.scope),
            top_k=_task_top_k(values, classes) if "task" in values else whole_number("top_k", values.get("top_k")),
            version=whole_number("version", values.get("version")),
            views=values.get("views"),
            disconnected=partial(disconnected, request.receive),
            record=record == "true",
        )
        content = answer.as_json()
        shown = content["top_k"] if "task" in values else {**content, "request_id": request.state.request_id}
        return Response(orjson.dumps(shown), media_type="application/json")

    api.router.routes.extend(router.routes)
    return predict


async def read_image(
    request: Request, names: tuple[str, ...], max_body_bytes: int, *, task: bool = False
) -> tuple[bytes | None, dict[str, str]]:
    """Read the image and the parameters of a request, from a form or from a raw body, and from the query.

    Args:
        request: its body has not been read yet.
        names: the parameters of the route.
        max_body_bytes: limit on an unpacked body.
        task: also read a request of Hugging Face's image-classification task: the file from its clients, the file without a type, or
            JSON, `{"inputs": "<base64>", "parameters": {"top_k": 3}}`. The values then contain `task`.

    Returns:
        The image file, if there is one, and the values of the parameters that were sent.

    Raises:
        BadRequest, MissingImage, BadParameter: the request does not have the documented form.
        CifarError: see `read_unpacked_body`.
    """
    body = await read_unpacked_body(request.scope, request.receive, max_body_bytes)
    values: dict[str, str] = {}

    def add(name: str, value: str) -> None:
        if name in names and values.setdefault(name, value) != value:
            raise BadParameter(f"{name} was sent twice, with different values. Send it once.")

    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1")):
        add(name, value)
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _image_in_form(read_form(body, content_type), names, add), values
    if (
        kind == _FORM and body.startswith(b"\xff\xd8") and b"\0" not in body[:64]
    ):  # `curl -d` takes out zeros and ends of lines
        raise _missing_image(kind, task=task)
    if kind.startswith("image/") or kind == "application/octet-stream" or begins_like_an_image(body):
        if task and (
            kind in _NO_TYPE or any(client in request.headers.get("user-agent", "") for client in _HUB_CLIENTS)
        ):
            values["task"] = CLASSIFICATION
        return body or None, values
    if task and kind == "application/json":
        read = await asyncio.to_thread(_read_task, body) if len(body) > _THREAD_BYTES else _read_task(body)
        return read[0], {**values, **read[1]}
    raise _missing_image(kind if body else "an empty body", task=task)


def _missing_image(kind: str, *, task: bool) -> MissingImage:
    """Say how to send an image; `kind` is what came instead."""
    json = ", or JSON with a file in base64 as `inputs`" if task else ""
    hint = " Use `curl -F image=@photo.jpg`, or `files=` of Python's requests." if kind == _FORM else ""
    return MissingImage(
        f"Expected multipart/form-data with a file field `image`, an image/* body{json}; got {kind or 'no Content-Type'}.{hint}"
    )


def _image_in_form(parts: list[Part], names: tuple[str, ...], add: Callable[[str, str], None]) -> bytes | None:
    """Return the content of the field `image`, if there is one, and `add` the parameters. Unknown fields are ignored."""
    images, others = [], []
    for part in parts:
        if part.name == "image":
            images.append(part)
        elif part.name in names:
            if len(value := part.content) > _MAX_VALUE_BYTES:
                raise BadParameter(f"{part.name} must have at most {_MAX_VALUE_BYTES} bytes; got {len(value):,}.")
            add(part.name, value.decode("utf-8", "replace"))
        elif part.is_file and any(part.pieces):  # a browser sends an empty file for a field in which nothing was chosen
            others.append(part)
    if len(images) + len(others) > 1:
        raise BadRequest(_SEVERAL)
    if others:
        raise MissingImage(f"The file came in the field {others[0].name[:40]!r}; send it as the field `image`.")
    return _file(images[0]) if images else None


def _read_task(body: bytes) -> tuple[bytes, dict[str, str]]:
    """Read the JSON of Hugging Face's image-classification task.

    Raises:
        MissingImage: it is another object.
        BadRequest: the JSON cannot be read, or `inputs` is not base64.
        BadParameter: `function_to_apply` is neither softmax nor sigmoid, between which the version has chosen.
    """
    call = parse_json(body, max_items=1000)
    encoded = call.get("inputs") if isinstance(call, dict) else None
    if not isinstance(encoded, str):
        raise _missing_image(_described(call), task=True)
    parameters = call.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequest("`parameters` must be a JSON object.")
    if "candidate_labels" in parameters:
        raise BadParameter("candidate_labels must be left out: the version's classes are fixed.")
    if parameters.get("function_to_apply") not in (None, "softmax", "sigmoid"):
        raise BadParameter("function_to_apply must be left out: the version's scores are probabilities already.")
    values = {"task": CLASSIFICATION}
    if (top_k := parameters.get("top_k")) is not None:
        values["top_k"] = str(top_k) if isinstance(top_k, str | float | int) else type(top_k).__name__
    return decode_image(encoded, "`inputs`"), values


def _described(call: Any) -> str:
    """Return what a JSON body in another service's form is, for an error message."""
    if not isinstance(call, dict):
        return "application/json without an object"
    found = f"application/json with {', '.join(f'`{key[:40]}`' for key in list(call)[:3]) or 'no key'}"
    if "instances" in call:
        return f"{found}, which belongs to /v1/models/NAME:predict"
    addresses = any(isinstance(value, str) and value.startswith(("http://", "https://")) for value in call.values())
    return f"{found}; addresses are not fetched" if addresses else found


def _task_top_k(values: dict[str, str], classes: int) -> int:
    """Return the number of classes to rank. The task takes more than there are as all of them."""
    top_k = whole_number("top_k", values.get("top_k"))
    return min(_CLASSIFICATION_TOP_K if top_k is None else top_k, classes)


def _file(part: Part) -> bytes:
    content = part.content
    if not part.is_file and not begins_like_an_image(content):
        raise MissingImage("The field `image` came as text; send it as a file, as `curl -F image=@photo.jpg` does.")
    return content
