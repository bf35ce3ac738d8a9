"""Parses a large JSON body, and decodes the files in it, in pieces.

A parser in C holds Python's interpreter lock from the first byte to the last, so it stops the event loop even when it runs in a
thread. 16 MB of numbers take 0.2 to 0.3 seconds. Between pieces, which take a few milliseconds each, other threads run.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable
from typing import Any

import orjson

from cifar.errors import BadRequest
from cifar.images.decode import begins_like_an_image, without_data_url_head

_PIECE_BYTES = 256 * 1024
"""Parsed at once: about 3 milliseconds of numbers."""
_MAX_KEYS = 100
"""Of an object that is longer than a piece."""
_MAX_DEPTH = 6
"""Of lists and objects that are longer than a piece, or hold one that is."""
_MAX_ESCAPES = 1_000_000
_BACKSLASH = ord("\\")
_COUNTED_BYTES = 1024**2

_SPACE = re.compile(rb"[ \t\r\n]*+")
# Loops over groups are atomic groups: possessive ones, `(...)*+`, go wrong before Python 3.11.5 (CPython issue 106052).
_STRING = rb'"(?>(?:[^"\\]++|\\.)*)"'
_ATOMS = rb'[^\[\]{}"]++'


def _nested(depth: int) -> bytes:
    """Return a pattern for lists and objects of at most this depth. Its alternatives differ in their first byte, so it never backtracks."""
    inner = rb"|" + _nested(depth - 1) if depth > 1 else b""
    return rb"[\[{](?>(?:" + _ATOMS + rb"|" + _STRING + inner + rb")*)[\]}]"


_VALUE = rb"(?:" + _STRING + rb"|" + _nested(_MAX_DEPTH) + rb'|[^\[\]{}",\s]++)'
_ONE_VALUE = re.compile(_VALUE, re.DOTALL)
_VALUES = re.compile(rb"(?>(?:\s*+" + _VALUE + rb"\s*+,)*)", re.DOTALL)
"""The elements of a list that follow each other, each with its comma."""


Shrink = Callable[[list[Any]], list[Any]]
"""A function that returns the same elements in less memory."""


def parse_json(body: bytes, *, max_items: int, shrink: Shrink = list) -> Any:
    """Return the value of a JSON text.

    Args:
        body: the text, UTF-8.
        max_items: limit on its commas and opening brackets together, and so on the objects that it makes.
        shrink: is called with the elements of each piece of a list that is longer than a piece. A million lists of three numbers
            take 90 MB, and Python's garbage collector stops all threads for 40 milliseconds whenever it looks through them.

    Raises:
        BadRequest: the text is not JSON, has too many items, or a large part of it is nested more deeply than `_MAX_DEPTH`.
    """
    if sum(_count(body, mark) for mark in (b",", b"[", b"{")) > max_items:
        raise BadRequest(f"The body has too many values, keys or lists: at most {max_items:,} are read.")
    if len(body) <= _PIECE_BYTES:
        return _parsed(body, 0)
    if _count(body, b"\\") > _MAX_ESCAPES:
        raise BadRequest(f"The body has more than {_MAX_ESCAPES:,} backslashes.")
    value, end = _value(body, _after_space(body, 0), _MAX_DEPTH, shrink)
    if _after_space(body, end) < len(body):
        raise _not_json(body, end)
    return value


def let_others_run() -> None:
    """Give other threads a turn.

    They ask for one after 5 milliseconds without it, and begin to count anew whenever the lock is free for a moment, as it is in
    each of NumPy's functions: work that calls one every 2 milliseconds would keep them waiting until its end.
    """
    time.sleep(1e-5)


def decode_base64(text: str, *, needs_padding: bool = True) -> bytes:
    """Return the bytes that `text` encodes. White space is skipped.

    Args:
        text: base64 with the usual alphabet.
        needs_padding: refuse text without the padding at its end, as many names of files are.

    Raises:
        ValueError: it is not base64, or has other characters in it.
    """
    data = text.encode("ascii").translate(None, b" \t\n\v\f\r")
    bare = data.rstrip(b"=")
    if b"=" in bare:
        raise binascii.Error("padding before the end")
    missing = -len(bare) % 4
    padding = len(data) - len(bare)
    if missing == 3 or (padding != missing and (needs_padding or padding)):
        raise binascii.Error("Incorrect padding")
    data = bare + missing * b"="
    starts = range(0, len(data), _PIECE_BYTES)
    return b"".join(base64.b64decode(data[start : start + _PIECE_BYTES], validate=True) for start in starts)


def decode_image(text: str, name: str) -> bytes:
    """Return the image file in `text`: base64, or a `data:` URL with base64.

    Args:
        text: the value.
        name: what it is in the call, for the error message.

    Raises:
        BadRequest: it is something else, such as an address.
    """
    try:
        return decode_base64(without_data_url_head(text))
    except ValueError as error:
        raise BadRequest(
            f"{name} must be a whole image file in base64; got {text[:20]!r}, of {len(text):,} characters. Addresses are not fetched."
        ) from error


def _count(body: bytes, mark: bytes) -> int:
    return sum(body.count(mark, start, start + _COUNTED_BYTES) for start in range(0, len(body), _COUNTED_BYTES))


def _value(body: bytes, start: int, depth: int, shrink: Shrink) -> tuple[Any, int]:
    """Return the value that begins at `start`, and the position after it."""
    first = body[start : start + 1]
    if first == b'"':
        return _text(body, start)
    if found := _ONE_VALUE.match(body, start, start + _PIECE_BYTES):
        return _parsed(found[0], start), found.end()
    if depth and first == b"[":
        return _list(body, start + 1, depth - 1, shrink)
    if depth and first == b"{":
        return _object(body, start + 1, depth - 1, shrink)
    raise _not_json(body, start)


def _list(body: bytes, start: int, depth: int, shrink: Shrink) -> tuple[list[Any], int]:
    items: list[Any] = []
    while True:
        found = _VALUES.match(body, start, start + _PIECE_BYTES)
        if found and found[0]:
            items += shrink(_parsed(b"[" + found[0][:-1] + b"]", start))
            let_others_run()
            start = found.end()
            continue
        item, end = _value(body, _after_space(body, start), depth, shrink)
        items.append(item)
        start = _after_space(body, end) + 1
        if body[start - 1 : start] == b"]":
            return items, start
        if body[start - 1 : start] != b",":
            raise _not_json(body, end)


def _object(body: bytes, start: int, depth: int, shrink: Shrink) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    for _ in range(_MAX_KEYS):
        key, end = _text(body, _after_space(body, start))
        colon = _after_space(body, end)
        if body[colon : colon + 1] != b":":
            break
        found[key], end = _value(body, _after_space(body, colon + 1), depth, shrink)
        start = _after_space(body, end) + 1
        if body[start - 1 : start] == b"}":
            return found, start
        if body[start - 1 : start] != b",":
            break
    raise _not_json(body, end)


def _text(body: bytes, start: int) -> tuple[str, int]:
    end = start
    while body[start : start + 1] == b'"' and (end := body.find(b'"', end + 1)) >= 0:
        before = end
        while body[before - 1] == _BACKSLASH:
            before -= 1
        if (end - before) % 2 == 0:  # otherwise it belongs to the text
            return _parsed(body[start : end + 1], start), end + 1
    raise _not_json(body, start)


def _after_space(body: bytes, start: int) -> int:
    found = _SPACE.match(body, start)
    return found.end() if found else start


def _parsed(piece: bytes, start: int) -> Any:
    try:
        return orjson.loads(piece)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"The body is not JSON: {_other_kind(piece) or error}{f', counted from byte {start:,}' if start else ''}."
        ) from error


def _not_json(body: bytes, position: int) -> BadRequest:
    if kind := _other_kind(body):
        return BadRequest(f"The body is not JSON: {kind}.")
    return BadRequest(
        f"The body is not JSON, or nested too deeply for its size: cannot read byte {position:,} of {len(body):,}."
    )


def _other_kind(body: bytes) -> str:
    """Return what was sent in place of JSON, and what to do; empty if that is not known."""
    if begins_like_an_image(body):
        return "it is an image file, which belongs to POST /predict"
    if body.startswith(b"--") and b"form-data" in body[:200]:
        return "it is a multipart form; let your HTTP client write the Content-Type, and send files to POST /predict"
    return ""
