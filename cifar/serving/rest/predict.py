"""`POST /predict`: the route that programs call most, answered without the framework around it.

Its middleware, router, form reader and response objects take several times as long as the model. So this reads and
writes the HTTP messages itself, and `Api` hands it the request before the framework sees it. FastAPI documents the route.
"""

from __future__ import annotations

from functools import partial
from urllib.parse import parse_qsl

import orjson
from starlette.types import Receive, Scope, Send

from cifar.errors import BadParameter, CallerLeft, MissingImage
from cifar.serving.asgi import any_error_response, header
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.classify import Classifier
from cifar.serving.rest.forms import Part, read_form

PARAMETERS = ("top_k", "version", "record")


class PredictRoute:
    """The route as an ASGI app. The request has its id already."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        try:
            body = await self._answer(scope, receive)
        except Exception as error:
            await any_error_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        image, parameters = await read_image(scope, receive, PARAMETERS)
        record = parameters.get("record", "true")
        if record not in {"true", "false"}:
            raise BadParameter(f"record must be true or false; got {record[:40]!r}.")
        answer = await self._classifier.classify(
            image,
            channel="rest",
            requester=Requester.of(scope),
            top_k=parameters.get("top_k"),
            version=parameters.get("version"),
            disconnected=partial(until_gone, receive),
            record=record == "true",
        )
        return orjson.dumps({**answer.as_json(), "request_id": scope["state"]["request_id"]})


async def read_body(receive: Receive) -> bytes:
    """The whole body, or `CallerLeft`."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft("The caller left before the request was whole.")
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def until_gone(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_image(scope: Scope, receive: Receive, names: tuple[str, ...]) -> tuple[bytes | None, dict[str, str]]:
    """The image and the parameters of a request, from a form or from a raw body and the query.

    Args:
        scope: the request's.
        receive: gives its body.
        names: of the parameters that there are.

    Raises:
        BadRequest, MissingImage, BadParameter: the request is not formed as the route documents it.
        CallerLeft: before the request was whole.
    """
    body = await read_body(receive)
    parameters: dict[str, str] = {}

    def take(name: str, value: str) -> None:
        if name in names and parameters.setdefault(name, value) != value:
            raise BadParameter(f"{name} came twice, with two values; send one.")

    if scope["query_string"]:
        for name, value in parse_qsl(scope["query_string"].decode("latin-1")):
            take(name, value)
    content_type = header(scope, b"content-type")
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return body or None, parameters
    if kind != "multipart/form-data":
        raise MissingImage(
            f"Expected multipart/form-data with a file field `image`, or an image/* body; got {kind or 'no Content-Type'}."
        )
    image = None
    for part in read_form(body, content_type):
        if part.name == "image":
            image = _file(part)
        elif part.name in names:
            take(part.name, part.content.decode("utf-8", "replace"))
        else:
            raise BadParameter(f"There is no field {part.name!r}; there are: image, {', '.join(names)}.")
    return image, parameters


def _file(part: Part) -> bytes:
    if not part.is_file:
        raise MissingImage("The field `image` came as text; send it as a file, as `curl -F image=@photo.jpg` does.")
    return part.content
