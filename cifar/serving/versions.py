"""The versions in memory: the one served by default, and those that callers asked for by number."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from cifar.cpus import available_cpus
from cifar.engines import GAIN_FROM_BATCHES
from cifar.errors import OUR_FAULT, CifarError, NotReady, VersionUnusable
from cifar.predictor import Predictor
from cifar.registry import Registry, Version
from cifar.serving.batcher import Batcher
from cifar.serving.metrics import LOAD_SECONDS, LOADED, WORKERS, WORKERS_READY, VersionCounts
from cifar.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A version in memory, and where images wait for it."""

    predictor: Predictor
    batcher: Batcher
    counts: VersionCounts


class LoadedVersions:
    """Loads versions once, keeps the default one, and drops the longest unused beyond the limit. Thread-safe."""

    def __init__(self, registry: Registry, default: Version, settings: Settings) -> None:
        self.registry = registry
        self.default = default
        self._settings = settings
        self._threads = max(1, available_cpus() // settings.workers)
        self._served: dict[int, Served] = {}
        self._loading = threading.Lock()
        self._failure: CifarError | None = None

    @property
    def ready(self) -> bool:
        """Whether the default version is loaded and warmed up."""
        return self.default.number in self._served

    def check_ready(self) -> None:
        """Raise why the default version cannot answer: `NotReady`, or what made loading it fail."""
        if self.ready:
            return
        if self._failure:
            raise type(self._failure)(*self._failure.args)  # a new one: each raise adds to an exception's traceback
        raise NotReady("The model is being loaded. Try again in a few seconds.")

    def load_default(self) -> None:
        """Load and warm up the default version; a failure is logged and kept for `check_ready`."""
        WORKERS.set(1)
        try:
            self._load(self.default)
            WORKERS_READY.set(1)
        except Exception as error:
            log.exception("version %s cannot be served", self.default.number)
            self._failure = error if isinstance(error, CifarError) else VersionUnusable(OUR_FAULT)

    def at_hand(self, number: int | None = None) -> Served | None:
        """The default version when that is asked for; None for any other, which `get` may have to load.

        Raises:
            NotReady: the default version is not loaded yet.
        """
        self.check_ready()
        return self._served[self.default.number] if number in {None, self.default.number} else None

    def get(self, number: int | None = None) -> Served:
        """The default version, or another one, loading it when need be: that takes a thread for seconds.

        Raises:
            NotReady: the default version is not loaded yet.
            VersionNotFound, VersionUnusable: see `Registry.get` and `Predictor.load`.
        """
        return self.at_hand(number) or self._load(self.registry.get(number))

    def _load(self, version: Version) -> Served:
        with self._loading:
            served = self._served.pop(version.number, None) or self._load_now(version)
            self._served[version.number] = served  # last: the order is that of use
            self._drop_unused()
            return served

    def _load_now(self, version: Version) -> Served:
        log.info("loading %s version %s", version.name, version.number)
        started = time.perf_counter()
        predictor = Predictor.load(version, self._settings.engine, threads=self._threads)
        LOAD_SECONDS.labels(version.number, predictor.engine).observe(time.perf_counter() - started)
        LOADED.labels(version.name, version.number, predictor.engine).set(1)
        log.info("version %s is ready on %s", version.number, predictor.engine)
        if predictor.engine in GAIN_FROM_BATCHES:
            batcher = Batcher(predictor.answers, largest=self._settings.max_batch_images)
        else:
            batcher = Batcher(predictor.answers, largest=1, parallel=self._threads)
        return Served(
            predictor,
            batcher,
            VersionCounts(version.number, predictor.class_names, scored=predictor.threshold is not None),
        )

    def _drop_unused(self) -> None:
        """Forget the versions longest unused, until the limit holds; requests in flight keep theirs alive."""
        others = [number for number in self._served if number != self.default.number]
        for number in others[: max(0, len(self._served) - self._settings.max_loaded_versions)]:
            dropped = self._served.pop(number).predictor
            LOADED.labels(dropped.version.name, number, dropped.engine).set(0)
