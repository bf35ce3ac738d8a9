"""The versions in memory: those that get traffic, which follow the registry, and those that were asked for by number."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cifar.cpus import available_cpus
from cifar.dependency import Dependency
from cifar.errors import INTERNAL_ERROR, CifarError, ModelServerUnavailable, NotReady, Overloaded, VersionUnusable
from cifar.models.engines import GAIN_FROM_BATCHES, REMOTE, engine_of
from cifar.models.predictor import Predictor
from cifar.models.registry import Registry, Version
from cifar.models.rollout import Rollout, RolloutLog, Split, shadow_split, traffic_split
from cifar.models.tfserving_client import ModelServer
from cifar.serving.inference.batcher import Batcher
from cifar.serving.process.metrics import LOAD_SECONDS, LOADED, NOT_LOADED, WORKERS, WORKERS_READY, prepare_counts
from cifar.settings import Settings

log = logging.getLogger(__name__)

_REMOTE_BATCHES = 8
"""Batches sent to a model server at the same time. It computes them in parallel."""
_QUICK_SECONDS = 0.002
"""A model that answers one image in this time runs in the event loop, if the process has one core to itself."""
_VERY_QUICK_SECONDS = 0.0003
"""The same limit if the process has several cores: above it, a thread that computes beside the loop gains more than it costs."""
_RETRY_SECONDS = 60
"""Time after which a version that failed to load is tried again, although neither the rollout nor its files have changed."""


@dataclass(frozen=True)
class Served:
    """A version in memory and the queue of images in front of it."""

    predictor: Predictor
    batcher: Batcher


@dataclass(frozen=True)
class ServingState:
    """The rollout in force and its versions. It is replaced as a whole, so that no request sees half of a change."""

    rollout: Rollout
    live: dict[int, Served]
    """By number, all versions that get traffic or shadow traffic."""
    split: Split
    shadows: dict[int, Split]
    """The versions that answer in the background, each with its share of the requests."""


class LoadedVersions:
    """Loads each version once, holds the live ones, and drops the least recently used others. Thread-safe."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        load: Callable[[Version], Predictor] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the rollout. Nothing is loaded before `load_default`. By default, `load` is `Predictor.load` with the engine of the settings.

        Raises:
            VersionNotFound, VersionUnusable: there is no version that could be served.
        """
        self.registry = registry
        self.rollouts = RolloutLog(registry, pinned=settings.model_version)
        self.engine = engine_of(settings)
        self._settings = settings
        self._threads = max(1, available_cpus() // settings.workers)
        self._load_predictor = load or partial(Predictor.load, engine=self.engine, threads=self._threads)
        self._clock = clock
        secret = settings.traffic_secret.get_secret_value() if settings.traffic_secret else registry.name
        self._key = hashlib.blake2b(secret.encode(), digest_size=32).digest()
        self._in_memory: dict[int, Served] = {}
        """By number, the least recently used first."""
        self._loading = threading.Lock()
        """Held while a version is loaded, which takes seconds."""
        self._changing = threading.Lock()
        """Held while `_in_memory` changes."""
        self._refreshing = threading.Lock()
        self._state: ServingState | None = None
        self._stable = self.rollouts.stable_version()
        self._failure: CifarError | None = None
        self._last_attempt: tuple[Rollout, list[tuple[str, int, int]]] | None = None
        """The rollout of the last attempt to load its versions, and their files."""
        self._attempted_at = 0.0
        self._named_loads: list[float] = []
        """Times at which versions were loaded because requests named them."""
        self._problem = ""

    @property
    def default(self) -> Version:
        """The stable version; before it is loaded, the one that will be."""
        state = self._state
        return state.live[state.rollout.stable].predictor.version if state else self._stable

    def version(self, number: int) -> Version:
        """Return a version by number. The disk is read only for a version that is not in memory.

        Raises:
            VersionNotFound, VersionUnusable: see `Registry.get`.
        """
        served = self._in_memory.get(number)
        return served.predictor.version if served else self.registry.get(number)

    @property
    def labels(self) -> dict[str, int]:
        """The versions by label, as this process serves them."""
        return dict(self._state.rollout.labels) if self._state else {"stable": self._stable.number}

    @property
    def traffic(self) -> dict[str, int]:
        """Percentage of the users by label, as this process serves them."""
        return dict(self._state.rollout.traffic) if self._state else {"stable": 100}

    @property
    def problem(self) -> str:
        """The reason why this process does not serve the rollout of the registry. Empty when it does."""
        return self._problem

    @property
    def ready(self) -> bool:
        """True once the live versions are loaded."""
        return self._state is not None

    def check_ready(self) -> None:
        """Raise `NotReady` while the model is being loaded, or the error that made loading fail."""
        self._ready_state()

    def _ready_state(self) -> ServingState:
        """Return the state. Read it once for each decision: another thread may replace it at any time."""
        if state := self._state:
            return state
        if self._failure:
            raise type(self._failure)(*self._failure.args)  # a new one: each raise adds to an exception's traceback
        raise NotReady("The model is being loaded. Try again in a few seconds.")

    @property
    def dependency(self) -> Dependency | None:
        """TensorFlow Serving, when it runs the models."""
        return self.engine.dependency if isinstance(self.engine, ModelServer) else None

    def probe_model_server(self) -> None:
        """Ask the model server after an outage. A process that is not ready gets no requests that would do so. Blocking.

        Raises:
            ModelServerUnavailable: it is still down.
        """
        self.get().predictor.probe()

    def load_default(self) -> None:
        """Load and warm up the live versions. A failure is logged and kept for `check_ready`."""
        WORKERS.set(1)
        try:
            rollout = self.rollouts.current()
            self._is_new_attempt(rollout)
            self._state = self._first_state(rollout)
            WORKERS_READY.set(1)
        except ModelServerUnavailable as error:  # logged by its `Dependency`; `follow` tries again
            self._failure = error
        except Exception as error:
            log.exception("version %s cannot be served", self._stable.number)
            self._failure = error if isinstance(error, CifarError) else VersionUnusable(INTERNAL_ERROR)

    def follow(self, ended: threading.Event) -> None:
        """Follow the registry until `ended` is set: new versions, labels, traffic."""
        while not ended.wait(self._settings.registry_poll_seconds):
            if self._state:
                self.refresh()
            elif isinstance(self._failure, ModelServerUnavailable):
                self.load_default()
            elif self._failure:  # until somebody promotes a version that can be loaded
                self.refresh()

    def refresh(self) -> None:
        """Read the rollout. If it has changed, load its versions and switch to it at once.

        If that fails, the previous versions stay. The problem is logged once, and loading is tried again after a minute.
        """
        with self._refreshing:  # a slower thread must not bring back an older state
            self._refresh()

    def _refresh(self) -> None:
        try:
            rollout = self._wanted()
            if self._state and rollout == self._state.rollout:
                self._set_problem(self._missing(rollout))
                return
            if not self._is_new_attempt(rollout):
                return
        except (CifarError, OSError) as error:
            self._set_problem(_public_message(error))
            return
        try:
            state = self._state_of(rollout, [self._load_live(number) for number in rollout.live])
        except (CifarError, OSError) as error:
            self._set_problem(f"The change to {_described(rollout)} cannot be served: {_public_message(error)}")
            return
        self._state = state
        WORKERS_READY.set(1)  # not yet set when loading failed at the start
        self._set_problem("")
        self._drop_unused()
        log.info("serving %s", _described(rollout))

    def _wanted(self) -> Rollout:
        """Return the rollout to serve. Before the first promotion, a version that was removed is not replaced by an older one."""
        rollout, state = self.rollouts.current(), self._state
        is_older = state and rollout.revision == state.rollout.revision == 0 and rollout.stable < state.rollout.stable
        return state.rollout if state and is_older else rollout

    def _missing(self, rollout: Rollout) -> str:
        """Say which live versions the registry no longer has. Empty when it has all."""
        missing = [number for number in rollout.live if not self.registry.has(number)]
        return (
            f"The registry no longer has {self.registry.name} version {missing[0]}, which is served from memory."
            if missing
            else ""
        )

    def _is_new_attempt(self, rollout: Rollout) -> bool:
        """Return whether to try this rollout. A failed attempt is repeated when files of its versions change, or after a minute."""
        attempt, now = (rollout, self.registry.files_of(rollout.live)), self._clock()
        if attempt == self._last_attempt and now - self._attempted_at < _RETRY_SECONDS:
            return False
        self._last_attempt, self._attempted_at = attempt, now
        return True

    def if_loaded(self, number: int | None = None, user: str = "") -> Served | None:
        """Return a live version without blocking: the one asked for, or the user's. None for one that `get` may have to load.

        Raises:
            NotReady: nothing is loaded yet.
        """
        state = self._ready_state()
        return state.live.get((state.split(user) or state.rollout.stable) if number is None else number)

    def get(self, number: int | None = None) -> Served:
        """Return a version, loading it if necessary, which takes seconds; None for the stable one. Blocking.

        Raises:
            NotReady: nothing is loaded yet.
            VersionNotFound, VersionUnusable: see `Registry.get` and `Predictor.load`.
            Overloaded: too many versions without traffic were loaded in the last minute.
        """
        state = self._ready_state()
        wanted = state.rollout.stable if number is None else number
        if served := state.live.get(wanted) or self._reused(wanted):
            return served
        version = self.registry.get(wanted)
        self._count_named_load()
        served = self._load(version)
        self._drop_unused()
        return served

    def _count_named_load(self) -> None:
        """Refuse to load a version that a request named if too many were loaded lately: each takes seconds of a core."""
        limit, now = self._settings.version_loads_per_minute, self._clock()
        with self._changing:
            self._named_loads = [at for at in self._named_loads if now - at < 60]
            if limit and len(self._named_loads) >= limit:
                raise Overloaded("Too many versions were loaded lately. Leave version out, or try again in a minute.")
            self._named_loads.append(now)

    def shadows_of(self, request_id: str, answered_by: int) -> list[Served]:
        """Return the versions that answer a request in the background, besides the one that answered it."""
        state = self._ready_state()
        return [
            state.live[number]
            for number, split in state.shadows.items()
            if number != answered_by and split(request_id) is not None
        ]

    def _first_state(self, rollout: Rollout) -> ServingState:
        """Load the live versions. If one other than the stable version fails, the stable version gets all traffic."""
        stable = self._load_live(rollout.stable)
        try:
            return self._state_of(rollout, [stable, *(self._load_live(number) for number in rollout.live[1:])])
        except (CifarError, OSError) as error:
            self._set_problem(f"{_described(rollout)} cannot be served: {_public_message(error)}")
            stable_only = rollout.model_copy(update={"traffic": {"stable": 100}, "shadow": {}})
            return self._state_of(stable_only, [stable])

    def _state_of(self, rollout: Rollout, live: list[Served]) -> ServingState:
        return ServingState(
            rollout,
            {served.predictor.version.number: served for served in live},
            traffic_split(rollout, self._key),
            shadow_split(rollout, self._key),
        )

    def _load_live(self, number: int) -> Served:
        failed = NOT_LOADED.labels(self.registry.name, number)
        try:
            served = self._load(self.registry.get(number))
        except CifarError:
            failed.set(1)
            raise
        except Exception as error:
            failed.set(1)
            log.exception("version %s cannot be loaded", number)
            raise VersionUnusable(INTERNAL_ERROR) from error
        failed.set(0)
        return served

    def _load(self, version: Version) -> Served:
        with self._loading:
            served = self._reused(version.number)
            if not served:
                served = self._load_now(version)
                with self._changing:
                    self._in_memory[version.number] = served
            return served

    def _reused(self, number: int) -> Served | None:
        """Return a version that is in memory, and mark it as the most recently used one. Do not wait for one that is being loaded."""
        with self._changing:
            served = self._in_memory.pop(number, None)
            if served:
                self._in_memory[number] = served
            return served

    def _load_now(self, version: Version) -> Served:
        log.info("loading %s version %s", version.name, version.number)
        started = time.perf_counter()
        predictor = self._load_predictor(version)
        LOAD_SECONDS.labels(version.number, predictor.engine).observe(time.perf_counter() - started)
        LOADED.labels(version.name, version.number, predictor.engine).set(1)
        prepare_counts(version.number, predictor.class_names, has_ood_score=predictor.has_ood_score)
        log.info("version %s is ready on %s", version.number, predictor.engine)
        if predictor.engine in GAIN_FROM_BATCHES:
            parallel = _REMOTE_BATCHES if predictor.engine in REMOTE else 1
            batcher = Batcher(predictor.answers, max_images=self._settings.max_batch_images, parallel=parallel)
        else:
            limit = _QUICK_SECONDS if self._threads == 1 else _VERY_QUICK_SECONDS
            batcher = Batcher(
                predictor.answers,
                max_images=1,
                parallel=self._threads,
                max_in_loop=int(limit / predictor.seconds_per_image),
            )
        return Served(predictor, batcher)

    def _drop_unused(self) -> None:
        """Drop the least recently used versions beyond the limit. A request that still uses one holds it in memory."""
        with self._changing:
            live = self._state.live if self._state else {}
            others = [number for number in self._in_memory if number not in live]
            room = max(1, self._settings.max_loaded_versions - len(live))
            for number in others[: max(0, len(others) - room)]:
                dropped = self._in_memory.pop(number).predictor
                LOADED.labels(dropped.version.name, number, dropped.engine).set(0)

    def _set_problem(self, problem: str) -> None:
        """Log each new problem once, and its end."""
        if problem and problem != self._problem:
            log.error("%s", problem)
        elif self._problem and not problem:
            log.info("the rollout of the registry is served again")
        self._problem = problem


def _public_message(error: Exception) -> str:
    """Return the message of an error for callers. The message of an `OSError` would show paths of the server."""
    return f"The registry cannot be read: {error.strerror}." if isinstance(error, OSError) else str(error)


def _described(rollout: Rollout) -> str:
    shares = ", ".join(
        f"{label} (version {rollout.labels[label]}) {percent} %" for label, percent in rollout.traffic.items()
    )
    return f"revision {rollout.revision}: {shares}"
