"""The versions in memory: those that users are sent to, kept in line with the registry, and those asked for by number."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass

from cifar.cpus import available_cpus
from cifar.dependency import Dependency
from cifar.errors import OUR_FAULT, CifarError, ModelServerUnavailable, NotReady, VersionUnusable
from cifar.models.engines import GAIN_FROM_BATCHES, REMOTE, engine_of
from cifar.models.predictor import Prediction, Predictor
from cifar.models.registry import Registry, Version
from cifar.models.rollout import Rollout, RolloutLog, Split, shadow_split, traffic_split
from cifar.models.tfserving_client import ModelServer
from cifar.serving.inference.batcher import Batcher
from cifar.serving.process.metrics import (
    IMAGES,
    LOAD_SECONDS,
    LOADED,
    NOT_LOADED,
    WORKERS,
    WORKERS_READY,
    VersionCounts,
)
from cifar.settings import Settings

log = logging.getLogger(__name__)

_REMOTE_BATCHES = 8
"""Under way at once to a server of models, which computes them side by side."""
_RETRY_SECONDS = 60
"""Until a version that could not be loaded is tried once more, without anybody having changed anything."""


@dataclass(frozen=True)
class Served:
    """A version in memory, and where images wait for it."""

    predictor: Predictor
    batcher: Batcher
    counts: VersionCounts

    def count(self, channel: str, prediction: Prediction) -> None:
        """Count an answer that is given."""
        IMAGES.labels(channel, self.predictor.version.number).inc()
        self.counts.add(*prediction.top_k[0], prediction.in_distribution)


@dataclass(frozen=True)
class ServingState:
    """Who is answered by which version. Replaced as a whole, so that no request sees half of a change."""

    routing: Rollout
    live: dict[int, Served]
    """By number: all that the routing sends somebody to."""
    choose: Split
    shadows: dict[int, Split]
    """The versions that answer in the background, and for which requests."""

    def version_of(self, user: str) -> int:
        """The version that answers a user."""
        return self.choose(user) or self.routing.stable


class LoadedVersions:
    """Loads versions once, keeps those that are live, and drops the longest unused beyond the limit. Thread-safe."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        """Look at the registry; nothing is loaded before `load_default`.

        Raises:
            VersionNotFound, VersionUnusable: there is no version to serve, or it is none.
        """
        self.registry = registry
        self.routing = RolloutLog(registry, pinned=settings.model_version)
        self._settings = settings
        self.engine = engine_of(settings)
        secret = settings.traffic_secret.get_secret_value() if settings.traffic_secret else registry.name
        self._key = hashlib.blake2b(secret.encode(), digest_size=32).digest()
        self._threads = max(1, available_cpus() // settings.workers)
        self._served: dict[int, Served] = {}
        self._loading = threading.Lock()
        self._refreshing = threading.Lock()
        self._failure: CifarError | None = None
        self._state: ServingState | None = None
        self._stable = self.routing.stable_version()
        self._tried: tuple[Rollout, float] | None = None
        self._problem = ""

    @property
    def default(self) -> Version:
        """The version labelled `stable`; before it is loaded, the one that will be."""
        state = self._state
        return state.live[state.routing.stable].predictor.version if state else self._stable

    def version(self, number: int) -> Version:
        """A version by number; no disk is asked for one in memory.

        Raises:
            VersionNotFound, VersionUnusable: see `Registry.get`.
        """
        served = self._served.get(number)
        return served.predictor.version if served else self.registry.get(number)

    @property
    def labels(self) -> dict[str, int]:
        """The versions by label, as this process serves them."""
        return dict(self._state.routing.labels) if self._state else {"stable": self._stable.number}

    @property
    def traffic(self) -> dict[str, int]:
        """Percent of the users by label, as this process serves them."""
        return dict(self._state.routing.traffic) if self._state else {"stable": 100}

    @property
    def problem(self) -> str:
        """Why what is served is not what the registry says; empty when it is."""
        return self._problem

    @property
    def ready(self) -> bool:
        """Whether somebody can be answered."""
        return self._state is not None

    def check_ready(self) -> None:
        """Raise why nothing can be answered: `NotReady`, or what made loading fail."""
        self._serving()

    def _serving(self) -> ServingState:
        """The plan there is; read once by whoever goes by it, since another one may come at any time."""
        if state := self._state:
            return state
        if self._failure:
            raise type(self._failure)(*self._failure.args)  # a new one: each raise adds to an exception's traceback
        raise NotReady("The model is being loaded. Try again in a few seconds.")

    @property
    def dependency(self) -> Dependency | None:
        """TensorFlow Serving, where it runs the models."""
        return self.engine.dependency if isinstance(self.engine, ModelServer) else None

    def ask_again(self) -> None:
        """Ask a server of models that was away, since nobody else may: a process that is not ready gets no requests. Takes a thread.

        Raises:
            ModelServerUnavailable: it still is.
        """
        self.get().predictor.ask_once()

    def load_default(self) -> None:
        """Load and warm up what users are sent to; a failure is logged and kept for `check_ready`."""
        WORKERS.set(1)
        try:
            self._tried = self.routing.current(), time.monotonic()
            self._state = self._first_state(self._tried[0])
            WORKERS_READY.set(1)
        except ModelServerUnavailable as error:  # the server itself has said so in the log; `follow` tries again
            self._failure = error
        except Exception as error:
            log.exception("version %s cannot be served", self._stable.number)
            self._failure = error if isinstance(error, CifarError) else VersionUnusable(OUR_FAULT)

    def follow(self, ended: threading.Event) -> None:
        """Keep what is served in line with the registry until `ended`: new versions, labels, traffic."""
        while not ended.wait(self._settings.registry_poll_seconds):
            if self._state:
                self.refresh()
            elif isinstance(self._failure, ModelServerUnavailable):
                self.load_default()
            elif self._failure:  # until somebody promotes a version that can be loaded
                self.refresh()

    def refresh(self) -> None:
        """Look once whether the registry says something new, load that beside what is served, and go over to it at once.

        When it cannot be loaded, what was served stays; the problem is logged, once, and tried again a minute later.
        """
        with self._refreshing:  # or a slower thread would bring back what it saw before
            self._refresh()

    def _refresh(self) -> None:
        try:
            routing = self.routing.current()
        except (CifarError, OSError) as error:
            self._note(str(error))
            return
        if self._state and routing == self._state.routing:
            self._note("")
            return
        if self._tried and self._tried[0] == routing and time.monotonic() - self._tried[1] < _RETRY_SECONDS:
            return
        self._tried = routing, time.monotonic()
        try:
            state = self._state_of(routing, [self._load_live(number) for number in routing.live])
        except (CifarError, OSError) as error:
            self._note(f"The change to {_described(routing)} cannot be served: {error}")
            return
        self._state = state
        WORKERS_READY.set(1)  # it may not have been: what was there at the start could not be loaded
        self._note("")
        self._drop_unused()
        log.info("now served: %s", _described(routing))

    def choose(self, user: str) -> int:
        """The version that answers a user.

        Raises:
            NotReady: nothing is loaded yet.
        """
        return self._serving().version_of(user)

    def if_loaded(self, number: int | None = None, user: str = "") -> Served | None:
        """A version that users are sent to: the one asked for, or the user's; None for one that `get` may have to load.

        Raises:
            NotReady: nothing is loaded yet.
        """
        state = self._serving()
        return state.live.get(state.version_of(user) if number is None else number)

    def get(self, number: int | None = None) -> Served:
        """The stable version, or another one, loading it when need be: that takes a thread for seconds.

        Raises:
            NotReady: nothing is loaded yet.
            VersionNotFound, VersionUnusable: see `Registry.get` and `Predictor.load`.
        """
        state = self._serving()
        wanted = state.routing.stable if number is None else number
        served = state.live.get(wanted) or self._load(self.registry.get(wanted))
        self._drop_unused()
        return served

    def shadows_of(self, request_id: str, answered_by: int) -> list[Served]:
        """The versions that answer a request in the background, beside the one that did."""
        state = self._serving()
        return [
            state.live[number]
            for number, split in state.shadows.items()
            if number != answered_by and split(request_id) is not None
        ]

    def _first_state(self, routing: Rollout) -> ServingState:
        """What the routing says; where only another version than the stable one fails, that one serves everybody."""
        stable = self._load_live(routing.stable)
        try:
            return self._state_of(routing, [stable, *(self._load_live(number) for number in routing.live[1:])])
        except (CifarError, OSError) as error:
            self._note(f"{_described(routing)} cannot be served: {error}")
            alone = routing.model_copy(update={"traffic": {"stable": 100}, "shadow": {}})
            return self._state_of(alone, [stable])

    def _state_of(self, routing: Rollout, live: list[Served]) -> ServingState:
        return ServingState(
            routing,
            {served.predictor.version.number: served for served in live},
            traffic_split(routing, self._key),
            shadow_split(routing, self._key),
        )

    def _load_live(self, number: int) -> Served:
        try:
            served = self._load(self.registry.get(number))
        except CifarError:
            NOT_LOADED.labels(self.registry.name, number).set(1)
            raise
        except Exception as error:
            NOT_LOADED.labels(self.registry.name, number).set(1)
            log.exception("version %s cannot be loaded", number)
            raise VersionUnusable(OUR_FAULT) from error
        NOT_LOADED.labels(self.registry.name, number).set(0)
        return served

    def _load(self, version: Version) -> Served:
        with self._loading:
            served = self._served.pop(version.number, None) or self._load_now(version)
            self._served[version.number] = served  # last: the order is that of use
            return served

    def _load_now(self, version: Version) -> Served:
        log.info("loading %s version %s", version.name, version.number)
        started = time.perf_counter()
        predictor = Predictor.load(version, self.engine, threads=self._threads)
        LOAD_SECONDS.labels(version.number, predictor.engine).observe(time.perf_counter() - started)
        LOADED.labels(version.name, version.number, predictor.engine).set(1)
        log.info("version %s is ready on %s", version.number, predictor.engine)
        if predictor.engine in GAIN_FROM_BATCHES:
            parallel = _REMOTE_BATCHES if predictor.engine in REMOTE else 1
            batcher = Batcher(predictor.answers, largest=self._settings.max_batch_images, parallel=parallel)
        else:
            batcher = Batcher(predictor.answers, largest=1, parallel=self._threads)
        return Served(
            predictor,
            batcher,
            VersionCounts(version.number, predictor.class_names, scored=predictor.threshold is not None),
        )

    def _drop_unused(self) -> None:
        """Forget the versions longest unused, until the limit holds; requests in flight keep theirs alive."""
        with self._loading:
            live = self._state.live if self._state else {}
            others = [number for number in self._served if number not in live]
            room = max(1, self._settings.max_loaded_versions - len(live))
            for number in others[: max(0, len(others) - room)]:
                dropped = self._served.pop(number).predictor
                LOADED.labels(dropped.version.name, number, dropped.engine).set(0)

    def _note(self, problem: str) -> None:
        """Say a problem when it begins, and that it is over."""
        if problem and problem != self._problem:
            log.error("%s", problem)
        elif self._problem and not problem:
            log.info("the registry can be followed again")
        self._problem = problem


def _described(routing: Rollout) -> str:
    shares = ", ".join(
        f"{label} (version {routing.labels[label]}) {percent} %" for label, percent in routing.traffic.items()
    )
    return f"revision {routing.revision}: {shares}"
