"""Values that have a meaning in the records. Importing this module does not import SQLAlchemy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
"""A row of a table, by column."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The form of a request id."""
NONE_LABEL = "none"
"""The feedback label for an image of none of the classes. A version may also have a class of that name."""


def feedback_labels(class_names: Iterable[str]) -> list[str]:
    """Return the labels that feedback may use: the version's classes, and `NONE_LABEL`, without duplicates."""
    return list(dict.fromkeys((*class_names, NONE_LABEL)))
