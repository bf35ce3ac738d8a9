"""The Space with a model that always takes its turn: on a quick machine it would answer at once, and nothing would wait."""

from __future__ import annotations

import app as space
from cifar.analytics import drift_report
from cifar.models import predictor
from cifar.serving.process import analytics

predictor._QUICK_SECONDS = 0
drift_report.MIN_IMAGES = 20
analytics.DRIFT_SECONDS = 1
app = space.app
