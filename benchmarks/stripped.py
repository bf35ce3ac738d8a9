"""The server with one part taken away: `BENCH_WITHOUT=middleware` or `BENCH_WITHOUT=model`, which leaves a constant in its place."""

from __future__ import annotations

import os
import secrets
from functools import partial

import numpy as np
from fastapi import FastAPI

import app as space
from cifar.models import predictor
from cifar.models.engines import Infer
from cifar.models.registry import Version


def load_constant(version: Version, *_: object, **__: object) -> tuple[str, Infer]:
    columns = len(version.manifest.class_names) + version.manifest.has_ood_score
    answer = np.full(columns, 0.1, np.float32)
    return "constant", lambda images: np.tile(answer, (len(images), 1))


def without_middleware(api: FastAPI) -> FastAPI:
    inner = partial(FastAPI.__call__, api)

    async def front(scope, receive, send) -> None:
        scope["state"] = {"request_id": secrets.token_hex(16)}  # which the records need
        await inner(scope, receive, send)

    api.front = front
    return api


if os.environ["BENCH_WITHOUT"] == "model":
    predictor.load_engine = load_constant
app = without_middleware(space.app) if os.environ["BENCH_WITHOUT"] == "middleware" else space.app
