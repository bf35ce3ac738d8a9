"""Large JSON bodies are parsed in pieces, with the result of a parser that reads them at once."""

from __future__ import annotations

import base64
import json
import random

import numpy as np
import orjson
import pytest

from cifar.errors import BadRequest
from cifar.serving.rest import json_pieces
from cifar.serving.rest.json_pieces import decode_base64, parse_json
from cifar.serving.rest.tensors import as_arrays

TEXTS = ["", "a", 'quote " and \\ backslash', "[{,:}]", "\u00e9\u4e2d\U0001f600", "x" * 300, "\\" * 41, '"' * 60, "a/b"]


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces so small that every kind of value is cut somewhere."""
    monkeypatch.setattr(json_pieces, "_PIECE_BYTES", 64)


def value(random_: random.Random, depth: int) -> object:
    kind = random_.randrange(7) if depth else random_.randrange(4)
    if kind < 4:
        return random_.choice([None, True, 0, -1.5e-7, 12345, *TEXTS])
    if kind < 6:
        return [value(random_, depth - 1) for _ in range(random_.randrange(9))]
    return {random_.choice(TEXTS) + str(number): value(random_, depth - 1) for number in range(random_.randrange(4))}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("indent", [None, 2])
def test_any_value_in_pieces_is_the_value_of_a_parser_that_reads_it_at_once(indent):
    """Texts with brackets, escapes and quotes must not be mistaken for the structure."""
    random_ = random.Random(7)
    for _ in range(300):
        made = [value(random_, 5) for _ in range(4)]
        for ascii_only in (True, False):
            text = json.dumps(made, indent=indent, ensure_ascii=ascii_only)
            assert parse_json(text.encode(), max_items=10**6) == made, text


@pytest.mark.usefixtures("small_pieces")
def test_a_text_that_the_other_parser_refuses_is_refused():
    """Each case is a valid body with one or two bytes removed, doubled or replaced."""
    random_ = random.Random(8)
    whole = json.dumps([{"image": [[1, 2.5], [3, 4]] * 9, "text": TEXTS}] * 3).encode()
    seen = {True: 0, False: 0}
    for _ in range(3000):
        at = random_.randrange(len(whole))
        broken = (
            whole[:at]
            + random_.choice([b"", b",", b"]", b"[", b"}", b'"', b"\\", b"1", b" ", b"\xff"])
            + whole[at + 1 :]
        )
        try:
            expected = orjson.loads(broken)
        except orjson.JSONDecodeError:
            seen[False] += 1
            with pytest.raises(BadRequest):
                parse_json(broken, max_items=10**6)
        else:
            seen[True] += 1
            assert parse_json(broken, max_items=10**6) == expected
    assert min(seen.values()) > 300


@pytest.mark.usefixtures("small_pieces")
def test_lists_of_numbers_become_arrays_of_the_same_numbers_and_nothing_else_changes():
    """The check of shape and kind that follows must see what the caller sent: `true` and "1" are no numbers."""
    random_ = random.Random(9)

    def element(depth: int) -> object:
        if depth:
            row = [element(depth - 1) for _ in range(random_.choice([2, 2, 2, 3]))]
            return {"image": row} if random_.random() < 0.1 else row
        return random_.choice([0, 255, 0.5, -1, 2**64 - 1, 1e300] * 20 + [True, None, "1", {}, []])

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list | np.ndarray) else value

    arrays = 0
    for _ in range(500):
        made = [element(random_.randrange(4)) for _ in range(30)]
        read = parse_json(json.dumps(made).encode(), max_items=10**6, shrink=as_arrays)
        arrays += sum(isinstance(each, np.ndarray) for each in read)
        assert plain(read) == made
    assert arrays > 1000


@pytest.mark.parametrize("body", [b"[" + b"0," * 3000 + b"0]", b"[" * 3000, b"{" * 3000, b"[" + b"{}," * 3000 + b"0]"])
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(body, monkeypatch):
    """A list of empty lists takes thirty times the memory of its text."""
    monkeypatch.setattr(json_pieces.orjson, "loads", None)
    with pytest.raises(BadRequest, match="too many values, keys or lists: at most 2,000 are read"):
        parse_json(body, max_items=2000)


@pytest.mark.parametrize(
    "body",
    [b"[" * 400_000, b'{"a":' * 60_000, b'["' + b'\\"' * 1_100_000 + b'"]', b'{"a": 0' + b',"b": 0' * 60_000 + b"}"],
)
def test_a_large_body_of_a_form_that_no_client_sends_is_refused(body):
    """Deep nesting, a million escapes and an object of many keys would take one step each."""
    with pytest.raises(BadRequest):
        parse_json(body, max_items=10**6)


def test_base64_in_pieces_is_the_same_file_and_strict():
    """Padding is allowed at the end only, not at the end of a piece."""
    size = 256 * 1024
    for length in (0, 1, 2, 3, size // 4 * 3 - 1, size // 4 * 3, size * 2 + 1):
        content = random.Random(1).randbytes(length)
        assert decode_base64(base64.b64encode(content).decode()) == content
    for wrong in ("A", "A" * (size - 1) + "=" + "AAAA", "QQ==QQ==", "\u00e9" * 4, "Q Q=", "=", "==", "-_-_"):
        with pytest.raises(ValueError, match=r".+"):
            decode_base64(wrong)
