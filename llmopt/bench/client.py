"""The load client: one epoll loop over raw sockets that stamps, appends and sends, and does nothing else.

Each read is one ``recvmsg``: its bytes, the kernel's receive stamp (``SO_TIMESTAMPING``) and our own stamp are appended
to lists, untouched.  Finished requests go to a spool file as they are (``recording``); JSON, tokens and percentiles are
somebody else's work.  Sends follow absolute times: due = start + planned offset, never a sleep after the last one.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import os
import re
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

from llmopt.bench.clock import clock_offset
from llmopt.bench.connection import ANCILLARY_BYTES, READ_BYTES, Connection, State, TlsConnection, shown, tunnel_answer
from llmopt.bench.framing import FramingError
from llmopt.bench.plan import Plan
from llmopt.bench.recording import ClockOffset, Exchange, Spool, Summary

SECOND = 1_000_000_000
TICK_NS = 100_000_000  # time limits, clock offsets and progress are looked at this often
FINE_WAIT_NS = 5_000_000  # epoll waits in whole milliseconds: the last few before a send are waited for with select
BATCH = 64  # ready sockets taken at once
FLUSH_EXCHANGES = 64
# Above this many reads a tick, ready sockets are left to gather for a moment: one wake-up serves several, which leaves the
# processor to the server.  The kernel has stamped them already, so no latency grows by it.  The moment is a small part of
# the time between two chunks of one stream, so that hardly two of them are read as one.
COALESCE_READS = 500
COALESCE_SHARE = 10
COALESCE_NS = (100_000, 1_000_000)
MAX_CONNECTING = 64  # at once while warming up: a listen queue is short
NEVER = 1 << 62
NOW = None  # planned when it is sent
USER_GAP_NS = 200_000
LAST_USER_NS = 250_000_000
SAID_END, SAID_ERROR = re.compile(rb'\[DONE\]|"finish_reason":\s*"'), re.compile(rb'"error":\s*[{"]')
RETRIED_STATUS = (429, 502, 503, 504)
READ, WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT
BUSY = State.BUSY
CR = 13
clock = time.monotonic_ns


class LoadClient:
    """Plays one plan into a spool. ``finished``, ``failed`` and ``active`` count requests, for whoever shows progress.

    ``tick`` is called ten times a second and ends the run by returning a reason.
    """

    def __init__(self, plan: Plan, spool: Spool, *, tick: Callable[[LoadClient], str | None] = lambda _: None) -> None:
        self.plan, self.spool, self.tick = plan, spool, tick
        self.epoll = select.epoll()
        self.context = None
        if plan.tls:
            from llmopt.bench.endpoint import tls_context

            self.context = tls_context()
        self.connections: dict[int, Connection] = {}
        self.idle: list[Connection] = []
        self.backlog: deque[tuple[int, int]] = deque()  # (request, planned) that the cap keeps back
        self.later: list[
            tuple[int, int, int | None, int]
        ] = []  # heap of (due, request, planned, attempt): turns, retries
        self.done: list[tuple[Any, ...]] = []
        self.next_first = self.active = self.finished = self.failed = self.opened = self.wakeups = self.freed = 0
        self.start_ns = self.reads = self.pause_ns = 0
        self.next_due = NEVER
        self.launch_until = NEVER
        self.offsets: list[ClockOffset] = []
        self.never_sent: list[tuple[int, int]] = []
        self.stopped: str | None = None
        self.connect_error: str | None = None

    # --- the run ------------------------------------------------------------------------------------------------

    def run(self, start_ns: int = 0) -> Summary:
        """Play the plan from ``start_ns`` on, or at once when that is over, and write the summary."""
        gc.disable()
        self.offsets.append(clock_offset())
        self.start_ns = max(start_ns, clock())
        cpu = time.process_time()
        if self.stopped is None:
            self.play()
        cpu = time.process_time() - cpu
        self.offsets.append(clock_offset())
        gc.enable()
        gc.unfreeze()
        self.flush()
        self.never_sent += list(self.backlog)  # what was due; what was not yet due when a run ended early is no failure
        summary = Summary(
            self.start_ns, clock(), cpu, self.wakeups, self.opened, self.offsets, self.never_sent, self.stopped
        )
        self.spool.append(summary)
        for connection in self.connections.values():
            connection.close()
        self.epoll.close()
        return summary

    def warm(self) -> None:
        """Open the connections before anything is timed; a server that takes none at all ends the run here."""
        wanted, deadline = self.plan.warm_connections, clock() + self.plan.connect_timeout_ns
        while len(self.idle) < wanted and clock() < deadline:
            connecting = len(self.connections) - len(self.idle)
            if self.connect_error is not None and not connecting:
                break
            while self.connect_error is None and len(self.connections) < wanted and connecting < MAX_CONNECTING:
                self.open()
                connecting += 1
            for fd, mask in self.epoll.poll(0.05):
                self.attend(self.connections[fd], mask)
        if not self.idle:
            self.stopped = self.connect_error or "refused: no connection within the time limit"
        self.connect_error = None
        gc.collect()  # now: between "go" and the start there is no time for it
        gc.freeze()

    def play(self) -> None:
        """The loop. Between any two reads a send that is due goes first."""
        plan = self.plan
        self.launch_until = NEVER if plan.duration_ns is None else self.start_ns + plan.duration_ns
        next_tick = self.start_ns
        if plan.offsets_ns is None:
            self.wait_for(self.start_ns)
            self.let_users_in()
        self.plan_next()
        while not self.over():
            now = clock()
            if now >= self.next_due:
                self.launch_due()
            if now >= next_tick:
                next_tick = now + TICK_NS
                self.look_around(now)
                self.set_pause()
                continue
            wake = min(self.next_due, next_tick)
            if self.done:
                events = self.epoll.poll(0, BATCH)
                if not events or len(self.done) >= FLUSH_EXCHANGES:
                    self.flush()
            else:
                events = self.wait(wake - now)
            self.wakeups += 1
            self.take(events)
            self.coalesce(len(events))

    def coalesce(self, reads: int) -> None:
        """Let ready sockets gather, where many come and nothing is due."""
        self.reads += reads
        pause = self.pause_ns
        if pause and 0 < reads < BATCH and self.next_due - clock() > pause:
            time.sleep(pause / SECOND)

    def set_pause(self) -> None:
        """How long sockets may gather, by the reads of the last tick."""
        reads, self.reads = self.reads, 0
        shortest, longest = COALESCE_NS
        gap = TICK_NS * self.active // max(1, reads)
        self.pause_ns = max(shortest, min(longest, gap // COALESCE_SHARE)) if reads > COALESCE_READS else 0

    def let_users_in(self) -> None:
        """The users of a closed loop come one after another. All at once, they would measure the length of their own
        queue at the server's door, and march in step ever after.
        """
        users = min(self.plan.users, len(self.plan.first))
        gap = min(USER_GAP_NS, LAST_USER_NS // max(1, users))
        for number in range(users):
            self.active += 1
            self.later.append((self.start_ns + number * gap, self.plan.first[number], NOW, 0))
        self.next_first = users

    def enough(self) -> None:
        """Start nothing new; what is under way is awaited."""
        self.launch_until = clock()
        self.backlog.clear()
        self.plan_next()

    def over(self) -> bool:
        if self.stopped is not None:
            self.abandon()
            return True
        if self.active or self.backlog or self.later:
            return False
        return self.next_due == NEVER if self.plan.offsets_ns is not None else True

    def wait(self, nanoseconds: int) -> list[tuple[int, int]]:
        """Ready sockets, or nothing once the time is over, to some 0.1 ms."""
        if nanoseconds <= 0:
            return self.epoll.poll(0, BATCH)
        if nanoseconds < FINE_WAIT_NS:
            select.select((self.epoll,), (), (), nanoseconds / SECOND)
            return self.epoll.poll(0, BATCH)
        return self.epoll.poll((nanoseconds - FINE_WAIT_NS // 2) / SECOND, BATCH)

    def wait_for(self, moment_ns: int) -> None:
        while (left := moment_ns - clock()) > 0:
            time.sleep(left / SECOND)

    def take(self, events: list[tuple[int, int]]) -> None:
        """The hot path."""
        connections = self.connections
        for fd, mask in events:
            c = connections.get(fd)
            if c is None:
                continue
            if c.state is not BUSY or mask & WRITE or c.tls:
                self.attend(c, mask)
                continue
            try:
                data, ancillary, _, _ = c.recvmsg(READ_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                self.lost(c, f"reset: {shown(error)}")
                continue
            now = clock()
            if data:
                c.pieces.append(data)
                c.marks.append(now)
                c.kernel.append(ancillary[0][2] if ancillary else b"")
                # In an event stream over chunks only a read that ends like this can end the response.
                if not c.streaming or len(data) < 8 or data[-4] == CR:
                    self.progress(c, data, now)
            else:
                self.server_closed(c)
            if now >= self.next_due:
                self.launch_due()

    def attend(self, c: Connection, mask: int) -> None:
        """Everything but a plain read of a running answer: connecting, TLS, unsent bytes, idle connections."""
        try:
            if c.state is State.CONNECTING:
                self.connected(c)
            elif c.state is State.TUNNEL or c.state is State.HANDSHAKE:
                self.negotiate(c)
            elif c.state is State.IDLE:
                if c.tls:
                    c.read()  # raises BlockingIOError for a session ticket: nothing was said, the connection stays
                self.drop(c)  # the server has closed it, or said something that nobody asked for
            else:
                if mask & WRITE:
                    self.write_rest(c)
                if mask & ~WRITE:
                    self.read_sealed(c)
        except BlockingIOError:
            pass
        except FramingError as error:
            self.lost(c, f"bad_stream: {error}")
        except OSError as error:
            self.lost(c, f"{'reset' if c.state is BUSY else 'refused'}: {shown(error)}")

    def read_sealed(self, c: Connection) -> None:
        data, stamp = c.read()
        now = clock()
        if not data:
            self.server_closed(c)
            return
        c.pieces.append(data)
        c.marks.append(now)
        c.kernel.append(stamp)
        self.progress(c, data, now)

    def progress(self, c: Connection, data: bytes, now: int) -> None:
        """Ask the framing whether this read ended the response."""
        framing = c.framing
        try:
            if framing.head is None:
                ended = framing.start(c.pieces)
                c.streaming = framing.events
            else:
                ended = framing.ended(data, c.pieces)
        except FramingError as error:
            self.finish(c, now, f"bad_stream: {error}", close=True)
            return
        if ended:
            assert framing.head is not None
            early = len(c.out) > 0  # the answer came before all of the request had gone out: the rest is in the way
            self.finish(c, now, None, close=early or not framing.head.keeps_open)

    def server_closed(self, c: Connection) -> None:
        """The server's FIN; a response without a length ends like this, any other is cut, as the reader will find."""
        if not c.pieces:
            self.lost(c, "reset: the server closed the connection without an answer")
            return
        self.finish(c, clock(), None, close=True, server_closed=True)

    # --- sending ------------------------------------------------------------------------------------------------

    def plan_next(self) -> None:
        """When the next send is due: of the schedule, or of a turn or a retry that comes later."""
        plan, due = self.plan, NEVER
        if plan.offsets_ns is not None and self.next_first < len(plan.first):
            due = self.start_ns + plan.offsets_ns[self.next_first]
            if due >= self.launch_until:
                due = NEVER
        if self.later and self.later[0][0] < due:
            due = self.later[0][0]
        self.next_due = due

    def launch_due(self) -> None:
        """Send, or put behind the cap, everything whose time has come."""
        plan = self.plan
        while (now := clock()) >= self.next_due:
            if self.later and self.later[0][0] <= self.next_due:
                due, index, planned, attempt = heapq.heappop(self.later)
                self.launch(index, now if planned is NOW else planned, now if planned is NOW else due, attempt)
            else:
                index, planned = plan.first[self.next_first], self.next_due
                self.next_first += 1
                if plan.users and self.active >= plan.users:
                    self.backlog.append((index, planned))
                else:
                    self.active += 1
                    self.launch(index, planned, planned, 0)
            self.plan_next()

    def next_conversation(self, now: int) -> None:
        """A slot of a closed loop has become free now, or one under the cap."""
        if self.backlog:
            index, planned = self.backlog.popleft()
        elif self.plan.offsets_ns is None and self.next_first < len(self.plan.first) and now < self.launch_until:
            index, planned = self.plan.first[self.next_first], now
            self.next_first += 1
        else:
            return
        self.active += 1
        self.launch(index, planned, now, 0)

    def launch(self, index: int, planned: int, due: int, attempt: int, *, fresh: bool = False) -> None:
        """Send on an idle connection, the one used last first, or on a new one as soon as it stands.

        ``due`` is when nothing but ourselves stood in the way any more: ``planned``, or the moment the cap let it go.
        """
        c = self.idle.pop() if self.idle and not fresh else self.open()
        if c is None:
            self.settle(index, planned, attempt, self.connect_error or "refused", None)
            return
        c.index, c.planned_ns, c.due_ns, c.attempt = index, planned, due, attempt
        if c.state is State.IDLE:
            self.send(c)

    def send(self, c: Connection) -> None:
        c.state = BUSY
        c.uses += 1
        data = self.plan.requests[c.index]
        if c.tls:
            data = c.seal(data)
        c.sent_ns = clock()
        try:
            sent = c.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lost(c, f"reset: {shown(error)}")
            return
        if sent < len(data):
            c.out = memoryview(data)[sent:]
            self.epoll.modify(c.fd, READ | WRITE)

    def write_rest(self, c: Connection) -> None:
        if len(c.out):
            c.out = c.out[c.sock.send(c.out) :]
        if not len(c.out):
            self.epoll.modify(c.fd, READ)

    # --- connections --------------------------------------------------------------------------------------------

    def open(self) -> Connection | None:
        """A new connection, under way; ``None`` where the system gives none (``connect_error`` says why)."""
        plan, now = self.plan, clock()
        try:
            if self.context is not None:
                c: Connection = TlsConnection(plan.family, now, self.context, plan.server_name)
            else:
                c = Connection(plan.family, now)
        except OSError as error:
            self.connect_error = f"refused: {shown(error)}"
            return None
        self.opened += 1
        with contextlib.suppress(BlockingIOError):
            try:
                c.sock.connect(tuple(plan.address))
            except BlockingIOError:
                pass
            except OSError as error:
                self.connect_error = f"refused: {shown(error)}"
                c.close()
                return None
        self.connections[c.fd] = c
        self.epoll.register(c.fd, READ | WRITE)
        return c

    def connected(self, c: Connection) -> None:
        """Raises OSError when the attempt failed."""
        if code := c.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
        c.connected_ns = clock()
        if self.plan.tunnel:
            c.state = State.TUNNEL
            c.out = self.plan.tunnel
            self.write_rest(c)
        elif c.tls:
            c.state = State.HANDSHAKE
            self.negotiate(c, first=True)
        else:
            self.ready(c)

    def negotiate(self, c: Connection, *, first: bool = False) -> None:
        """The proxy's answer to CONNECT, then TLS. Raises OSError (also ssl.SSLError) and FramingError."""
        if len(c.out):
            self.write_rest(c)
            return
        if c.state is State.TUNNEL:
            c.pieces.append(c.recvmsg(READ_BYTES)[0])
            answer = tunnel_answer(b"".join(c.pieces))
            if answer is None and c.pieces[-1]:
                return
            if answer or answer is None:
                raise OSError(answer or "the proxy closed the connection")
            c.pieces, c.state, first = [], State.HANDSHAKE, True
        assert isinstance(c, TlsConnection)
        if not first:
            data = c.recvmsg(READ_BYTES)[0]
            c.incoming.write(data) if data else c.incoming.write_eof()
        done = c.handshake()
        c.out = c.outgoing.read()
        self.write_rest(c) if len(c.out) else self.epoll.modify(c.fd, READ)
        if done:
            self.ready(c)

    def ready(self, c: Connection) -> None:
        c.connected_ns = c.connected_ns or clock()
        if not len(c.out):
            self.epoll.modify(c.fd, READ)
        if c.index >= 0:
            self.send(c)
        else:
            c.state = State.IDLE
            self.idle.append(c)

    def drop(self, c: Connection) -> None:
        """Close a connection; closing takes it out of the epoll set."""
        if c.state is State.IDLE:
            self.idle.remove(c)
        self.connections.pop(c.fd, None)
        c.close()

    # --- the end of a request -----------------------------------------------------------------------------------

    def lost(self, c: Connection, error: str) -> None:
        """A connection broke. On a kept one, before any byte of an answer, that is HTTP's own race (RFC 9112, 9.3.1):

        the server was just closing it.  The request goes out once more on a fresh one, its time running all along.
        """
        if c.state is not BUSY and c.index < 0:
            self.connect_error = error
            self.drop(c)
            return
        if c.state is BUSY and c.uses > 1 and not c.pieces:
            index, planned, due, attempt = c.index, c.planned_ns, c.due_ns, c.attempt
            self.drop(c)
            self.launch(index, planned, due, attempt, fresh=True)
            return
        self.finish(c, clock(), error, close=True)

    def finish(self, c: Connection, now: int, error: str | None, *, close: bool, server_closed: bool = False) -> None:
        """Record the attempt, free the connection, and go on with whatever follows."""
        index, planned, attempt, head, pieces = c.index, c.planned_ns, c.attempt, c.framing.head, c.pieces
        self.done.append(
            (index, attempt, planned, c.due_ns, c.connected_ns if c.uses <= 1 else None, c.sent_ns, now, error, server_closed,
             c.marks, c.kernel, c.pieces)
        )  # fmt: skip
        if close:
            self.drop(c)
        else:
            c.clear()
            c.state = State.IDLE
            self.idle.append(c)
        status = head.status if head is not None else None
        streamed = head is not None and status == 200 and "json" not in head.headers.get("content-type", "")
        if streamed and error is None and self.plan.follower and not answered(pieces):
            error = "cut: a turn without its end"
        retry_after = head.headers.get("retry-after") if head is not None else None
        self.settle(
            index,
            planned,
            attempt,
            error or (None if streamed else f"status {status}"),
            status,
            retry_after,
            recorded=True,
        )

    def settle(
        self, index: int, planned: int, attempt: int, error: str | None, status: int | None,
        retry_after: str | None = None, *, recorded: bool = False,
    ) -> None:  # fmt: skip
        """One attempt is over: retry it, or count it and let the next turn, or the next user, have the slot."""
        now = clock()
        if not recorded:
            self.done.append((index, attempt, planned, planned, None, None, now, error, False, [], [], []))
        if (
            error is not None
            and attempt < self.plan.retries
            and (status in RETRIED_STATUS or error.startswith(("refused", "reset")))
        ):
            delay = min(retry_delay_ns(retry_after, attempt), self.plan.request_timeout_ns)
            heapq.heappush(self.later, (now + delay, index, planned, attempt + 1))
            self.plan_next()
            return
        self.finished += 1
        self.failed += error is not None
        if self.failed == self.finished and 0 < self.plan.give_up_after <= self.failed:
            self.stopped = self.stopped or "every request failed"
        follower = self.plan.follower[index] if self.plan.follower else -1
        if follower >= 0 and error is None:
            due = now + self.plan.think_ns
            if self.plan.think_ns:
                heapq.heappush(self.later, (due, follower, due, 0))
                self.plan_next()
            else:
                self.launch(follower, due, due, 0)
            return
        while follower >= 0:  # the turns of a conversation that broke are never sent
            self.never_sent.append((follower, now))
            follower = self.plan.follower[follower]
        self.active -= 1
        self.freed += 1
        if self.freed > 1:
            return  # a launch failed at once, inside the loop below: it goes on there, and not in a recursion
        while self.freed:
            if self.stopped is None:
                self.next_conversation(clock())
            self.freed -= 1

    # --- ten times a second -------------------------------------------------------------------------------------

    def look_around(self, now: int) -> None:
        """Time limits, clock offset, progress; every wait in here has a bound."""
        plan = self.plan
        if now - self.offsets[-1].at_ns >= SECOND:
            self.offsets.append(clock_offset())
        for c in list(self.connections.values()):
            if c.state is BUSY:
                assert c.sent_ns is not None
                if now - c.sent_ns > plan.request_timeout_ns:
                    self.finish(c, now, f"timeout: no end within {plan.request_timeout_ns / SECOND:g} s", close=True)
                elif c.marks and now - c.marks[-1] > plan.stall_timeout_ns:
                    self.finish(c, now, f"stalled: no byte for {plan.stall_timeout_ns / SECOND:g} s", close=True)
                elif len(c.pieces) > 64 and sum(map(len, c.pieces)) > plan.max_response_bytes:
                    limit = f"{plan.max_response_bytes >> 20} MiB"
                    self.finish(c, now, f"bad_stream: the response is longer than {limit}", close=True)
            elif c.state < State.IDLE and now - c.opened_ns > plan.connect_timeout_ns:
                self.lost(c, f"refused: no connection within {plan.connect_timeout_ns / SECOND:g} s")
        while self.backlog and now - self.backlog[0][1] > plan.request_timeout_ns:
            self.never_sent.append(self.backlog.popleft())
        self.spool.file.flush()
        self.stopped = self.stopped or self.tick(self)

    def abandon(self) -> None:
        """The run was stopped: what is under way is recorded as far as it came."""
        now = clock()
        for c in list(self.connections.values()):
            if c.index >= 0:
                self.done.append(
                    (c.index, c.attempt, c.planned_ns, c.due_ns, c.connected_ns, c.sent_ns, now, "stopped: the run was ended", False,
                     c.marks, c.kernel, c.pieces)
                )  # fmt: skip

    def flush(self) -> None:
        """Write what has finished to the spool."""
        for (
            index,
            attempt,
            planned,
            due,
            connected,
            sent,
            closed,
            error,
            server_closed,
            marks,
            kernel,
            pieces,
        ) in self.done:
            stamps = b"".join(kernel)
            whole = len(stamps) == 48 * len(kernel)
            self.spool.append(
                Exchange(
                    index=index, attempt=attempt, planned_ns=planned, due_ns=due, connected_ns=connected,
                    sent_ns=sent, closed_ns=closed, error=error, server_closed=server_closed,
                    user_ns=array("q", marks).tobytes(), kernel=stamps if whole else b"",
                    sizes=array("I", map(len, pieces)).tobytes(), raw=b"".join(pieces),
                )
            )  # fmt: skip
        self.done.clear()


def answered(pieces: list[bytes]) -> bool:
    """Whether a stream says that it is whole: the next turn hangs on it. A look at its bytes; the reader parses them."""
    raw = b"".join(pieces)
    return SAID_END.search(raw) is not None and SAID_ERROR.search(raw) is None


def retry_delay_ns(retry_after: str | None, attempt: int) -> int:
    """What the server asked for in whole seconds, else 0.1 s doubled with every attempt."""
    if retry_after is not None and len(retry_after) < 10 and retry_after.isascii() and retry_after.isdigit():
        return int(retry_after) * SECOND
    return SECOND // 10 << min(attempt, 10)
