"""The loop of the scripted server: raw sockets, one heap of due times, and nothing else to do than wait, stamp and send.

What is sent was rendered before (a ``Plan``); which plan answers a request is said by the ``answer`` function that the
loop is given.  One core writes 100 streams of one chunk per ms, each in a send of its own.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import resource
import select
import socket
import ssl
import struct
import time
from array import array
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

# Run by its path, the server is a script beside its parts; imported, a module of the package.
# isort: off
# fmt: off
if TYPE_CHECKING or __package__:
    from llmopt.serve.shims.scripted_answer import Plan, error, reply
    from llmopt.serve.shims.scripted_http import Message, MessageError, read_message
else:
    from scripted_answer import Plan, error, reply
    from scripted_http import Message, MessageError, read_message
# fmt: on
# isort: on

BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
NOTHING = reply("200 OK", None)
READ_BYTES = 1 << 18
WRITES_PER_LOOK = 16  # then the sockets are looked at, however late the writes are
READS_PER_LOOK = 4  # a request costs 50 µs: no burst of them may hold up the writes


class Request:
    """One request and what became of it."""

    __slots__ = (
        "base_ns", "blocked", "connection", "ended", "finished_ns", "joined", "model", "number",
        "plan", "position", "received_ns", "request_id", "send", "stamps_ns", "start_ns", "stream", "timing", "trap",
    )  # fmt: skip

    def __init__(self, number: int, connection: Connection, message: Message) -> None:
        self.number, self.connection, self.send = number, connection, connection.socket.send
        self.request_id, self.received_ns = message.headers.get("x-request-id"), message.received_ns
        self.plan = NOTHING
        self.model, self.stream, self.trap = "", False, "none"
        self.start_ns: int | None = None
        self.finished_ns: int | None = None
        self.ended: str | None = None
        self.base_ns = self.position = self.blocked = self.joined = 0
        self.stamps_ns = array("q")

    def follow(self, plan: Plan) -> None:
        self.plan, self.timing = plan, plan.timing

    def all_said(self) -> bool:
        """Whether nothing is left but to close an idle connection."""
        return self.position > 0 and self.plan.then != "hang" and not any(self.plan.data[self.position :])

    def lags_ns(self) -> list[int]:
        start_ns = self.start_ns or 0
        return [at - start_ns - self.timing.due_ns(n) for n, at in enumerate(self.stamps_ns)]

    def truth(self) -> dict[str, Any]:
        timing = self.timing
        chunk_tokens = [timing.tokens(n) for n in range(len(self.stamps_ns))]
        due_ns = self.start_ns + timing.due_ns(0) if self.start_ns is not None and timing.token_counts else None
        return {
            "request_id": self.request_id,
            "model": self.model,
            "stream": self.stream,
            "trap": self.trap,
            "connection": self.connection.number,
            "prompt_tokens": timing.prompt_tokens,
            "received_ns": self.received_ns,
            "start_ns": self.start_ns,
            "first_token_due_ns": due_ns,
            "token_ns": self.stamps_ns.tolist(),
            "chunk_tokens": chunk_tokens,
            "tokens": sum(chunk_tokens),
            "max_write_lag_ns": max(self.lags_ns(), default=None),
            "joined_chunks": self.joined,  # sent together because they were more than a token late
            "blocked_chunks": self.blocked,  # stamped when they were due, sent when the client had read
            "ended": self.ended,
            "finished_ns": self.finished_ns,
        }


class Connection:
    """One socket with its two buffers, the request that is answered and those behind it."""

    __slots__ = ("answered", "closing", "inbuf", "number", "outbuf", "pending", "socket")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number, self.socket = number, sock
        self.inbuf, self.outbuf = bytearray(), bytearray()
        self.answered: Request | None = None
        self.pending: deque[Request] = deque()
        self.closing = False


class Loop:
    """Serves ``listener`` for ever; ``answer`` is asked for the plan of each request when it has come whole."""

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Request, Message], Plan],
        *,
        slots: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.listener, self.answer, self.free, self.tls = listener, answer, slots, tls
        self.heap: list[tuple[int, int, Request]] = []
        self.queue: deque[Request] = deque()
        self.connections: dict[int, Connection] = {}
        self.request_numbers, self.connection_numbers = count(), count()
        self.epoll = select.epoll()
        self.epoll.register(listener.fileno(), select.EPOLLIN)

    def run(self) -> None:
        while True:
            self.write_what_is_due()
            wait_s = (self.heap[0][0] - time.monotonic_ns()) / 1e9 if self.heap else None
            if wait_s is None or wait_s > 0:  # epoll waits whole milliseconds, select on it microseconds
                ready, _, _ = select.select([self.epoll], [], [], wait_s)
                if not ready:
                    continue
            for descriptor, events in self.epoll.poll(0, READS_PER_LOOK):
                self.look(descriptor, events)

    def write_what_is_due(self) -> None:
        """The hot path: at most WRITES_PER_LOOK sends, in the order of their due times."""
        heap, clock = self.heap, time.monotonic_ns
        for _ in range(WRITES_PER_LOOK):
            if not heap:
                return
            due_ns, number, request = heap[0]
            if request.ended is not None:
                heapq.heappop(heap)
                continue
            now_ns = clock()
            if now_ns < due_ns:
                return
            plan, position = request.plan, request.position
            data = plan.data[position]
            if now_ns - due_ns >= plan.late_ns:
                data = self.catch_up(request, now_ns)
                position = request.position
            elif plan.tokens[position]:
                request.stamps_ns.append(now_ns)
            if request.connection.outbuf:
                self.keep(request, data)
            else:
                try:
                    sent = request.send(data)
                except BLOCKED:
                    self.keep(request, data)
                except OSError:
                    self.gone(request.connection)
                    continue
                else:
                    if sent != len(data):
                        self.keep(request, data[sent:])
            request.position = position = position + 1
            if position < len(plan.offsets_ns):
                heapq.heapreplace(heap, (request.base_ns + plan.offsets_ns[position], number, request))
            elif plan.loop_from is not None:
                request.position, request.base_ns = plan.loop_from, request.base_ns + plan.timing.period_ns
                heapq.heapreplace(heap, (request.base_ns + plan.offsets_ns[plan.loop_from], number, request))
            else:
                heapq.heappop(heap)
                self.finish(request)

    def catch_up(self, request: Request, now_ns: int) -> bytes:
        """More than one token late: all that is due by now, in one send."""
        plan, first = request.plan, request.position
        last = first
        while last + 1 < len(plan.data) and request.base_ns + plan.offsets_ns[last + 1] <= now_ns:
            last += 1
        carrying = sum(1 for tokens in plan.tokens[first : last + 1] if tokens)
        request.stamps_ns.extend([now_ns] * carrying)
        request.joined += carrying if carrying > 1 else 0
        request.position = last
        return b"".join(plan.data[first : last + 1])

    def look(self, descriptor: int, events: int) -> None:
        if descriptor == self.listener.fileno():
            self.accept()
        elif connection := self.connections.get(descriptor):
            if events & select.EPOLLOUT:
                self.flush(connection)
            if events & ~select.EPOLLOUT:
                self.read(connection)

    # Sockets

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self.listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            self.connections[sock.fileno()] = Connection(next(self.connection_numbers), sock)
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def read(self, connection: Connection) -> None:
        """Take what has come, and every request that is now complete."""
        try:
            data = connection.socket.recv(READ_BYTES)
            received_ns = time.monotonic_ns()
        except BLOCKED:
            return
        except OSError:
            data = b""
        if not data:
            self.gone(connection)
            return
        if not connection.closing:
            connection.inbuf += data
            self.take_requests(connection, received_ns)
        if self.tls and isinstance(connection.socket, ssl.SSLSocket) and connection.socket.fileno() >= 0:
            self.read(connection)  # what TLS has already taken from the socket wakes no epoll

    def take_requests(self, connection: Connection, received_ns: int) -> None:
        try:
            while message := read_message(connection.inbuf, received_ns):
                if message.wants_continue:
                    connection.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                    break
                request = Request(next(self.request_numbers), connection, message)
                request.follow(self.answer(request, message))
                connection.pending.append(request)
        except MessageError as problem:
            connection.inbuf.clear()
            nothing = Message(method="", target="", headers={}, body=b"", received_ns=received_ns)
            request = Request(next(self.request_numbers), connection, nothing)
            request.follow(reply("400 Bad Request", error(str(problem), 400), close=True))
            connection.pending.append(request)
        self.answer_next(connection)

    def keep(self, request: Request, data: bytes) -> None:
        """The client reads too slowly: the rest goes when its socket can take it."""
        connection = request.connection
        if not connection.outbuf:
            self.epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        connection.outbuf += data
        request.blocked += 1

    def flush(self, connection: Connection) -> None:
        try:
            del connection.outbuf[: connection.socket.send(connection.outbuf)]
        except BLOCKED:
            return
        except OSError:
            self.gone(connection)
            return
        if not connection.outbuf:
            self.epoll.modify(connection.socket.fileno(), select.EPOLLIN)
            if connection.closing:
                self.gone(connection, "dropped")

    def gone(self, connection: Connection, how: str = "client_gone") -> None:
        """The connection is over; whatever was still asked on it ends unanswered."""
        self.connections.pop(connection.socket.fileno(), None)
        connection.socket.close()
        for request in (connection.answered, *connection.pending):
            if request is not None:
                self.end(request, request.plan.ended if request.all_said() else how)

    # Requests and slots

    def answer_next(self, connection: Connection) -> None:
        if connection.answered is None and connection.pending and not connection.closing:
            request = connection.answered = connection.pending.popleft()
            if not request.plan.needs_slot:
                self.start(request)
            else:
                self.queue.append(request)
                self.fill_slots()

    def fill_slots(self) -> None:
        while self.free and self.queue:
            request = self.queue.popleft()
            if request.ended is None:
                self.free -= 1
                self.start(request)

    def start(self, request: Request) -> None:
        request.start_ns = request.base_ns = time.monotonic_ns()
        heapq.heappush(self.heap, (request.base_ns + request.plan.offsets_ns[0], request.number, request))

    def finish(self, request: Request) -> None:
        """All is written: what happens to the connection is the last part of the script."""
        plan, connection = request.plan, request.connection
        if plan.then == "hang":
            return
        connection.answered = None
        self.end(request, plan.ended)
        if plan.then == "reset":
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.gone(connection, "dropped")
        elif plan.then == "close":
            connection.closing = True
            if not connection.outbuf:
                self.gone(connection, "dropped")
        else:
            self.answer_next(connection)

    def end(self, request: Request, how: str) -> None:
        if request.ended is not None:
            return
        request.ended, request.finished_ns = how, time.monotonic_ns()
        had_slot = request.start_ns is not None and request.plan.needs_slot
        request.plan = NOTHING  # the log keeps the timing, not the bytes
        if had_slot:
            self.free += 1
            self.fill_slots()


def be_precise() -> None:
    """No pause for garbage, timers that wake at once, and a socket for every stream."""
    gc.collect()
    gc.freeze()
    gc.disable()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK, 1 ns: the kernel's own is 50 µs
