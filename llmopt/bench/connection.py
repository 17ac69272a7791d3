"""One TCP connection to the server, plain, through a tunnel, or with TLS; at most one request is under way on it."""

from __future__ import annotations

import contextlib
import enum
import socket
import ssl
from array import array

from llmopt.bench.framing import Framing, parse_head

SO_TIMESTAMPING = 37
RX_SOFTWARE_STAMPS = 1 << 3 | 1 << 4  # SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE
READ_BYTES = 16_384
ANCILLARY_BYTES = socket.CMSG_SPACE(48)  # struct scm_timestamping: three timespecs


class State(enum.IntEnum):
    CONNECTING = 0
    TUNNEL = 1
    HANDSHAKE = 2
    IDLE = 3
    BUSY = 4
    CLOSED = 5


class Connection:
    """``pieces``, ``marks`` and ``kernel`` hold the bytes, our stamps and the kernel's of each read of this request."""

    tls = False
    __slots__ = ("attempt", "due_ns", "fd", "framing", "index", "kept", "kernel", "marks", "opened_ns", "out",
                 "pieces", "planned_ns", "recvmsg", "sent_ns", "size", "sock", "state", "streaming")  # fmt: skip

    def __init__(self, family: int, now_ns: int) -> None:
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # a kernel without stamps: ours are used
            self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE_STAMPS)
        self.fd = self.sock.fileno()
        self.recvmsg = self.sock.recvmsg
        self.state = State.CONNECTING
        self.opened_ns = now_ns
        self.out: bytes | memoryview = b""
        self.clear()

    def clear(self) -> None:
        """Forget the request, ready for another. ``kept`` says that it stood idle before this request."""
        self.kept = False
        self.size = 0
        self.index, self.attempt, self.planned_ns, self.due_ns = -1, 0, 0, 0
        self.sent_ns: int | None = None
        self.pieces: list[bytes] = []
        self.marks = array("q")
        self.kernel: list[bytes] = []
        self.framing = Framing()
        self.streaming = False

    def read(self) -> tuple[bytes, bytes]:
        """(bytes, raw kernel stamp or nothing); empty bytes at the end of the stream. Raises OSError."""
        data, ancillary, _, _ = self.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        return data, ancillary[0][2] if ancillary else b""

    def stale(self) -> bool:
        """Whether the server has closed it while it stood idle, although the loop has not come to that yet."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def seal(self, data: bytes) -> bytes:
        """The bytes as they go over the wire."""
        return data

    def close(self) -> None:
        self.state = State.CLOSED
        self.sock.close()


class TlsConnection(Connection):
    """TLS in memory over the same socket, so that the kernel's stamps are not lost to a wrapper that hides them."""

    tls = True
    __slots__ = ("incoming", "outgoing", "session")

    def __init__(self, family: int, now_ns: int, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(family, now_ns)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_hostname=server_name)

    def handshake(self) -> bool:
        """One step; returns whether it is done. What is to be sent is in ``outgoing``. Raises ssl.SSLError."""
        try:
            self.session.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self) -> tuple[bytes, bytes]:
        data, stamp = super().read()
        if not data:
            self.incoming.write_eof()
            return b"", stamp
        self.incoming.write(data)
        plain = []
        try:
            while piece := self.session.read(READ_BYTES):
                plain.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return b"".join(plain), stamp
        if not plain:
            raise BlockingIOError  # a record that is not whole yet, or one without data
        return b"".join(plain), stamp

    def seal(self, data: bytes) -> bytes:
        self.session.write(data)
        return self.outgoing.read()


def tunnel_answer(raw: bytes) -> str | None:
    """What a proxy said to CONNECT: ``None`` while it is not whole, "" for yes, else why not. Raises FramingError."""
    head = parse_head(raw)
    if head is None:
        return None
    return "" if 200 <= head.status < 300 else f"refused: the proxy answers {head.status}"


def shown(error: BaseException) -> str:
    """An operating system's or TLS library's error, as words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, OSError):
        return str(error.strerror or error).lower()
    return str(error)
