"""`/admin/models`: labels, traffic and promotions for who has the scope `admin`, and who changed what."""

from __future__ import annotations

from typing import Any

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
        401: "The caller is not known",
        403: "The caller lacks the scope `admin`, or sign-in is off",
        404: "No such version or label",
        409: "Changed by somebody else at the same time, nothing to roll back, or the registry is read-only",
        413: "Body too large",
        422: "A parameter is wrong",
        503: "The version cannot be loaded",
    }
)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Promotion(_Body):
    """A version that shall answer everybody."""

    version: int = Field(ge=1, le=999_999_999)


class Labelling(_Body):
    """A version's other name; without a version, the name is taken away."""

    label: str = Field(max_length=32)
    version: int | None = Field(None, ge=1, le=999_999_999)


class Traffic(_Body):
    """Percent of the users by label, which add to 100; and of the requests that a label answers in the background."""

    traffic: dict[str, int]
    shadow: dict[str, int] = {}


def add_admin(api: FastAPI, versions: LoadedVersions, settings: Settings) -> None:
    """Add the routes. Where nobody signs in they refuse everybody: anybody could change what is served."""

    def refuse_strangers() -> None:
        if not settings.requires_sign_in:
            raise MissingScope(
                "Administration needs sign-in: set CIFAR_API_KEYS_FILE, for one, and use the scope admin."
            )

    router = APIRouter(
        prefix="/admin/models",
        responses=_ERRORS,
        dependencies=[Depends(refuse_strangers), *documented(settings)],
    )
    _add_reading(router, versions.rollouts)
    _add_changing(router, versions, lambda version: Predictor.load(version, versions.engine))
    api.router.routes.extend(router.routes)  # not as a router of their own: who lists the routes sees each


def _add_reading(router: APIRouter, log: RolloutLog) -> None:
    @router.get("", response_model=Rollout)
    def state() -> Any:
        """Labels, traffic and shadows, and the change that made them so."""
        return log.current()

    @router.get("/log", response_model=list[Rollout])
    def changes() -> Any:
        """Who changed what, the first change first."""
        return log.changes()


def _add_changing(router: APIRouter, versions: LoadedVersions, check_loadable: CheckLoadable) -> None:
    log = versions.rollouts

    def done(routing: Rollout) -> Rollout:
        """This process follows at once, the others within their poll."""
        versions.refresh()
        return routing

    @router.post("/promote", response_model=Rollout)
    def promote(body: Promotion, request: Request) -> Any:
        """Make a version the stable one, for everybody. It is loaded first; one that cannot be changes nothing."""
        return done(log.promote(body.version, by=_who(request), check_loadable=check_loadable))

    @router.post("/rollback", response_model=Rollout)
    def rollback(request: Request) -> Any:
        """Make the version stable again that was before the last promotion."""
        return done(log.rollback(by=_who(request), check_loadable=check_loadable))

    @router.post("/label", response_model=Rollout)
    def label(body: Labelling, request: Request) -> Any:
        """Give a version another name, or take one away."""
        return done(log.label(body.label, body.version, by=_who(request)))

    @router.post("/traffic", response_model=Rollout)
    def traffic(body: Traffic, request: Request) -> Any:
        """Share out the users between labels, and give labels requests to answer in the background."""
        return done(log.split(body.traffic, shadow=body.shadow, by=_who(request)))


def _who(request: Request) -> str:
    return str(request.state.principal.name)
