"""The part of HTTP/1.1 that a scripted server reads: whole requests out of a growing buffer."""

from __future__ import annotations

from dataclasses import dataclass

MAX_HEAD_BYTES = 1 << 16


class MessageError(ValueError):
    """Bytes that are no request."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A whole request; with ``wants_continue``, one whose client waits to be told to send the body."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    received_ns: int
    version: str = "HTTP/1.1"
    wants_continue: bool = False

    @property
    def wants_close(self) -> bool:
        wish = self.headers.get("connection", "").lower()
        return "close" in wish or (self.version == "HTTP/1.0" and "keep-alive" not in wish)


def read_message(buffer: bytearray, received_ns: int) -> Message | None:
    """Take the first request out of ``buffer``; None while it is not complete. Raises MessageError."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_HEAD_BYTES:
            raise MessageError("the head of the request is too long")
        return None
    first, *lines = buffer[:end].decode("latin-1").split("\r\n")
    try:
        method, target, version = first.split(" ")
        pairs = [line.split(":", 1) for line in lines]
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        found = take_body(buffer, end + 4, headers)
    except ValueError as problem:
        raise MessageError(f"this is no HTTP request: {first[:80]!r} ({problem})") from None
    waits = found is None and len(buffer) == end + 4 and headers.pop("expect", "").lower() == "100-continue"
    if found is None and not waits:
        return None
    body, used = found or (b"", 0)
    del buffer[:used]
    return Message(
        method=method, target=target, headers=headers, body=body, received_ns=received_ns, version=version,
        wants_continue=waits,
    )  # fmt: skip


def take_body(buffer: bytearray, start: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
    """The body and where it ends; None while it is not whole."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return take_chunks(buffer, start)
    end = start + int(headers.get("content-length", 0))
    return (bytes(buffer[start:end]), end) if len(buffer) >= end else None


def take_chunks(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    pieces: list[bytes] = []
    while (line_end := buffer.find(b"\r\n", at)) >= 0:
        size = int(bytes(buffer[at:line_end]).split(b";")[0], 16)
        after = line_end + 2 + size + 2
        if len(buffer) < after:
            return None
        if not size:
            return b"".join(pieces), after
        pieces.append(bytes(buffer[line_end + 2 : after - 2]))
        at = after
    return None
