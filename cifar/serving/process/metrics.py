"""The metrics for Prometheus. Each of several workers writes its values to files, and any worker can add them all up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    multiprocess,
    values,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from cifar.dependency import Dependency
from cifar.errors import Overloaded, WaitedTooLong
from cifar.serving.process.count_files import use_count_files

if TYPE_CHECKING:
    from cifar.models.predictor import Prediction

# gunicorn.conf.py sets PROMETHEUS_MULTIPROC_DIR before it imports this module. prometheus_client then writes each value to a
# file in that folder, named after the process id. Each restarted worker would add files, and every answer of /metrics reads
# all of them. So the files are named after the worker's slot instead (`count_in`), and a new worker continues the files of
# the worker that it replaces. A metric takes its value class when it is created, so the class is replaced before that.
_SEVERAL_PROCESSES = values.ValueClass.__name__ == "MmapedValue"
_files = "parent"

if _SEVERAL_PROCESSES:
    use_count_files()
    values.ValueClass = values.MultiProcessValue(lambda: _files)  # type: ignore[no-untyped-call]

REQUESTS = Counter("request_count", "Requests answered.", ["method", "endpoint", "status"])
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LATENCY = Histogram(
    "request_latency_seconds",
    "Time from the head of a request to the head of its answer.",
    ["method", "endpoint"],
    buckets=LATENCY_BUCKETS,
)
_exemplars: dict[tuple[str, str, str], Exemplar] = {}
"""The last request with a trace, by method, endpoint and bucket."""
BATCH_SIZE = Histogram("cifar_batch_images", "Images in one batch of the model.", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
WAIT_SECONDS = Histogram(
    "cifar_batch_wait_seconds",
    "Time that a decoded image waits for the model.",
    ["route"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
IMAGES = Counter("cifar_images_total", "Images classified.", ["route", "version"])
PREDICTIONS = Counter("cifar_predictions_total", "Images by predicted class.", ["version", "label"])
CONFIDENCE = Histogram(
    "cifar_confidence",
    "Probability of the predicted class.",
    ["version"],
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1),
)
OUT_OF_DISTRIBUTION = Counter(
    "cifar_out_of_distribution_total",
    "Images with an out-of-distribution score above 1. Only for versions that have this score.",
    ["version"],
)
REFUSED = Counter(
    "cifar_refused_total",
    "Images refused because too many were waiting, or because they waited too long.",
    ["route", "code"],
)
for _labels in product(("rest", "page", "gradio", "mcp", "batch", "tensor"), (Overloaded.code, WaitedTooLong.code)):
    REFUSED.labels(*_labels)  # `rate()` misses the first increase of a series that did not exist

RATE_LIMITED = Counter("cifar_rate_limited_total", "Requests refused with 429.", ["group"])
CACHE = Counter("cifar_cache_total", "Cache look-ups by the digest of the image.", ["store", "result"])
REMOTE_FAILURES = Counter("cifar_remote_failures_total", "Calls of an outside service that failed.", ["dependency"])
BREAKER_OPEN = Gauge(
    "cifar_breaker_open",
    "Whether an outside service is down: 1 if its last call failed in any worker.",
    ["dependency"],
    multiprocess_mode="livemax",
)

RECORDS_DROPPED = Counter("cifar_records_dropped_total", "Records lost because the journal or the disk was full.")
IMAGES_NOT_KEPT = Counter(
    "cifar_images_not_kept_total", "Images not kept because the limit of the settings was reached."
)
FEEDBACK = Counter("cifar_feedback_total", "Feedback stored.")
DRIFT_PSI = Gauge(
    "cifar_drift_psi",
    "Population stability index of recent images against the version's reference; NaN while there are too few images.",
    ["version", "feature"],
    multiprocess_mode="livemostrecent",
)
DRIFT_LEVEL = Gauge(
    "cifar_drift_level",
    "Level of that index: 0 none, 1 warn, 2 alert.",
    ["version", "feature"],
    multiprocess_mode="livemostrecent",
)

# The modes "live..." leave out processes that have ended.
WORKERS = Gauge("cifar_workers", "Running workers.", multiprocess_mode="livesum")
WORKERS_READY = Gauge(
    "cifar_workers_ready", "Workers that have loaded their default version.", multiprocess_mode="livesum"
)
LOADED = Gauge(
    "cifar_model_loaded",
    "Workers that have loaded a version, by the engine that runs it.",
    ["name", "version", "engine"],
    multiprocess_mode="livesum",
)
NOT_LOADED = Gauge(
    "cifar_model_load_failed",
    "Whether a version that should receive traffic cannot be loaded: 1 if that is so in any worker.",
    ["name", "version"],
    multiprocess_mode="livemax",
)
SHADOWED = Counter(
    "cifar_shadow_total",
    "Images of shadow traffic by result: agrees, disagrees, dropped, failed.",
    ["version", "shadow_version", "result"],
)
SHADOW_DISTANCE = Histogram(
    "cifar_shadow_distance",
    "Total variation distance of the probabilities of two versions: 0 for the same answer.",
    ["version", "shadow_version"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
LOAD_SECONDS = Histogram(
    "cifar_model_load_seconds",
    "Time to verify, load and warm up a version.",
    ["version", "engine"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


_OF_ANY_VERSION = {"cifar_model_load_failed", "cifar_drift_psi", "cifar_drift_level"}
LOOP_LATENESS = Histogram(
    "cifar_event_loop_lateness_seconds",
    "Time by which the event loop runs a timer too late, because something else held it.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)


def prepare_counts(version: int, class_names: Iterable[str], *, has_ood_score: bool) -> None:
    """Create the counters of a version with the value 0, so that classes it never predicts are exported too."""
    for name in class_names:
        PREDICTIONS.labels(version, name)
    CONFIDENCE.labels(version)
    if has_ood_score:
        OUT_OF_DISTRIBUTION.labels(version)


def count_answer(channel: str, version: int, prediction: Prediction) -> None:
    """Count one classified image by channel, version and predicted class."""
    label, score = prediction.top_k[0]
    images, predictions, confidence = _series_of_answer(channel, version, label)
    images.inc()
    predictions.inc()
    confidence.observe(score)
    if prediction.in_distribution is False:
        OUT_OF_DISTRIBUTION.labels(version).inc()


@lru_cache(maxsize=10_000)
def _series_of_answer(channel: str, version: int, label: str) -> tuple[Counter, Counter, Histogram]:
    """Return the metrics of such answers. Their look-up by labels is as slow as counting, so they are kept here."""
    return IMAGES.labels(channel, version), PREDICTIONS.labels(version, label), CONFIDENCE.labels(version)


def watch(dependency: Dependency) -> None:
    """Report a dependency's failures and state in the metrics from now on."""
    down = BREAKER_OPEN.labels(dependency.name)
    down.set(int(dependency.failing))
    dependency.on_failure = REMOTE_FAILURES.labels(dependency.name).inc
    dependency.on_change = lambda failing: down.set(int(failing))


def count_in(files: str) -> None:
    """Write this process's values to files of this name. No two running processes may use the same name."""
    global _files  # noqa: PLW0603 - the library calls a function without arguments
    _files = files


def note_exemplar(method: str, endpoint: str, seconds: float, trace: str) -> None:
    """Keep a request as an example of its bucket of `LATENCY`. The library keeps none where several processes count."""
    bound = next((bound for bound in LATENCY_BUCKETS if seconds <= bound), float("inf"))
    le = floatToGoString(bound)  # type: ignore[no-untyped-call]
    _exemplars[method, endpoint, le] = Exemplar({"trace_id": trace}, seconds, time.time())


def _with_exemplar(sample: Sample) -> Sample:
    key = sample.labels["method"], sample.labels["endpoint"], sample.labels.get("le", "")
    return sample._replace(exemplar=_exemplars.get(key))


def exposition(accept: str = "") -> tuple[bytes, str]:
    """Return the metrics of all workers, and their content type. Takes up to 0.1 seconds: call it in a thread.

    A request's header `accept` chooses Prometheus' text format, or OpenMetrics, which has exemplars of the worker that answers.
    """
    encode, kind = choose_encoder(accept)
    registry: Collector = REGISTRY
    if _SEVERAL_PROCESSES:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return encode(_OfLoadedVersions(registry)), kind


class _OfLoadedVersions(Collector):
    """Leaves out the series of versions that are in no worker's memory. Callers may ask for all versions, one after the other."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        families = list(self._registry.collect())
        samples = [sample for family in families if family.name == "cifar_model_loaded" for sample in family.samples]
        loaded = {sample.labels["version"] for sample in samples if sample.value}
        for family in families:
            if family.name not in _OF_ANY_VERSION:
                family.samples = [
                    sample
                    for sample in family.samples
                    if "version" not in sample.labels or sample.labels["version"] in loaded
                ]
            if family.name == "request_latency_seconds" and _exemplars:
                family.samples = list(map(_with_exemplar, family.samples))
            yield family
