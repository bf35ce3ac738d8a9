"""`POST /feedback`: what was right, by REST."""

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
    401: "Sign-in is on, and the caller is not known",
    403: "The caller lacks the scope `feedback`",
    404: "The caller has no such prediction",
    413: "Body too large",
    422: "No such label, or a note too long",
    429: "Too many requests; `Retry-After` says when to try again",
    503: "The records cannot be used now",
}


class Feedback(BaseModel):
    """What was right."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str = Field(description="The `request_id` of an answer.")
    label: str = Field(description="One of the version's classes, or `none`.")
    note: str | None = Field(None, description="Whatever else there is to say.")


class Stored(BaseModel):
    """Feedback as it is stored."""

    request_id: str
    label: str
    note: str
    at: str = Field(description="ISO 8601, UTC.")


def add_feedback(api: FastAPI, records: Records, settings: Settings) -> None:
    """Add the route, which counts for the limit of `POST /predict`, and record while the server runs."""
    records.while_serving(api)

    @api.post(
        "/feedback",
        response_model=Stored,
        responses=failures(_ERRORS),
        dependencies=documented(settings),
    )
    async def feedback(said: Feedback, request: Request) -> Any:
        """Say what was right of an answer. Whoever asked may; saying it again replaces what was said before."""
        return await records.give(said.request_id, said.label, said.note, requester=Requester.of(request.scope))
