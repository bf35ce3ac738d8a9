"""The app with other values of constants: CONSTANTS is JSON such as {"cifar.dependency.RECOVERY_SECONDS": 1}."""

from __future__ import annotations

import json
import os
from importlib import import_module

for name, value in json.loads(os.environ["CONSTANTS"]).items():
    module, _, constant = name.rpartition(".")
    assert hasattr(import_module(module), constant), name
    setattr(import_module(module), constant, value)

from app import app  # noqa: E402, F401 - gunicorn's target
