"""The connections of a load client: opened ahead, through a tunnel or TLS where need be, used again, last used first."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable

from llmopt.bench.connection import READ_BYTES, Connection, State, TlsConnection, shown, tunnel_answer
from llmopt.bench.plan import Plan

READ, WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT
MAX_CONNECTING = 64  # at once while warming up: a listen queue is short
clock = time.monotonic_ns


class Pool:
    """``on_ready`` gets a connection that stands and has a request waiting; ``error`` says why one could not be opened."""

    def __init__(self, plan: Plan, on_ready: Callable[[Connection], None]) -> None:
        self.plan, self.on_ready = plan, on_ready
        self.epoll = select.epoll()
        self.all: dict[int, Connection] = {}
        self.idle: list[Connection] = []
        self.opened = 0
        self.error: str | None = None
        self.context = None
        if plan.tls:
            from llmopt.bench.endpoint import tls_context

            self.context = tls_context()

    def warm(self, attend: Callable[[Connection, int], None]) -> str | None:
        """Open ``plan.warm_connections``; returns why not, when the server takes none at all."""
        wanted, deadline = self.plan.warm_connections, clock() + self.plan.connect_timeout_ns
        while len(self.idle) < wanted and clock() < deadline:
            connecting = len(self.all) - len(self.idle)
            if self.error is not None and not connecting:
                break
            while self.error is None and len(self.all) < wanted and connecting < MAX_CONNECTING:
                self.open()
                connecting += 1
            for fd, mask in self.epoll.poll(0.05):
                if (c := self.all.get(fd)) is not None:
                    attend(c, mask)
        error, self.error = self.error, None
        return None if self.idle else error or "refused: no connection within the time limit"

    def take(self) -> Connection | None:
        """An idle connection, or a new one that is under way; ``None`` where the system gives none."""
        while self.idle:
            c = self.idle[-1]
            if c.stale():
                self.drop(c)
                continue
            self.idle.pop()
            c.kept = True
            return c
        return self.open()

    def open(self) -> Connection | None:
        plan, now = self.plan, clock()
        try:
            if self.context is not None:
                c: Connection = TlsConnection(plan.family, now, self.context, plan.server_name)
            else:
                c = Connection(plan.family, now)
        except OSError as error:
            self.error = f"refused: {shown(error)}"
            return None
        self.opened += 1
        try:
            c.sock.connect(tuple(plan.address))
        except BlockingIOError:
            pass
        except OSError as error:
            self.error = f"refused: {shown(error)}"
            c.close()
            return None
        self.all[c.fd] = c
        self.epoll.register(c.fd, READ | WRITE)
        return c

    def establish(self, c: Connection) -> None:
        """The next step of a connection that does not stand yet. Raises OSError (also ssl.SSLError) and FramingError."""
        if c.state is State.CONNECTING:
            self.connected(c)
        elif len(c.out):
            self.write_rest(c)
        elif c.state is State.TUNNEL:
            self.tunnel(c)
        else:
            assert isinstance(c, TlsConnection)
            data = c.recvmsg(READ_BYTES)[0]
            c.incoming.write(data) if data else c.incoming.write_eof()
            self.shake_hands(c)

    def connected(self, c: Connection) -> None:
        if code := c.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        if self.plan.tunnel:
            c.state, c.out = State.TUNNEL, self.plan.tunnel
            self.write_rest(c)
        elif c.tls:
            self.shake_hands(c)
        else:
            self.stands(c)

    def tunnel(self, c: Connection) -> None:
        """The proxy's answer to CONNECT."""
        c.pieces.append(c.recvmsg(READ_BYTES)[0])
        answer = tunnel_answer(b"".join(c.pieces))
        if answer is None and c.pieces[-1]:
            return
        if answer or answer is None:
            raise OSError(answer or "the proxy closed the connection")
        c.pieces = []
        self.shake_hands(c)

    def shake_hands(self, c: Connection) -> None:
        assert isinstance(c, TlsConnection)
        c.state = State.HANDSHAKE
        done = c.handshake()
        c.out = c.outgoing.read()
        if len(c.out):
            self.write_rest(c)
        else:
            self.epoll.modify(c.fd, READ)
        if done:
            self.stands(c)

    def stands(self, c: Connection) -> None:
        if not len(c.out):
            self.epoll.modify(c.fd, READ)
        if c.index >= 0:
            self.on_ready(c)
        else:
            self.free(c)

    def write(self, c: Connection, data: bytes) -> None:
        """Send what the socket takes now, and the rest as it takes it. Raises OSError."""
        try:
            sent = c.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            c.out = memoryview(data)[sent:]
            self.epoll.modify(c.fd, READ | WRITE)

    def write_rest(self, c: Connection) -> None:
        if len(c.out):
            c.out = c.out[c.sock.send(c.out) :]
        if not len(c.out):
            self.epoll.modify(c.fd, READ)

    def free(self, c: Connection) -> None:
        c.state = State.IDLE
        self.idle.append(c)

    def drop(self, c: Connection) -> None:
        """Close a connection; closing takes it out of the epoll set."""
        if c.state is State.IDLE:
            self.idle.remove(c)
        self.all.pop(c.fd, None)
        c.close()

    def close(self) -> None:
        for c in self.all.values():
            c.close()
        self.epoll.close()
