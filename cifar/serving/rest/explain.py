"""`POST /explain`: a heat map as JSON or as a picture."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from cifar.models.grades import Grade
from cifar.serving.asgi import disconnected, preferred
from cifar.serving.auth.principal import Requester
from cifar.serving.auth.signin import documented
from cifar.serving.inference.classify import whole_number
from cifar.serving.inference.heatmaps import Explainer
from cifar.serving.rest.openapi import VERSION, ModelVersion, failures, image_request
from cifar.serving.rest.predict import read_image
from cifar.settings import Settings

_PARAMETERS = {
    "label": {"type": "string", "description": "One of the model's classes; without it, the most probable one."},
    "version": VERSION,
}
_PNG = "image/png"


class HeatMap(BaseModel):
    """The regions of an image that a label's score depends on."""

    label: str
    score: float
    grade: Grade = Field(description="Of the answer to the image, as `POST /predict` gives it.")
    heat: list[list[float]]
    overlay: str
    model: ModelVersion
    request_id: str


def add_explain(api: FastAPI, explainer: Explainer, settings: Settings) -> None:
    """Add the route. It counts for the rate limit of `POST /predict`."""
    picture = {"content": {_PNG: {"schema": {"type": "string", "format": "binary"}}}}

    @api.post(
        "/explain",
        response_model=HeatMap,
        responses={200: picture, **failures()},
        dependencies=documented(settings),
        openapi_extra=image_request(_PARAMETERS),
    )
    async def explain(request: Request) -> Any:
        """Compute the regions of an image that a label's score depends on. `Accept: image/png` returns the overlay as a picture."""
        image, parameters = await read_image(request, tuple(_PARAMETERS), settings.max_body_bytes)
        explanation = await explainer.explain(
            image,
            channel="rest",
            requester=Requester.of(request.scope),
            label=parameters.get("label"),
            version=whole_number("version", parameters.get("version")),
            disconnected=partial(disconnected, request.receive),
        )
        if preferred(request.headers.get("accept", ""), ("application/json", _PNG)) == _PNG:
            return Response(explanation.overlay, media_type=_PNG)
        return {**explanation.as_json(), "request_id": request.state.request_id}
