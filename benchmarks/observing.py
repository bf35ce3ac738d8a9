"""Measure what counting and logging cost per request: `PYTHONPATH=. python benchmarks/observing.py 2>/dev/null`.

It times an empty answer with and without `Observe`, and `POST /predict` of a small JPEG without the HTTP server and the
middleware. With several processes the counts are in mapped files; set `PROMETHEUS_MULTIPROC_DIR=$(mktemp -d)` to measure those.
"""

from __future__ import annotations

import asyncio
import logging.config
import statistics
import time
from functools import partial

from fastapi import FastAPI

from app import create_app
from cifar.serving.asgi import replay
from cifar.serving.front.observe import Observe
from cifar.serving.process.logs import log_config
from cifar.settings import ROOT, Settings

ROUNDS, REQUESTS = 9, 1000
IMAGE = (ROOT / "examples/cat.jpg").read_bytes()


async def empty(_scope, _receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def microseconds(app, log_format: str) -> float:
    async def send(_message) -> None:
        pass

    logging.config.dictConfig(log_config(Settings(log_format=log_format)))
    fixed = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "server": ("127.0.0.1", 80)}
    started = time.perf_counter()
    for _ in range(REQUESTS):
        scope = {**fixed, "headers": [(b"content-type", b"image/jpeg")], "state": {"request_id": "0" * 32}}
        await app(scope, replay(IMAGE, asyncio.Event().wait), send)  # the client does not disconnect
    return (time.perf_counter() - started) / REQUESTS * 1e6


def observed(access_log: bool) -> Observe:
    return Observe(empty, access_log=access_log)


async def main() -> None:
    api = create_app(Settings(records=False), page=False)
    async with api.router.lifespan_context(api):
        await asyncio.sleep(2)  # until the model is loaded
        systems = {
            "nothing": (empty, "text"),
            "counted": (observed(False), "text"),
            "counted and logged as text": (observed(True), "text"),
            "counted and logged as JSON": (observed(True), "json"),
            "POST /predict": (partial(FastAPI.__call__, api), "text"),
        }
        times = {name: [] for name in systems}
        for _ in range(ROUNDS):  # interleaved, so that a slow moment affects all
            for name, system in systems.items():
                times[name].append(await microseconds(*system))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print("| | microseconds more | of POST /predict |\n|---|---|---|")
    for name in list(systems)[1:-1]:
        more = medians[name] - medians["nothing"]
        print(f"| {name} | {more:.1f} | {more / medians['POST /predict']:.3f} |")


asyncio.run(main())
