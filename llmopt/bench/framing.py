"""HTTP/1.1 responses, only as far as a load client needs: where one ends, and which bytes are its body.

``Framing`` runs beside the load and answers one question, cheaply: has this response
ended?  ``body_of`` runs after it, walks every byte, and is the one that is believed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

MAX_HEAD_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 14  # of a chunk-size line or a trailer
HEX = b"0123456789abcdefABCDEF"
CHUNKED_END = b"\r\n0\r\n\r\n"


class FramingError(ValueError):
    """Bytes that are no HTTP/1.1 response."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Status line and the headers that matter; header names are in lower case."""

    status: int
    headers: dict[str, str]
    size: int
    http_10: bool

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int | None:
        if self.chunked:
            return None
        if self.status in (204, 304) or 100 <= self.status < 200:
            return 0
        value = self.headers.get("content-length")
        if value is None:
            return None
        if not re.fullmatch(r"\d{1,18}", value, re.ASCII):
            raise FramingError(f"Content-Length {value[:20]!r} is no number")
        return int(value)

    @property
    def keeps_open(self) -> bool:
        asked = self.headers.get("connection", "").lower()
        framed = self.chunked or self.length is not None
        return framed and "close" not in asked and (not self.http_10 or "keep-alive" in asked)


def parse_head(raw: bytes) -> Head | None:
    """The head at the start of ``raw``; ``None`` while it is not whole. Interim answers (1xx) are skipped.

    Raises FramingError for bytes that can become no response.
    """
    start = 0
    while True:
        end = raw.find(b"\r\n\r\n", start)
        if end < 0:
            if len(raw) - start > MAX_HEAD_BYTES or not b"HTTP/1.".startswith(raw[start : start + 7][:7]):
                raise FramingError(f"no HTTP response: {raw[start : start + 40]!r}")
            return None
        lines = raw[start:end].decode("latin-1").split("\r\n")
        words = lines[0].split(" ", 2)
        if not re.match(r"HTTP/1\.\d [1-9]\d\d( |$)", lines[0], re.ASCII):
            raise FramingError(f"no HTTP response: {lines[0][:40]!r}")
        status, start = int(words[1]), end + 4
        if status >= 200 or status == 101:
            break
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        key = name.strip().lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return Head(status=status, headers=headers, size=start, http_10=words[0] == "HTTP/1.0")


class Chunks:
    """Follows a chunked body (RFC 9112, 7.1) over any cuts; ``spans`` are the (start, end) of its data in the stream."""

    def __init__(self, offset: int = 0, *, keep_spans: bool = False) -> None:
        self.at = offset
        self.left = 0
        self.line = b""
        self.last = False
        self.ended = False
        self.spans: list[tuple[int, int]] | None = [] if keep_spans else None

    def feed(self, data: bytes) -> None:
        """Take more of the stream; raises FramingError for a bad size line. Bytes after the end are not looked at."""
        i, n = 0, len(data)
        while i < n and not self.ended:
            if self.left:
                step = min(self.left, n - i)
                if self.spans is not None and self.left > 2:
                    self.spans.append((self.at + i, self.at + i + min(step, self.left - 2)))
                i += step
                self.left -= step
                continue
            j = data.find(b"\n", i)
            if j < 0:
                self.line += data[i:]
                if len(self.line) > MAX_LINE_BYTES:
                    raise FramingError("a chunk-size line without an end")
                break
            self._take_line(self.line + data[i:j])
            self.line = b""
            i = j + 1
        self.at += i if self.ended else n

    def _take_line(self, line: bytes) -> None:
        line = line.rstrip(b"\r")
        if self.last:
            self.ended = not line
            return
        digits = line.partition(b";")[0].strip()
        if not digits or digits.translate(None, HEX):  # int() would take a sign, an underscore and 0x as well
            raise FramingError(f"bad chunk size {line[:20]!r}")
        size = int(digits, 16)
        if size == 0:
            self.last = True
        else:
            self.left = size + 2


class Framing:
    """Tells when the response of one request has ended, looking at each byte at most once and usually at none.

    In an event stream the closing ``CRLF 0 CRLF CRLF`` can be nothing else, so the tail of a read answers.  Everywhere
    else, and for a terminator that came in pieces, the chunks are followed from where they were left.
    """

    __slots__ = ("_chunks", "_fed", "events", "head", "left", "size")

    def __init__(self) -> None:
        self.head: Head | None = None
        self.left: int | None = None
        self.events = False
        self.size = 0
        self._chunks: Chunks | None = None
        self._fed = 0

    def start(self, pieces: list[bytes]) -> bool:
        """Look for the whole head in what came so far; returns whether the response has ended already."""
        raw = b"".join(pieces)
        self.head = parse_head(raw)
        if self.head is None:
            return False
        self.size = len(raw) - self.head.size
        if self.head.chunked:
            self.events = "event-stream" in self.head.headers.get("content-type", "")
            self._chunks = Chunks()
            self._chunks.feed(raw[self.head.size :])
            self._fed = len(pieces)
            return self._chunks.ended
        self.left = self.head.length
        return self.left is not None and self.size >= self.left

    def ended(self, data: bytes, pieces: list[bytes]) -> bool:
        """Whether ``data``, the newest of ``pieces``, ended the response. Raises FramingError."""
        self.size += len(data)
        if self._chunks is None:
            return self.left is not None and self.size >= self.left
        if self.events:
            if data.endswith(CHUNKED_END):
                return True
            if len(data) > len(CHUNKED_END) and not data.endswith(b"\r\n\r\n"):
                return False
        return self.walk(pieces)

    def walk(self, pieces: list[bytes]) -> bool:
        """Follow the chunks to the end of what came; raises FramingError."""
        if self._chunks is None:
            return False
        for piece in pieces[self._fed :]:
            self._chunks.feed(piece)
        self._fed = len(pieces)
        return self._chunks.ended


@dataclass(frozen=True, kw_only=True)
class Body:
    """A decoded body; ``parts`` are (index of the read that brought it, bytes), ``whole`` when its end was seen.

    ``problem`` says why nothing behind ``parts`` could be decoded.
    """

    head: Head
    parts: list[tuple[int, bytes]]
    whole: bool
    problem: str | None = None

    @property
    def text(self) -> bytes:
        return b"".join(data for _, data in self.parts)


def body_of(raw: bytes, sizes: Sequence[int], *, closed: bool) -> Body | None:
    """Decode one recorded response. ``sizes`` are those of the reads, ``closed`` whether the server ended the connection.

    ``None`` while not even the head is there.  Raises FramingError for a head that is none.
    """
    head = parse_head(raw)
    if head is None:
        return None
    edges, problem = list(accumulate(sizes)), None
    if head.chunked:
        chunks = Chunks(head.size, keep_spans=True)
        try:
            chunks.feed(raw[head.size :])
        except FramingError as error:  # what came before it stands
            problem = str(error)
        spans, whole = chunks.spans or [], chunks.ended
    else:
        length = head.length
        end = len(raw) if length is None else min(len(raw), head.size + length)
        spans = [(head.size, end)]
        whole = closed if length is None else end == head.size + length
    return Body(head=head, parts=split_by_reads(raw, spans, edges), whole=whole, problem=problem)


def split_by_reads(raw: bytes, spans: Sequence[tuple[int, int]], edges: Sequence[int]) -> list[tuple[int, bytes]]:
    """The spans cut where one read ends and the next begins; both are in the order of the stream."""
    parts = []
    read = bisect_left(edges, spans[0][0] + 1) if spans else 0
    for start, end in spans:
        while start < end:
            while edges[read] <= start:
                read += 1
            stop = min(end, edges[read])
            parts.append((read, raw[start:stop]))
            start = stop
    return parts
