"""What is counted, for Prometheus. With several workers each writes to files that any of them can add up."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.values import ValueClass

BATCH_SIZE = Histogram(
    "cifar_batch_images", "Images that the model was given at once.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
WAIT_SECONDS = Histogram(
    "cifar_batch_wait_seconds",
    "Time between an image being ready and the model taking it.",
    ["route"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
IMAGES = Counter("cifar_images_total", "Images classified.", ["route", "version"])
REFUSED = Counter(
    "cifar_refused_total", "Images not classified because too many waited, or too long.", ["route", "code"]
)

RATE_LIMITED = Counter("cifar_rate_limited_total", "Requests refused with 429.", ["group"])
CACHE = Counter("cifar_cache_total", "Answers looked up by the image's digest.", ["store", "result"])
REMOTE_FAILURES = Counter("cifar_remote_failures_total", "Calls that a dependency did not answer.", ["dependency"])
BREAKER_OPEN = Gauge(
    "cifar_breaker_open",
    "Whether a dependency is left alone because it does not answer: 1 if any worker leaves it.",
    ["dependency"],
    multiprocess_mode="livemax",
)

_SEVERAL_PROCESSES = ValueClass.__name__ == "MmapedValue"


def exposition() -> tuple[bytes, str]:
    """The metrics of all workers in Prometheus' text format, and its content type."""
    if not _SEVERAL_PROCESSES:
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
