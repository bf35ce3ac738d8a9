"""A parser for a multipart form from an in-memory body.

FastAPI's own form reader writes each file into a temporary file object. Forms as common clients write them are read without the
general parser, whose callbacks take most of the time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from cifar.errors import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PARTS = 100
_HOW = "Let your HTTP client write this header; it chooses the boundary."

_PLAIN_TYPE = re.compile(r'multipart/form-data; ?boundary="?([0-9A-Za-z_.\-]{1,70})"?')
_PLAIN_HEAD = re.compile(
    rb'(?i:content-disposition): form-data; name="(\w+)"(; filename="[^"\\\r\n]*")?((?:\r\n(?i:content-(?:type|length)): [^\r\n]*)*)'
)
"""The head of a part without escapes, encodings, or headers that change its meaning."""
_PLAIN_HEAD_BYTES = 4096
"""Of a longer head, the pattern would hold the event loop for up to a quarter of a second. The general parser has a limit too."""
_MAX_PREAMBLE_BYTES = 64 * 1024
_FILE_TYPE = re.compile(rb"\s*(?:image/|application/octet-stream)", re.IGNORECASE)
_FILE_TYPE_LINE = re.compile(rb"\r\ncontent-type:\s*(?:image/|application/octet-stream)", re.IGNORECASE)


@dataclass(slots=True)
class Part:
    """One part of a form. It is a file if it has a file name or the type of one: RFC 7578 does not ask for a name."""

    name: str = ""
    is_file: bool = False
    pieces: list[bytes] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)


class _Collector:
    """Collects the parts from the parser's events."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._header = self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self.on_part_begin,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": self.on_part_data,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self.parts.append(Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            kind, options = parse_options_header(self._value)
            if kind == b"form-data" and b"name" in options:
                self.parts[-1].name = options[b"name"].decode("utf-8", "replace")
                self.parts[-1].is_file |= b"filename" in options
        elif self._header.lower() == b"content-type":
            self.parts[-1].is_file |= _FILE_TYPE.match(self._value) is not None
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        if not self.parts[-1].name:
            raise BadRequest('A part of the form has no Content-Disposition: form-data; name="…".')
        if len(self.parts) > _MAX_PARTS:
            raise BadRequest(f"Too many parts: a form may have {_MAX_PARTS}.")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].pieces.append(data[start:end])

    def on_end(self) -> None:
        self.ended = True


def read_form(body: bytes, content_type: str) -> list[Part]:
    """Parse a complete form, whose boundary the header `content_type` names.

    Raises:
        BadRequest: there is no boundary, the body is not a complete form, or it has too many parts.
    """
    plain = _PLAIN_TYPE.fullmatch(content_type)
    if plain and (parts := _read_plain(body, plain[1].encode())):
        return parts
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise BadRequest(f"The Content-Type multipart/form-data names no boundary. {_HOW}")
    begin = body.find(b"--" + boundary, 0, _MAX_PREAMBLE_BYTES)
    if begin < 0:
        raise BadRequest(
            f"The form does not contain the boundary {boundary[:70].decode('latin-1')!r} that its Content-Type names. {_HOW}"
        )
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body[begin:])  # RFC 2046 allows text before the first boundary
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"The form cannot be read: {error}.") from error
    if not collector.ended:
        raise BadRequest("The form is incomplete: its last boundary is missing.")
    return collector.parts


def _read_plain(body: bytes, boundary: bytes) -> list[Part] | None:
    """Parse a form whose parts have the plainest heads and that is complete; None for any other form."""
    delimiter = b"\r\n--" + boundary
    if not body.startswith(delimiter[2:]):
        return None
    parts: list[Part] = []
    end = len(delimiter) - 2
    while body.startswith(b"\r\n", end) and len(parts) < _MAX_PARTS:
        begin, head_end = end + 2, body.find(b"\r\n\r\n", end + 2, end + 2 + _PLAIN_HEAD_BYTES)
        head = _PLAIN_HEAD.fullmatch(body, begin, head_end) if head_end > 0 else None
        end = body.find(delimiter, head_end + 4)
        if head is None or end < 0:
            return None
        is_file = head[2] is not None or _FILE_TYPE_LINE.search(head[3]) is not None
        parts.append(Part(head[1].decode(), is_file, [body[head_end + 4 : end]]))
        end += len(delimiter)
    return parts if body[end:] in {b"--", b"--\r\n"} else None
