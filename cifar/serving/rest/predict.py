"""`POST /predict`: classify one image.

The route is declared once, to FastAPI, which documents it. It reads the request itself, because the image and the parameters may come in a
form or as a raw body with a query. Requests for exactly this path reach it directly: see `Api.direct`.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import request_response

from cifar.errors import BadParameter, MissingImage
from cifar.serving.asgi import Endpoint, read_body
from cifar.serving.auth.principal import Requester
from cifar.serving.auth.signin import documented
from cifar.serving.inference.classify import whole_number
from cifar.serving.inference.recorded import RecordedClassifier
from cifar.serving.rest.forms import Part, read_form
from cifar.serving.rest.openapi import VERSION, VIEWS, ModelVersion, failures, image_request
from cifar.settings import Settings


class Ranked(BaseModel):
    """One class and its probability."""

    label: str
    score: float


class Answer(BaseModel):
    """The classification of one image."""

    predicted_class: str
    confidence: float
    class_scores: dict[str, float] = Field(
        description="The probability of each class. They add up to 1, except for a multi-label version, where each class has its own."
    )
    top_k: list[Ranked]
    ood_score: float | None = Field(
        description="Distance from the training images: 0 for a typical one, above 1 for the 5 % least typical. Null: the version has no such score."
    )
    in_distribution: bool | None = Field(
        description="False: the image probably shows none of the classes, whatever the probabilities say. Null: the version has no such score."
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

    router = APIRouter(route_class=_PlainRoute)

    @router.post(
        "/predict",
        response_model=Answer,
        responses=failures(),
        dependencies=documented(settings),
        openapi_extra=image_request(parameters),
    )
    async def predict(request: Request) -> Response:
        """Classify one image: a multipart field `image`, or the file itself as the body."""
        image, values = await read_image(request, tuple(parameters))
        record = values.get("record", "true")
        if record not in {"true", "false"}:
            raise BadParameter(f"record must be true or false; got {record[:40]!r}.")
        answer = await classifier.classify(
            image,
            channel="rest",
            requester=Requester.of(request.scope),
            top_k=whole_number("top_k", values.get("top_k")),
            version=whole_number("version", values.get("version")),
            views=whole_number("views", values.get("views")),
            disconnected=partial(disconnected, request),
            record=record == "true",
        )
        content = orjson.dumps({**answer.as_json(), "request_id": request.state.request_id})
        return Response(content, media_type="application/json")

    api.router.routes.extend(router.routes)
    return predict


async def disconnected(request: Request) -> None:
    """Wait until the client disconnects. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_image(request: Request, names: tuple[str, ...]) -> tuple[bytes | None, dict[str, str]]:
    """Read the image and the parameters of a request, from a form or from a raw body, and from the query.

    Args:
        request: its body has not been read yet.
        names: the parameters of the route.

    Returns:
        The image file, if there is one, and the values of the parameters that were sent.

    Raises:
        BadRequest, MissingImage, BadParameter: the request does not have the documented form.
        CallerLeft: see `read_body`.
    """
    body = await read_body(request.receive)
    values: dict[str, str] = {}

    def add(name: str, value: str) -> None:
        if name in names and values.setdefault(name, value) != value:
            raise BadParameter(f"{name} was sent twice, with different values. Send it once.")

    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1")):
        add(name, value)
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return body or None, values
    if kind != "multipart/form-data":
        raise MissingImage(
            f"Expected multipart/form-data with a file field `image`, or an image/* body; got {kind or 'no Content-Type'}."
        )
    image = None
    for part in read_form(body, content_type):
        if part.name == "image":
            image = _file(part)
        elif part.name in names:
            add(part.name, part.content.decode("utf-8", "replace"))
        else:
            raise BadParameter(f"There is no field {part.name!r}; there are: image, {', '.join(names)}.")
    return image, values


def _file(part: Part) -> bytes:
    if not part.is_file:
        raise MissingImage("The field `image` came as text; send it as a file, as `curl -F image=@photo.jpg` does.")
    return part.content
