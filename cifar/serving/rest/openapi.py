"""OpenAPI: the parts of the schema that FastAPI cannot derive, and `/docs`, which shows it in a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from cifar.images.views import ALLOWED_VIEWS

ERRORS = {
    400: "No image, or a malformed body",
    401: "Sign-in is required, and the request has no valid credentials",
    403: "The caller lacks the scope `predict`",
    404: "No such version",
    413: "Body or image too large",
    415: "Not an image in a supported format",
    422: "The image cannot be decoded, or a parameter is wrong",
    429: "Too many requests; `Retry-After` says when to try again",
    503: "Not ready, or overloaded; `Retry-After` says when to try again",
}
"""Error statuses of the routes that take images."""
VERSION = {"type": "integer", "minimum": 1, "maximum": 999_999_999, "description": "The model version to use."}
VIEWS: dict[str, Any] = {
    "type": ["integer", "string"],
    "enum": list(ALLOWED_VIEWS),
    "default": 1,
    "description": "Average over this many views. 2: the image and its mirror image; 6: also its four corners for a photograph at least twice as "
    "large as the model's input, and otherwise both moved by one pixel; auto: 6 for such a photograph if the version gains from it, otherwise 1.",
}


class ModelVersion(BaseModel):
    """The model version that answered."""

    name: str
    version: int


class Error(BaseModel):
    """An error. `error` is a sentence for people, `code` is stable."""

    error: str
    code: str
    request_id: str


def failures(texts: Mapping[int, str] = ERRORS) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, by status, as FastAPI's `responses` takes them."""
    return {status: {"model": Error, "description": text} for status, text in texts.items()}


def image_request(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a request with an image and parameters.

    The image and the parameters come in a form, or the image is the body and the parameters are in the query.
    """
    image = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["image"], "properties": {"image": image, **parameters}}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in parameters.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "image/*": {"schema": image}},
        },
    }


def describe(api: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, where each operation has its group, its name and an example from `examples.json`.

    Raises:
        KeyError: a route is missing there.
    """
    if api.openapi_schema is None:
        description = FastAPI.openapi(api)
        rows = json.loads((Path(__file__).parent / "examples.json").read_text(encoding="utf-8"))
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                row = rows[f"{method.upper()} {path}"]
                operation |= {"tags": [row["tag"]], "operationId": row["id"]}
                (kind,) = {"application/json", "text/plain"} & operation["responses"]["200"]["content"].keys()
                operation["responses"]["200"]["content"][kind]["example"] = row["response"]
                if "request" in row:
                    operation["requestBody"]["content"]["application/json"]["example"] = row["request"]
    return FastAPI.openapi(api)


def add_docs(api: FastAPI) -> None:
    """Add `/docs` with its own copy of Swagger UI.

    A script from a public network would run in the session of the person who is signed in, and without that network the
    page would stay empty. The URLs are relative, because a proxy may serve the app below a path.
    """
    api.openapi = partial(describe, api)  # type: ignore[method-assign]

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=api.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="favicon.ico",
        )

    api.mount("/docs", StaticFiles(packages=[("fastapi_offline", "static")]))
