"""Formats numbers, tables and pictures for reports, pages and terminals."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image


def number(value: float | None, digits: int, *, missing: str = "none") -> str:
    """Format `value` with `digits` decimal places, or return `missing` for None."""
    return missing if value is None else f"{value:.{digits}f}"


def percent(share: float | None, *, missing: str = "none") -> str:
    """Format a share in [0, 1] as `66.8 %`, or return `missing` for None.

    A share just below 1 becomes `> 99.9 %`: `100.0 %` would claim that there are no exceptions.
    """
    if share is None:
        return missing
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{share * 100:.1f} %"


def percent_range(low: float | None, high: float | None, *, missing: str = "none") -> str:
    """Format an interval of shares as `65.8 to 67.7 %`, or return `missing` if a bound is None."""
    return missing if low is None or high is None else f"{low * 100:.1f} to {high * 100:.1f} %"


def points(difference: float) -> str:
    """Format a difference of two shares in percentage points, with its sign: `+1.5`."""
    return f"{difference * 100:+.1f}"


def text_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Format a table for a terminal: one line per row, columns aligned to the right."""
    lines = [[str(cell) for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table; `|` within a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def png(pixels: np.ndarray) -> bytes:
    """Encode an image as a PNG file.

    Args:
        pixels: `(height, width)`, `(height, width, 1)` or `(height, width, 3)`, `uint8`.
    """
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes, media_type: str = "image/png") -> str:
    """Return an image file as a `data:` URL, which a page shows without a further request."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
