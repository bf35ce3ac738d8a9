"""The versions in memory: the one served by default, and those that callers asked for by number."""

from __future__ import annotations

import logging
import threading

from cifar.engines import Engine
from cifar.errors import OUR_FAULT, CifarError, NotReady, VersionUnusable
from cifar.predictor import Predictor
from cifar.registry import Registry, Version

log = logging.getLogger(__name__)


class LoadedVersions:
    """Loads versions once, keeps the default one, and drops the longest unused beyond the limit. Thread-safe."""

    def __init__(self, registry: Registry, default: Version, *, max_loaded: int, engine: Engine = "auto") -> None:
        self.registry = registry
        self.default = default
        self._max_loaded = max_loaded
        self._engine = engine
        self._predictors: dict[int, Predictor] = {}
        self._loading = threading.Lock()
        self._failure: CifarError | None = None

    @property
    def ready(self) -> bool:
        """Whether the default version is loaded and warmed up."""
        return self.default.number in self._predictors

    def check_ready(self) -> None:
        """Raise why the default version cannot answer: `NotReady`, or what made loading it fail."""
        if self.ready:
            return
        if self._failure:
            raise type(self._failure)(*self._failure.args)  # a new one: each raise adds to an exception's traceback
        raise NotReady("The model is being loaded. Try again in a few seconds.")

    def load_default(self) -> None:
        """Load and warm up the default version; a failure is logged and kept for `check_ready`."""
        try:
            self._load(self.default)
        except Exception as error:
            log.exception("version %s cannot be served", self.default.number)
            self._failure = error if isinstance(error, CifarError) else VersionUnusable(OUR_FAULT)

    def default_if_loaded(self) -> Predictor | None:
        """The default version's predictor, without waiting."""
        return self._predictors.get(self.default.number)

    def get(self, number: int | None = None) -> Predictor:
        """The default version's predictor, or another one's, loading it when need be.

        Raises:
            NotReady: the default version is not loaded yet.
            VersionNotFound, VersionUnusable: see `Registry.get` and `Predictor.load`.
        """
        self.check_ready()
        if number in {None, self.default.number}:
            return self._predictors[self.default.number]
        return self._load(self.registry.get(number))

    def _load(self, version: Version) -> Predictor:
        with self._loading:
            predictor = self._predictors.pop(version.number, None)
            if predictor is None:
                log.info("loading %s version %s", version.name, version.number)
                predictor = Predictor.load(version, self._engine)
                log.info("version %s is ready on %s", version.number, predictor.engine)
            self._predictors[version.number] = predictor  # last: the order is that of use
            self._drop_unused()
            return predictor

    def _drop_unused(self) -> None:
        """Forget the versions longest unused, until the limit holds; requests in flight keep theirs alive."""
        others = [number for number in self._predictors if number != self.default.number]
        for number in others[: max(0, len(self._predictors) - self._max_loaded)]:
            del self._predictors[number]
