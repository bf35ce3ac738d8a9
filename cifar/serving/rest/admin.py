"""`/admin/models`: promotions, labels and traffic, and the log of their changes. Needs the scope `admin`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from cifar.errors import MissingScope
from cifar.models.predictor import Predictor
from cifar.models.rollout import CheckLoadable, Rollout, RolloutLog
from cifar.serving.auth.signin import documented
from cifar.serving.inference.loaded import LoadedVersions
from cifar.serving.rest.openapi import failures
from cifar.settings import Settings

_ERRORS = failures(
    {
        400: "A malformed body",
        401: "The request has no valid credentials",
        403: "The caller lacks the scope `admin`, or sign-in is off",
        404: "No such version or label",
        409: "Changed by another request at the same time, nothing to roll back, or the registry is read-only",
        413: "Body too large",
        422: "A parameter is wrong",
        503: "The version cannot be loaded",
    }
)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)  # otherwise `{"version": true}` would be version 1


_Percentages = dict[str, Annotated[int, Field(ge=0, le=100)]]


class Promotion(_Body):
    """The version to make the stable one."""

    version: int = Field(ge=1, le=999_999_999)


class Labelling(_Body):
    """A label for a version. Without a version, the label is removed."""

    label: str = Field(max_length=32)
    version: int | None = Field(None, ge=1, le=999_999_999)


class Traffic(_Body):
    """By label: percent of the users, 100 in all, and percent of the requests that it answers as shadow traffic."""

    traffic: _Percentages
    shadow: _Percentages = {}


def add_admin(api: FastAPI, versions: LoadedVersions, settings: Settings) -> None:
    """Add the routes. Without sign-in they answer 403, because any caller could change which versions are served."""

    def require_sign_in() -> None:
        if not settings.requires_sign_in:
            raise MissingScope(
                "Administration needs sign-in. Set CIFAR_API_KEYS_FILE, and use a key with the scope admin."
            )

    dependencies = [Depends(require_sign_in), *documented(settings)]
    router = APIRouter(prefix="/admin/models", responses=_ERRORS, dependencies=dependencies)
    _add_reading(router, versions.rollouts)
    _add_changing(router, versions, lambda version: Predictor.load(version, versions.engine))
    api.router.routes.extend(router.routes)  # one by one, so that a test can compare them with the table of routes


def _add_reading(router: APIRouter, log: RolloutLog) -> None:
    @router.get("", response_model=Rollout)
    def state() -> Any:
        """Return labels, traffic and shadow traffic, and the change that set them."""
        return log.current()

    @router.get("/log", response_model=list[Rollout])
    def changes() -> Any:
        """Return all changes, oldest first, with their authors."""
        return log.changes()


def _add_changing(router: APIRouter, versions: LoadedVersions, check_loadable: CheckLoadable) -> None:
    log = versions.rollouts

    def applied(rollout: Rollout) -> Rollout:
        """Apply a change in this process at once. The other processes poll for it."""
        versions.refresh()
        return rollout

    @router.post("/promote", response_model=Rollout)
    def promote(body: Promotion, request: Request) -> Any:
        """Make a version the stable one. It is loaded first; if that fails, nothing changes."""
        return applied(log.promote(body.version, by=_author(request), check_loadable=check_loadable))

    @router.post("/rollback", response_model=Rollout)
    def rollback(request: Request) -> Any:
        """Undo the last promotion."""
        return applied(log.rollback(by=_author(request), check_loadable=check_loadable))

    @router.post("/label", response_model=Rollout)
    def label(body: Labelling, request: Request) -> Any:
        """Set or remove a label."""
        return applied(log.label(body.label, body.version, by=_author(request)))

    @router.post("/traffic", response_model=Rollout)
    def traffic(body: Traffic, request: Request) -> Any:
        """Set the traffic and the shadow traffic of labels."""
        return applied(log.split(body.traffic, shadow=body.shadow, by=_author(request)))


def _author(request: Request) -> str:
    return str(request.state.principal.name)
