"""The load client: one epoll loop over raw sockets that stamps, appends and sends, and does nothing else.

Each read is one ``recvmsg``: its bytes, the kernel's receive stamp (``SO_TIMESTAMPING``) and our own stamp are appended
to lists, untouched.  Finished requests go to a spool file as they are (``recording``); JSON, tokens and percentiles are
somebody else's work.  Sends follow absolute times: due = start + planned offset, never a sleep after the last one.

One class of 450 lines, because reading, sending and what follows an answer share the state of one loop and call each
other between any two reads; connections, framing, packing and the process around it live in modules of their own.
"""

from __future__ import annotations

import gc
import heapq
import re
import select
import time
from collections import deque
from collections.abc import Callable

from llmopt.bench.clock import clock_offset
from llmopt.bench.connection import ANCILLARY_BYTES, READ_BYTES, Connection, State, shown
from llmopt.bench.framing import FramingError, Head
from llmopt.bench.plan import Plan
from llmopt.bench.pool import WRITE, Pool
from llmopt.bench.recording import ClockOffset, Finished, Spool, Summary
from llmopt.bench.waits import Waits

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
NEVER = 1 << 62
NOW = None  # planned when it is sent
USER_GAP_NS = 200_000
LAST_USER_NS = 250_000_000
RACE_NS, UNREAD_NS = 10_000_000, SECOND
SAID_END, SAID_ERROR = re.compile(rb'\[DONE\]|"finish_reason":\s*"'), re.compile(rb'"error":\s*[{"]')
RETRIED_STATUS = (429, 502, 503, 504)
BUSY = State.BUSY
CR = 13
clock = time.monotonic_ns


class LoadClient:
    """Plays one plan into a spool. ``finished``, ``failed`` and ``active`` count requests, for whoever shows progress.

    ``tick`` is called ten times a second and ends the run by returning a reason.
    """

    def __init__(self, plan: Plan, spool: Spool, *, tick: Callable[[LoadClient], str | None] = lambda _: None) -> None:
        self.plan, self.spool, self.tick = plan, spool, tick
        self.pool = Pool(plan, self.send)
        self.open_loop = plan.offsets_ns is not None
        self.backlog: deque[tuple[int, int, int]] = deque()  # (request, planned, attempt) that the cap keeps back
        self.later: list[
            tuple[int, int, int | None, int]
        ] = []  # heap of (due, request, planned, attempt): turns, retries
        self.done: list[Finished] = []
        self.next_first = self.active = self.finished = self.failed = self.freed = 0
        self.start_ns = self.reads = self.pause_ns = 0
        self.next_due = self.launch_until = NEVER
        self.offsets: list[ClockOffset] = []
        self.never_sent: list[tuple[int, int]] = []
        self.stopped: str | None = None
        self.waits = Waits()

    # --- the run ------------------------------------------------------------------------------------------------

    def warm(self) -> None:
        """Open the connections before anything is timed; a server that takes none at all ends the run here."""
        self.stopped = self.pool.warm(self.attend)
        gc.collect()  # now: between "go" and the start there is no time for it
        gc.freeze()

    def run(self, start_ns: int = 0, *, first: bool = False) -> Summary:
        """Play the plan from ``start_ns`` on, or at once when that is over, and write the summary.

        ``first``: whether this process was given real-time priority; for the record.
        """
        gc.disable()
        self.offsets.append(clock_offset())
        self.start_ns = max(start_ns, clock())
        cpu = time.process_time()
        if self.stopped is None:
            self.waits.look()
            self.play()
            self.waits.look()  # also at the end of a run that was shorter than a tick
        cpu = time.process_time() - cpu
        self.offsets.append(clock_offset())
        gc.enable()
        gc.unfreeze()
        self.flush()
        while self.backlog:  # due when the run was ended; what was not yet due is no failure
            self.drop_waiting()
        summary = Summary(
            self.start_ns, clock(), cpu, self.pool.opened, self.offsets, self.never_sent, self.stopped,
            self.waits.long_ns, first,
        )  # fmt: skip
        self.spool.append(summary)
        self.pool.close()
        return summary

    def play(self) -> None:
        """The loop. Between any two reads a send that is due goes first."""
        plan = self.plan
        self.launch_until = NEVER if plan.duration_ns is None else self.start_ns + plan.duration_ns
        next_tick = self.start_ns
        if not self.open_loop:
            self.let_users_in()
        self.plan_next()
        while not self.over():
            now = clock()
            if now >= self.next_due:
                self.launch_due()
            if now >= next_tick:
                next_tick = now + TICK_NS
                self.waits.look()
                self.look_around(now)
                self.set_pause()
                continue
            if self.done:
                events = self.pool.epoll.poll(0, BATCH)
                if not events or len(self.done) >= FLUSH_EXCHANGES:
                    self.flush()
            else:
                events = self.wait(min(self.next_due, next_tick) - now)
            self.take(events)
            self.coalesce(len(events))

    def over(self) -> bool:
        if self.stopped is not None:
            self.abandon()
            return True
        if self.active or self.backlog or self.later:
            return False
        return self.next_due == NEVER if self.open_loop else True

    def enough(self) -> None:
        """Plan nothing new; what was planned is sent, and what is under way awaited."""
        self.launch_until = clock()
        self.plan_next()

    def wait(self, nanoseconds: int) -> list[tuple[int, int]]:
        """Ready sockets, or nothing once the time is over, to some 0.1 ms."""
        epoll = self.pool.epoll
        if nanoseconds <= 0:
            return epoll.poll(0, BATCH)
        if nanoseconds < FINE_WAIT_NS:
            select.select((epoll,), (), (), nanoseconds / SECOND)
            return epoll.poll(0, BATCH)
        return epoll.poll((nanoseconds - FINE_WAIT_NS // 2) / SECOND, BATCH)

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

    # --- reading ------------------------------------------------------------------------------------------------

    def take(self, events: list[tuple[int, int]]) -> None:
        """The hot path."""
        connections = self.pool.all
        for fd, mask in events:
            c = connections.get(fd)
            if c is None:
                continue
            if c.state is BUSY and not mask & WRITE and not c.tls:
                try:
                    data, ancillary, _, _ = c.recvmsg(READ_BYTES, ANCILLARY_BYTES)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self.lost(c, f"reset: {shown(error)}", unread=isinstance(error, ConnectionResetError))
                    continue
                now = clock()
                if data:
                    c.pieces.append(data)
                    c.marks.append(now)
                    c.kernel.append(ancillary[0][2] if ancillary else b"")
                    c.size += len(data)
                    # In an event stream over chunks only a read that ends like this can end the response.
                    if not c.streaming or len(data) < 8 or data[-4] == CR:
                        self.progress(c, data, now)
                else:
                    self.server_closed(c)
            else:
                self.attend(c, mask)
                now = clock()
            if now >= self.next_due:
                self.launch_due()

    def attend(self, c: Connection, mask: int) -> None:
        """Everything but a plain read of a running answer: connecting, TLS, unsent bytes, idle connections."""
        try:
            if c.state < State.IDLE:
                self.pool.establish(c)
            elif c.state is State.IDLE:
                if c.tls:
                    c.read()  # raises BlockingIOError for a session ticket: nothing was said, the connection stays
                self.pool.drop(c)  # the server has closed it, or said something that nobody asked for
            else:
                if mask & WRITE:
                    self.pool.write_rest(c)
                if mask & ~WRITE:
                    self.read_slowly(c)
        except BlockingIOError:
            pass
        except FramingError as error:
            self.lost(c, f"bad_stream: {error}")
        except OSError as error:
            kind = "reset" if c.state is BUSY else "refused"
            self.lost(c, f"{kind}: {shown(error)}", unread=isinstance(error, ConnectionResetError))

    def read_slowly(self, c: Connection) -> None:
        """What the hot path does, for TLS and for answers that come before all of the request has gone out."""
        data, stamp = c.read()
        now = clock()
        if not data:
            self.server_closed(c)
            return
        c.pieces.append(data)
        c.marks.append(now)
        c.kernel.append(stamp)
        c.size += len(data)
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
                if planned is NOW:
                    self.launch(index, now, now, attempt)
                elif self.open_loop:
                    self.admit(index, planned, due, attempt)
                else:
                    self.launch(index, planned, due, attempt)
            else:
                index, planned = plan.first[self.next_first], self.next_due
                self.next_first += 1
                self.admit(index, planned, planned, 0)
            self.plan_next()

    def admit(self, index: int, planned: int, due: int, attempt: int) -> None:
        """Into an open loop, or behind its cap; a retry has waited there already, and is next."""
        if self.plan.users and self.active >= self.plan.users:
            put = self.backlog.appendleft if attempt else self.backlog.append
            put((index, planned, attempt))
        else:
            self.active += 1
            self.launch(index, planned, due, attempt)

    def next_conversation(self, now: int) -> None:
        """A slot of a closed loop has become free now, or one under the cap."""
        attempt = 0
        if self.backlog:
            index, planned, attempt = self.backlog.popleft()
        elif self.open_loop or now >= self.launch_until:
            return
        else:
            first = self.plan.first
            lap, place = divmod(self.next_first, len(first))
            if lap and not self.plan.again:
                return
            index, planned = first[place] + lap * len(self.plan.requests), now
            self.next_first += 1
        self.active += 1
        self.launch(index, planned, now, attempt)

    def launch(self, index: int, planned: int, due: int, attempt: int) -> None:
        """Send on an idle connection, or on a new one as soon as it stands.

        ``due`` is when nothing but ourselves stood in the way any more: ``planned``, or the moment the cap let it go.
        """
        c = self.pool.take()
        if c is None:
            error = self.pool.error or "refused"
            self.done.append(Finished(index, attempt, planned, due, None, clock(), error))
            self.settle(index, planned, attempt, error, None)
            return
        c.index, c.planned_ns, c.due_ns, c.attempt = index, planned, due, attempt
        if c.state is State.IDLE:
            self.send(c)

    def send(self, c: Connection) -> None:
        c.state = BUSY
        requests = self.plan.requests
        data = requests[c.index % len(requests)]
        if c.tls:
            data = c.seal(data)
        c.sent_ns = clock()
        try:
            self.pool.write(c, data)
        except OSError as error:
            self.lost(c, f"reset: {shown(error)}", unread=True)

    # --- the end of a request -----------------------------------------------------------------------------------

    def lost(self, c: Connection, error: str, *, unread: bool = False) -> None:
        """A connection broke. On one that stood idle, before any byte of an answer, that is HTTP's own race:

        the server was just closing it (RFC 9112, 9.3.1), and has not seen the request: it broke at once, or with a reset,
        which a kernel sends for what nobody read (``unread``).  It goes out once more on a fresh connection, its time
        running all along, and the lost attempt is recorded.  A connection that is closed later was closed by a server
        that was at work: that is a failure.
        """
        now, race = clock(), UNREAD_NS if unread else RACE_NS
        if c.state is not BUSY and c.index < 0:
            self.pool.error = error
            self.pool.drop(c)
        elif c.state is BUSY and c.kept and not c.pieces and now - (c.sent_ns or 0) < race:
            self.done.append(self.finished_of(c, now, f"{error} (a kept connection, closed as it was used)"))
            index, planned, attempt = c.index, c.planned_ns, c.attempt
            self.pool.drop(c)
            for idle in list(self.pool.idle):  # the server closes what is idle: the others are stale too
                self.pool.drop(idle)
            self.launch(index, planned, now, attempt)
        else:
            self.finish(c, now, error, close=True)

    def finished_of(self, c: Connection, now: int, error: str | None, *, server_closed: bool = False) -> Finished:
        return Finished(
            c.index,
            c.attempt,
            c.planned_ns,
            c.due_ns,
            c.sent_ns,
            now,
            error,
            server_closed,
            c.marks,
            c.kernel,
            c.pieces,
        )

    def finish(self, c: Connection, now: int, error: str | None, *, close: bool, server_closed: bool = False) -> None:
        """Record the attempt, free the connection, and go on with whatever follows."""
        index, planned, attempt, head, pieces = c.index, c.planned_ns, c.attempt, c.framing.head, c.pieces
        self.done.append(self.finished_of(c, now, error, server_closed=server_closed))
        if close:
            self.pool.drop(c)
        else:
            c.clear()
            self.pool.free(c)
        if error is None and not is_stream(head):
            error = f"status {head.status if head else None}"
        elif error is None and self.plan.follower and not answered(pieces):
            error = "cut: a turn without its end"
        self.settle(index, planned, attempt, error, head)

    def settle(self, index: int, planned: int, attempt: int, error: str | None, head: Head | None) -> None:
        """One attempt is over: retry it, or count it and let the next turn, or the next user, have the slot."""
        now = clock()
        if error is not None and attempt < self.plan.retries and retriable(error, head):
            delay = min(retry_delay_ns(head, attempt), self.plan.request_timeout_ns)
            self.come_back(now + delay, index, planned, attempt + 1)
            return
        self.finished += 1
        self.failed += error is not None
        if self.failed == self.finished and 0 < self.plan.give_up_after <= self.failed:
            self.stopped = self.stopped or "every request failed"
        follower = self.follower_of(index)
        due = now + self.plan.think_ns
        if follower >= 0 and error is None and due < self.launch_until:
            if self.plan.think_ns:
                self.come_back(due, follower, due, 0)
            else:
                self.launch(follower, due, due, 0)
            return
        while follower >= 0 and error is not None:  # the turns of a conversation that broke are never sent
            self.never_sent.append((follower, now))
            follower = self.follower_of(follower)
        self.free_slot()

    def come_back(self, due: int, index: int, planned: int, attempt: int) -> None:
        """A turn after its pause, or a retry after its delay. Meanwhile a closed loop's user waits, a cap's place is free."""
        heapq.heappush(self.later, (due, index, planned, attempt))
        self.plan_next()
        if self.open_loop:
            self.free_slot()

    def follower_of(self, index: int) -> int:
        """The turn after a request, or -1."""
        if not self.plan.follower:
            return -1
        lap, place = divmod(index, len(self.plan.requests))
        found = self.plan.follower[place]
        return found if found < 0 else found + lap * len(self.plan.requests)

    def free_slot(self) -> None:
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
        for c in list(self.pool.all.values()):
            if c.state is BUSY:
                if error := self.overdue(c, now):
                    ended = c.framing.head is not None and c.framing.walk(c.pieces)  # with junk behind its end
                    self.finish(c, now, None if ended else error, close=True)
            elif c.state < State.IDLE and now - c.opened_ns > plan.connect_timeout_ns:
                self.lost(c, f"refused: no connection within {plan.connect_timeout_ns / SECOND:g} s")
        while self.backlog and now - self.backlog[0][1] > plan.request_timeout_ns:
            self.drop_waiting()
        self.spool.file.flush()
        self.stopped = self.stopped or self.tick(self)

    def drop_waiting(self) -> None:
        """The request that waited longest will not be sent, nor the turns after it."""
        index, planned, _ = self.backlog.popleft()
        self.finished += 1
        self.failed += 1
        while index >= 0:
            self.never_sent.append((index, planned))
            index = self.follower_of(index)

    def overdue(self, c: Connection, now: int) -> str | None:
        """Which limit a running answer has broken."""
        plan = self.plan
        if now - (c.sent_ns or now) > plan.request_timeout_ns:
            return f"timeout: no end within {plan.request_timeout_ns / SECOND:g} s"
        if c.marks and now - c.marks[-1] > plan.stall_timeout_ns:
            return f"stalled: no byte for {plan.stall_timeout_ns / SECOND:g} s"
        if c.size > plan.max_response_bytes:
            return f"bad_stream: the response is longer than {plan.max_response_bytes >> 20} MiB"
        return None

    def abandon(self) -> None:
        """The run was stopped: what is under way is recorded as far as it came."""
        now = clock()
        running = [c for c in self.pool.all.values() if c.index >= 0]
        self.done += [self.finished_of(c, now, "stopped: the run was ended") for c in running]

    def flush(self) -> None:
        """Write what has finished to the spool."""
        for finished in self.done:
            self.spool.append(finished.exchange())
        self.done.clear()


def is_stream(head: Head | None) -> bool:
    """Whether an answer can be one that was asked for: 200, and an event stream where it says what it is."""
    if head is None or head.status != 200:
        return False
    kind = head.headers.get("content-type", "")
    return not kind or "event-stream" in kind


def answered(pieces: list[bytes]) -> bool:
    """Whether a stream says that it is whole: the next turn hangs on it. A look at its bytes; the reader parses them."""
    raw = b"".join(pieces)
    return SAID_END.search(raw) is not None and SAID_ERROR.search(raw) is None


def retriable(error: str, head: Head | None) -> bool:
    return (head is not None and head.status in RETRIED_STATUS) or error.startswith(("refused", "reset"))


def retry_delay_ns(head: Head | None, attempt: int) -> int:
    """What the server asked for in whole seconds, else 0.1 s doubled with every attempt."""
    asked = "" if head is None else head.headers.get("retry-after", "")
    if len(asked) < 10 and asked.isascii() and asked.isdigit():
        return int(asked) * SECOND
    return SECOND // 10 << min(attempt, 10)
