"""The Space with a model that always takes its turn: on a quick machine it would answer at once, and nothing would wait."""

from __future__ import annotations

import app as space
from cifar.models import predictor

predictor._QUICK_SECONDS = 0
app = space.app
