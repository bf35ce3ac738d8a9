"""This project with a constant in place of the model: the ceiling that everything but the model sets."""

from __future__ import annotations

import numpy as np

import app as space
from cifar.models import predictor

_ANSWER = np.full(10, 0.1, np.float32)

predictor.load_engine = lambda *_, **__: ("constant", lambda images: np.tile(_ANSWER, (len(images), 1)))
app = space.app
