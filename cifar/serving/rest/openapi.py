"""What OpenAPI says of routes, where FastAPI cannot find it out by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

ERRORS = {
    400: "No image, or a malformed body",
    401: "Sign-in is on, and the caller is not known",
    403: "The caller lacks the scope `predict`",
    404: "No such version",
    413: "Body or image too large",
    415: "Not an image in a supported format",
    422: "The image cannot be decoded, or a parameter is wrong",
    429: "Too many requests; `Retry-After` says when to try again",
    503: "Not ready, or overloaded; `Retry-After` says when to try again",
}
"""Of the routes that take images."""
VERSION = {"type": "integer", "minimum": 1, "maximum": 999_999_999, "description": "The model version to ask."}


class ModelVersion(BaseModel):
    """Which model spoke."""

    name: str
    version: int


class Error(BaseModel):
    """What went wrong, in a sentence; `code` is stable."""

    error: str
    code: str
    request_id: str


def failures(texts: Mapping[int, str] = ERRORS) -> dict[int | str, dict[str, Any]]:
    """The answers that are no success, by status."""
    return {status: {"model": Error, "description": text} for status, text in texts.items()}


def image_request(parameters: dict[str, Any]) -> dict[str, Any]:
    """A request with an image, as a form or as the body itself, and these parameters, in the form or in the query."""
    image = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": image, **parameters},
        "additionalProperties": False,
    }
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in parameters.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "image/*": {"schema": image}},
        },
    }
