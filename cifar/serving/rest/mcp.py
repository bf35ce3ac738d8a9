"""The tools for AI assistants: a stateless server of the Model Context Protocol, `POST /gradio_api/mcp/`.

It replaces Gradio's own MCP server at this address, which fetches URLs for its callers, writes every image to a folder that
is never cleaned, and answers with Python literals. This one takes images as base64, keeps them in memory and answers in JSON.
Requests do not depend on each other, so any worker can answer them.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import orjson
from fastapi import FastAPI
from mcp.server.fastmcp import Context, FastMCP
from mcp.server.fastmcp.exceptions import ToolError
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import Field, ValidationError
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cifar import __version__
from cifar.errors import INTERNAL_ERROR, BadParameter, BadRequest, CifarError, NotAcceptable
from cifar.serving.asgi import header, preferred, read_body, replay
from cifar.serving.auth.principal import Requester
from cifar.serving.inference.archives import Upload
from cifar.serving.inference.classify import whole_number
from cifar.serving.inference.service import Service
from cifar.serving.process.lifespan import while_serving
from cifar.serving.rest.json_pieces import decode_image, parse_json
from cifar.serving.rest.openapi import VIEWS
from cifar.settings import Settings

log = logging.getLogger(__name__)

PATH = "/gradio_api/mcp"
_JSON = "application/json"
_MAX_DEPTH = 100
_MAX_TEXT_CHARACTERS = 10_000
"""Of a text that is no file. The library reads numbers, addresses and lists in texts, and repeats them in its errors."""
_OTHER_ITEMS = 1000
"""Values, keys and lists of a call besides its files."""
_INSTRUCTIONS = (
    "Classifies images with a versioned Keras model. Images are sent as base64 or data: URLs; no address is fetched."
)
_IMAGE = "The image file in base64, or as a data: URL. JPEG, PNG, WebP, GIF, BMP, TIFF, HEIF or AVIF."
_READS = ToolAnnotations(readOnlyHint=True, idempotentHint=True, openWorldHint=False)
_WRITES = ToolAnnotations(readOnlyHint=False, destructiveHint=False, idempotentHint=True, openWorldHint=False)

Image = Annotated[str, Field(description=_IMAGE)]
TopK = Annotated[int | None, Field(description="How many classes to rank.")]
VersionNumber = Annotated[int | None, Field(description="The model version to use. Without it, the default one.")]
Views = Annotated[int | str | None, Field(description=VIEWS["description"])]
Label = Annotated[str | None, Field(description="One of the model's classes. Without it, the most probable one.")]
Request = Context[Any, Any, Any]


def add_mcp(api: FastAPI, service: Service, settings: Settings) -> None:
    """Add the route, for POST only: a stateless server sends no events of its own."""
    server = create_server(service, settings)
    server.streamable_http_app()  # creates the session manager
    manager = server.session_manager
    while_serving(api, manager.run)
    endpoint = _Endpoint(manager, settings.max_batch_files)
    api.router.routes.extend(Route(path, endpoint, methods=["POST"]) for path in (PATH, f"{PATH}/"))


class _Endpoint:
    """The library's ASGI app, for calls of a form that it can check quickly.

    It knows no wildcards and no capitals in the headers Accept and Content-Type. It would answer 500 to invalid UTF-8 and to
    JSON nested too deeply, and take seconds for a million keys or files.
    """

    def __init__(self, manager: StreamableHTTPSessionManager, max_files: int) -> None:
        self._manager = manager
        self._max_files = max_files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accept = header(scope, b"accept")
        if not preferred(accept, [_JSON]):
            raise NotAcceptable(f"The answer is application/json, which the header Accept excludes: {accept[:80]!r}.")
        if (kind := header(scope, b"content-type")).partition(";")[0].strip().lower() != _JSON:
            raise BadRequest(f"The header Content-Type of a call must be application/json; got {kind[:80]!r}.")
        body = await read_body(receive)
        await asyncio.to_thread(_check_form, body, self._max_files)
        headers = [pair for pair in scope["headers"] if pair[0] not in {b"accept", b"content-type"}]
        scope["headers"] = [*headers, *((name, _JSON.encode()) for name in (b"accept", b"content-type"))]
        await self._manager.handle_request(scope, replay(body, receive), send)


def _check_form(body: bytes, max_files: int) -> None:
    """Check what a call consists of: its values, and those in its texts, since the library reads lists in texts too.

    Raises:
        BadRequest: it is not JSON, too deep, or has too many values or files, or too long a text.
    """
    max_items = 2 * max_files + _OTHER_ITEMS  # the comma after a file, and the one in its data: URL
    call = parse_json(body, max_items=max_items)
    parameters = call.get("params") if isinstance(call, dict) else None
    arguments = parameters.get("arguments") if isinstance(parameters, dict) else None
    image, files = map(arguments.get, ("image", "files")) if isinstance(arguments, dict) else (None, None)
    if isinstance(files, list) and len(files) > max_files:
        raise BadRequest(f"A batch has at most {max_files:,} files; got {len(files):,}.")
    file_ids = {id(each) for each in (image, files, *(files if isinstance(files, list) else ()))}
    items, parts = 0, [(call, 1)]
    while parts:
        part, depth = parts.pop()
        if isinstance(part, dict):
            parts += ((each, depth + 1) for pair in part.items() for each in pair)
        elif isinstance(part, list):
            parts += ((each, depth + 1) for each in part)
        elif isinstance(part, str):
            items += sum(part.count(mark) for mark in ",[{")
            if len(part) > _MAX_TEXT_CHARACTERS and id(part) not in file_ids:
                raise BadRequest(f"A text that is no file has at most {_MAX_TEXT_CHARACTERS:,} characters.")
        if depth > _MAX_DEPTH or items > max_items:
            raise BadRequest(f"A call is at most {_MAX_DEPTH} levels deep and has at most {max_items:,} values.")


class _Server(FastMCP[None]):
    """The library's server, with a sentence of ours for a wrong name or argument: its own repeats the argument, and names our classes."""

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        try:
            return await super().call_tool(name, arguments)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                first = error.__cause__.errors()[0]
                wrong = BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.")
            else:
                tools = ", ".join(tool.name for tool in await self.list_tools())
                wrong = BadParameter(f"There is no tool {name[:40]!r}; there are: {tools}.")
        return _failed(wrong)


def create_server(service: Service, settings: Settings) -> FastMCP[None]:
    """Create the tools, with the names and parameters of Gradio's endpoints."""
    server = _Server(
        "CIFAR Space",
        instructions=_INSTRUCTIONS,
        json_response=True,
        stateless_http=True,
        max_request_body_size=settings.max_body_bytes,
        # nginx checks the host (NGINX_HOSTS), and CORS keeps out the pages of other sites.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )

    server._mcp_server.version = __version__  # noqa: SLF001 - the library takes no version, and would show its own

    @server.tool(annotations=_READS)
    async def predict(
        context: Request, image: Image, top_k: TopK = None, version: VersionNumber = None, views: Views = None
    ) -> CallToolResult:
        """Classify one image: the most probable classes and their probabilities."""

        async def answer() -> dict[str, Any]:
            requester = _requester(context)
            classified = await service.classifier.classify(
                await asyncio.to_thread(decode_image, image, "image"),
                channel="mcp",
                requester=requester,
                top_k=whole_number("top_k", top_k),
                version=whole_number("version", version),
                views=views,
                record=True,
            )
            return {**classified.as_json(), "request_id": requester and requester.request_id}

        return await _result(answer)

    @server.tool(annotations=_READS)
    async def explain(
        context: Request, image: Image, label: Label = None, version: VersionNumber = None
    ) -> CallToolResult:
        """Show which parts of an image a label's score depends on: a heat map, also drawn over the image."""
        pictures: list[ImageContent] = []

        async def answer() -> dict[str, Any]:
            explanation = await service.explainer.explain(
                await asyncio.to_thread(decode_image, image, "image"),
                channel="mcp",
                requester=_requester(context),
                label=label,
                version=whole_number("version", version),
            )
            picture = base64.b64encode(explanation.overlay).decode()
            pictures.append(ImageContent(type="image", data=picture, mimeType="image/png"))
            return {key: value for key, value in explanation.as_json().items() if key != "overlay"}

        return await _result(answer, pictures)

    @server.tool(annotations=_READS)
    async def predict_batch(
        context: Request,
        files: Annotated[list[Image], Field(description="Image files, and zip archives of them.")],
        top_k: TopK = None,
        version: VersionNumber = None,
        views: Views = None,
    ) -> CallToolResult:
        """Classify many images. A file that cannot be read is a row with its error."""

        async def answer() -> dict[str, Any]:
            names = [f"file {position}" for position in range(1, len(files) + 1)]
            contents = await asyncio.to_thread(lambda: list(map(decode_image, files, names)))
            uploads = list(map(Upload, names, contents))
            return await service.predict_batch(
                uploads,
                requester=_requester(context),
                top_k=whole_number("top_k", top_k),
                version=whole_number("version", version),
                views=views,
            )

        return await _result(answer)

    @server.tool(annotations=_READS)
    async def models() -> CallToolResult:
        """List the model versions that can be used."""
        return await _result(service.models)

    if records := service.classifier.records:

        @server.tool(annotations=_WRITES)
        async def feedback(
            context: Request,
            request_id: Annotated[str, Field(description="The `request_id` of an answer.")],
            label: Annotated[str, Field(description="One of the version's classes, or none.")],
            note: Annotated[str | None, Field(description="Any further remark.")] = None,
        ) -> CallToolResult:
            """Send the right label for an answer."""
            return await _result(lambda: records.store_feedback(request_id, label, note, requester=_requester(context)))

    return server


def _requester(context: Request) -> Requester | None:
    request = context.request_context.request
    return request and Requester.of(request.scope)


async def _result(
    answer: Callable[[], Awaitable[dict[str, Any]]], pictures: Sequence[ImageContent] = ()
) -> CallToolResult:
    """Return an answer or an error as structured content, and as text for clients that know only text."""
    try:
        content = await answer()
    except CifarError as error:
        return _failed(error)
    except Exception:
        log.exception("an MCP call failed")
        return _failed(CifarError(INTERNAL_ERROR))
    return CallToolResult(content=[_as_text(content), *pictures], structuredContent=content)


def _failed(error: CifarError) -> CallToolResult:
    content = {"error": str(error), "code": error.code}
    return CallToolResult(content=[_as_text(content)], structuredContent=content, isError=True)


def _as_text(content: dict[str, Any]) -> TextContent:
    return TextContent(type="text", text=orjson.dumps(content).decode())
