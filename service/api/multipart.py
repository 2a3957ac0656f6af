"""The parts of a multipart/related body (RFC 2387, PS3.18 8.6), handed on while they arrive.

python-multipart finds the boundaries: its parser is made for forms, and below them RFC 2046 is the same.
"""

from collections.abc import Mapping
from typing import Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.core.errors import Unreadable

MAX_HEADERS, MAX_HEADER_BYTES = 16, 4096
"""Header fields of one part, and bytes of one of them."""
MAX_MEDIA_TYPE_CHARACTERS = 1024


class PartSink(Protocol):
    """Who takes the parts, one after the other."""

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins; names of `headers` are in lower case."""

    def write(self, content: bytes) -> object:
        """More of the part's content."""

    def end(self) -> None:
        """The part is whole: a boundary followed it."""


class MultipartReader:
    """Takes a body apart, holding no more of it than one header and what was fed last."""

    def __init__(self, boundary: bytes, sink: PartSink) -> None:
        self._sink = sink
        self._headers: dict[str, str] = {}
        self._name, self._value = b"", b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": sink.end,
                "on_end": self._on_end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )

    def feed(self, content: bytes) -> None:
        """Take more of the body; what follows the closing boundary is ignored (RFC 2046 5.1.1).

        Raises
        ------
        Unreadable
            When it is no multipart body with this boundary.
        """
        try:
            self._parser.write(content)
        except FormParserError as fault:
            raise Unreadable(f"the body is no multipart body with the boundary it names ({fault})") from None

    def finish(self) -> None:
        """Say that the body has ended.

        Raises
        ------
        Unreadable
            When its closing boundary did not come.
        """
        if not self._ended:
            raise Unreadable("the body ends without its closing boundary")

    def _on_part_begin(self) -> None:
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._name, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        self._sink.begin(self._headers)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._sink.write(data[start:end])

    def _on_end(self) -> None:
        self._ended = True


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """Return a media type in lower case and its parameters; an empty one when it is too long to be one."""
    if len(value) > MAX_MEDIA_TYPE_CHARACTERS:
        return "", {}
    name, parameters = parse_options_header(value)
    return name.decode("latin-1").strip().lower(), {
        key.decode("latin-1").lower(): content.decode("latin-1") for key, content in parameters.items()
    }
