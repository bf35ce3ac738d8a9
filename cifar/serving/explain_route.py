"""`POST /explain`: the heat map by REST, as JSON or as a picture."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from cifar.serving.api import ERRORS, Error, ModelVersion
from cifar.serving.callers import Asker
from cifar.serving.explain import Explainer
from cifar.serving.predict import read_image, until_gone
from cifar.serving.signin import DOCUMENTED
from cifar.settings import Settings

PARAMETERS = ("label", "version")
_PNG = "image/png"


class HeatMap(BaseModel):
    """Which part of an image a label's score rests on."""

    label: str
    score: float
    heat: list[list[float]]
    overlay: str
    model: ModelVersion
    request_id: str


def _documented() -> dict[str, Any]:
    parameters = {
        "label": {"type": "string", "description": "One of the model's classes; without it, the most probable one."},
        "version": {
            "type": "integer",
            "minimum": 1,
            "maximum": 999_999_999,
            "description": "The model version to ask.",
        },
    }
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "string", "format": "binary"}, **parameters},
        "additionalProperties": False,
    }
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in parameters.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "image/*": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    }


def add_explain(api: FastAPI, explainer: Explainer, settings: Settings) -> None:
    """Add the route, which counts for the limit of `POST /predict`."""
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": text} for status, text in ERRORS.items()
    }
    picture = {"content": {_PNG: {"schema": {"type": "string", "format": "binary"}}}}

    @api.post(
        "/explain",
        response_model=HeatMap,
        responses={200: picture, **answers},
        dependencies=DOCUMENTED if settings.signs_in else [],
        openapi_extra=_documented(),
    )
    async def explain(request: Request) -> Any:
        """Say which part of an image a label's score rests on. With `Accept: image/png`: the overlay as a picture."""
        image, parameters = await read_image(request.scope, request.receive, PARAMETERS)
        explanation = await explainer.explain(
            image,
            route="rest",
            by=Asker.of(request.scope),
            label=parameters.get("label"),
            version=parameters.get("version"),
            left=partial(until_gone, request.receive),
        )
        if request.headers.get("accept", "").startswith(_PNG):
            return Response(explanation.overlay, media_type=_PNG)
        return {**explanation.as_json(), "request_id": request.state.request_id}
