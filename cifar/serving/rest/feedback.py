"""`POST /feedback`: the correct label of a prediction."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from cifar.serving.auth.principal import Requester
from cifar.serving.auth.signin import documented
from cifar.serving.inference.recording import Records
from cifar.serving.rest.openapi import failures
from cifar.settings import Settings

_ERRORS = {
    400: "A malformed body",
    401: "Sign-in is required, and the request has no valid credentials",
    403: "The scope `feedback` is missing",
    404: "There is no such prediction of this user",
    413: "Body too large",
    422: "No such label, or a note too long",
    429: "Too many requests; `Retry-After` says when to try again",
    503: "The records cannot be used at the moment",
}


class Feedback(BaseModel):
    """The correct label of a prediction."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str = Field(description="The `request_id` of an answer.")
    label: str = Field(description="One of the version's classes, or `none`.")
    note: str | None = Field(None, description="A comment.")


class Stored(BaseModel):
    """Feedback as it is stored."""

    request_id: str
    label: str
    note: str
    at: str = Field(description="ISO 8601, UTC.")


def add_feedback(api: FastAPI, records: Records, settings: Settings) -> None:
    """Add the route. It counts for the rate limit of `POST /predict`."""

    @api.post("/feedback", response_model=Stored, responses=failures(_ERRORS), dependencies=documented(settings))
    async def feedback(body: Feedback, request: Request) -> Any:
        """Store the correct label of one of your predictions. It replaces earlier feedback on the same prediction."""
        requester = Requester.of(request.scope)
        return await records.store_feedback(body.request_id, body.label, body.note, requester=requester)
