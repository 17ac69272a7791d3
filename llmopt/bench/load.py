"""Plays a schedule with one or more client processes and gathers what they recorded."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import msgspec

from llmopt.bench.clock import clock_offset
from llmopt.bench.endpoint import Endpoint
from llmopt.bench.plan import Plan
from llmopt.bench.recording import LENGTH_BYTES, Exchange, Summary, read_spool
from llmopt.bench.schedule import PlannedRequest, Schedule
from llmopt.bench.trace import Clock, Reader, read_traces
from llmopt.core.domain import RequestTrace
from llmopt.core.errors import LlmoptError, ServerError
from llmopt.core.machine import available_cores

SECOND = 1_000_000_000
START_DELAY_NS = 10_000_000  # time for "go" to reach every client
GIVE_UP_AFTER = 16  # requests that all failed: the rest would too
MAX_WARM = 512
WARM_OPEN_LOOP = 8  # connections ready for an open loop, or those for the arrivals of a moment: more come as needed
WARM_SECONDS = 0.05
WATCH_S = 1.0
CONNECT_S = 10.0  # for a name and for a connection, unless a request has less
END_S = 30.0
CLOSE_S = 2.0
ROOT = Path(__file__).parents[2]  # of the package: the client must find it however we were started


@dataclass(frozen=True, kw_only=True)
class Progress:
    finished: int
    failed: int
    active: int
    waiting: int


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """All timelines of a run, and what the clients noticed about themselves. Lags are user stamp − kernel stamp.

    ``waited_share``: of the time, that the client which waited most spent in long waits for a processor.
    """

    traces: tuple[RequestTrace, ...]
    seconds: float
    client_cpu_s: float
    workers: int
    connections: int
    reads: int
    user_stamped: int
    lags_s: Any = field(repr=False, default=())
    lateness_s: Any = field(repr=False, default=())
    waited_share: float | None = None
    realtime: bool = False
    stopped: str | None = None
    enough: bool = False


@dataclass(kw_only=True)
class Client:
    """One client process. Its spool has no name: nothing is left behind, whoever dies."""

    process: subprocess.Popen[bytes]
    spool: IO[bytes]
    requests: tuple[PlannedRequest, ...] = ()
    words: bytes = b""
    said: str = ""
    died: str = ""
    progress: Progress = Progress(finished=0, failed=0, active=0, waiting=0)

    @classmethod
    def start(cls) -> Client:
        handle, name = tempfile.mkstemp(prefix="llmopt-load-")
        path = Path(name)
        spool = path.open("rb")
        path.unlink()
        argv = [sys.executable, "-m", "llmopt.bench.shard", str(handle)]
        path_list = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(handle,), start_new_session=True,
            env=os.environ | {"PYTHONPATH": path_list}, stderr=None if os.environ.get("LLMOPT_DEBUG") else subprocess.DEVNULL,
        )  # fmt: skip
        os.close(handle)
        return cls(process=process, spool=spool)

    def tell(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def hear(self) -> bool:
        """Take what it says; returns whether it is still speaking."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 65_536)
        *lines, self.words = (self.words + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "at":
                finished, failed, active, waiting = map(int, rest.split())
                self.progress = Progress(finished=finished, failed=failed, active=active, waiting=waiting)
            else:
                self.said = line.decode()
        return bool(data)

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self.spool):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(timeout=CLOSE_S)  # it ends by itself when its pipes close
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def clients(count: int = 1) -> Iterator[list[Client]]:
    """Client processes, started now so that they import while prompts are made; ended at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(count):
            client = Client.start()
            stack.callback(client.close)
            started.append(client)
        yield started


def play(
    crew: Sequence[Client],
    schedule: Schedule,
    endpoint: Endpoint,
    *,
    count: Callable[[str], int] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    enough: Callable[[Sequence[RequestTrace]], bool] | None = None,
    request_id: str = "",
    stop_when: Callable[[Progress], bool] | None = None,
    ended: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Play a schedule; returns when every request has ended or timed out, or when ``stop_when`` has seen enough.

    ``count`` counts the tokens of an answer, where a tokenizer is known.  ``enough`` sees the traces so far once a second
    and ends the run early.  A KeyboardInterrupt ends it too: the result then says ``stopped``.  ``ended`` is called when no
    more is asked, before anything is made of it.  Raises ServerError when the server takes no connection.

    A client plays once and ends; one that has would tell of its first play again.
    """
    if any(client.requests for client in crew):
        raise ValueError("these clients have played")
    if not schedule.requests:
        return LoadResult(
            traces=(), seconds=0.0, client_cpu_s=0.0, workers=len(crew), connections=0, reads=0, user_stamped=0
        )
    family, address = resolve(endpoint, min(CONNECT_S, schedule.request_timeout_s))
    # A client without a slot has no part.
    crew = crew[: min(len(crew), len(schedule.first), schedule.users or len(crew))]
    for number, client in enumerate(crew):
        plan = share(schedule, endpoint, family, address, number, len(crew), request_id)
        client.requests = tuple(schedule.requests[i] for i in plan[0])
        data = msgspec.msgpack.encode(plan[1])
        client.tell(len(data).to_bytes(LENGTH_BYTES, "little") + data)
    listen(crew, lambda c: c.said.startswith(("ready", "stopped")))
    for client in crew:
        if client.said.startswith("stopped "):
            raise unreachable(endpoint, client.said.removeprefix("stopped "))
    start_ns = time.monotonic_ns() + START_DELAY_NS
    for client in crew:
        client.tell(b"go %d%s\n" % (start_ns, b" first" if may_go_first(len(crew)) else b""))
    interrupted = False
    watch = Watch(crew, enough) if enough is not None else None

    def heard(now: Progress) -> None:
        progress(now)
        if watch is not None:
            watch.look()
        if stop_when is not None and stop_when(now):
            for client in crew:
                client.tell(b"stop\n")

    try:
        listen(crew, lambda c: c.said == "end", heard)
        ended()
    except KeyboardInterrupt:
        interrupted = True
        ended()
        for client in crew:
            client.tell(b"stop\n")
        listen(crew, lambda c: c.said == "end", limit_s=END_S)
    result = gather(crew, endpoint, schedule, count, interrupted)
    return replace(result, enough=watch is not None and watch.over)


def resolve(endpoint: Endpoint, limit_s: float) -> tuple[int, tuple[str, int]]:
    try:
        return endpoint.resolve(limit_s)
    except OSError as error:
        raise unreachable(endpoint, f"refused: {error.strerror or error}") from error


def unreachable(endpoint: Endpoint, reason: str) -> ServerError:
    host, port = endpoint.dial
    place = f"the proxy {host}:{port}" if endpoint.proxy else f"{host}:{port}"
    return ServerError(
        f"no connection to {place}: {reason.partition(': ')[2] or reason}",
        hint="is the server running, and the address right?",
    )


def share(
    schedule: Schedule, endpoint: Endpoint, family: int, address: tuple[str, int], number: int, of: int, request_id: str
) -> tuple[list[int], Plan]:
    """(indices of its requests, plan) of client ``number``: every n-th conversation, with its part of the slots."""
    first = schedule.first[number::of]
    indices, place = list[int](), dict[int, int]()
    follower = []
    for index in first:
        while index >= 0:
            place[index] = len(indices)
            indices.append(index)
            index = schedule.follower[index] if schedule.follower else -1
    if schedule.follower:
        follower = [place.get(schedule.follower[i], -1) for i in indices]
    users = schedule.users // of + (number < schedule.users % of)
    offsets = None if schedule.offsets_ns is None else list(schedule.offsets_ns[number::of])
    warm = users or max(WARM_OPEN_LOOP, round(WARM_SECONDS * busiest_rate(schedule) / of))
    plan = Plan(
        family=family,
        address=address,
        server_name=endpoint.host,
        tls=endpoint.tls,
        tunnel=endpoint.tunnel(),
        requests=[
            endpoint.request(schedule.requests[i].body, f"{request_id}-{i}" if request_id else "") for i in indices
        ],
        first=[place[i] for i in first],
        follower=follower,
        think_ns=round(schedule.think_s * SECOND),
        offsets_ns=offsets,
        users=users,
        again=schedule.again,
        warm_connections=max(1, min(warm, len(first), MAX_WARM)),
        duration_ns=None if schedule.duration_s is None else round(schedule.duration_s * SECOND),
        request_timeout_ns=round(schedule.request_timeout_s * SECOND),
        stall_timeout_ns=round(schedule.stall_timeout_s * SECOND),
        connect_timeout_ns=round(min(CONNECT_S, schedule.request_timeout_s) * SECOND),
        retries=schedule.retries,
        give_up_after=GIVE_UP_AFTER,
    )
    return indices, plan


def busiest_rate(schedule: Schedule) -> float:
    """Arrivals a second of an open loop, over its busiest tenth."""
    offsets = schedule.offsets_ns or ()
    part = max(1, len(offsets) // 10)
    spans = [b - a for a, b in zip(offsets[::part], offsets[part::part], strict=False)]
    return part / (min(spans) / SECOND) if spans and min(spans) > 0 else 0.0


class Watch:
    """Reads the spools while they are written, once a second, and tells the clients when it is enough."""

    def __init__(self, crew: Sequence[Client], enough: Callable[[Sequence[RequestTrace]], bool]) -> None:
        self.crew, self.enough = crew, enough
        self.reader = Reader(clock=Clock([clock_offset()]))
        self.known: list[dict[int, RequestTrace]] = [{} for _ in crew]
        self.next_s = time.monotonic() + WATCH_S
        self.over = False

    def look(self) -> None:
        if self.over or time.monotonic() < self.next_s:
            return
        for client, known in zip(self.crew, self.known, strict=True):
            exchanges = (m for m in read_spool(client.spool) if isinstance(m, Exchange))
            read_traces(client.requests, exchanges, self.reader, None, known)
        if self.enough([trace for known in self.known for trace in known.values()]):
            self.over = True
            for client in self.crew:
                client.tell(b"enough\n")
        self.next_s = time.monotonic() + WATCH_S


def listen(
    crew: Sequence[Client],
    until: Callable[[Client], bool],
    progress: Callable[[Progress], None] = lambda _: None,
    limit_s: float | None = None,
) -> None:
    """Hear every client until it said the word, or died."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    with selectors.DefaultSelector() as ready:
        for client in crew:
            if not until(client):
                assert client.process.stdout is not None
                ready.register(client.process.stdout, selectors.EVENT_READ, client)
        while ready.get_map() and (deadline is None or time.monotonic() < deadline):
            for key, _ in ready.select(0.2):
                client = key.data
                if not client.hear() and not until(client):
                    words = client.said.removeprefix("failed ") if client.said.startswith("failed ") else "killed"
                    client.died = f"a load client died (status {client.process.wait()}): {words}"
                if client.died or until(client):
                    ready.unregister(key.fileobj)
            parts = [c.progress for c in crew]
            progress(
                Progress(
                    finished=sum(p.finished for p in parts),
                    failed=sum(p.failed for p in parts),
                    active=sum(p.active for p in parts),
                    waiting=sum(p.waiting for p in parts),
                )
            )


def gather(
    crew: Sequence[Client],
    endpoint: Endpoint,
    schedule: Schedule,
    count: Callable[[str], int] | None,
    interrupted: bool,
) -> LoadResult:
    """Parse every spool, one exchange at a time; that of a client which died too. Raises LlmoptError when that has none."""
    import numpy as np

    traces: list[RequestTrace] = []
    summaries: list[Summary] = []
    lags, lateness, user_stamped = [], list[int](), 0
    for client in crew:
        summary = last_summary(client)
        reader = Reader(
            clock=Clock(summary.offsets), count=count, secrets=endpoint.secrets(), total=len(schedule.requests)
        )
        client.spool.seek(0)
        exchanges = (m for m in read_spool(client.spool) if isinstance(m, Exchange))
        traces += read_traces(client.requests, exchanges, reader, summary)
        summaries.append(summary)
        lags += reader.lags
        lateness += reader.lateness_ns
        user_stamped += reader.user_stamped
    all_lags = np.concatenate(lags) / SECOND if lags else np.array([])
    stopped = "interrupted" if interrupted else next((s.stopped for s in summaries if s.stopped), None)
    return LoadResult(
        traces=tuple(sorted(traces, key=lambda t: t.index)),
        seconds=(max(s.end_ns for s in summaries) - min(s.start_ns for s in summaries)) / SECOND,
        client_cpu_s=sum(s.cpu_s for s in summaries),
        workers=len(crew),
        connections=sum(s.connections for s in summaries),
        reads=len(all_lags) + user_stamped,
        user_stamped=user_stamped,
        lags_s=all_lags,
        lateness_s=np.array(lateness, np.float64) / SECOND,
        stopped=stopped,
        waited_share=max((share for s in summaries if (share := waited_share(s)) is not None), default=None),
        realtime=all(s.realtime for s in summaries),
    )


def may_go_first(workers: int) -> bool:
    """Before everybody else; several on all cores took a third of its requests from a server that was saturated."""
    return workers == 1 or workers < available_cores()


def waited_share(summary: Summary) -> float | None:
    seconds = summary.end_ns - summary.start_ns
    return None if summary.waited_ns is None or seconds <= 0 else summary.waited_ns / seconds


def last_summary(client: Client) -> Summary:
    """The last message of a spool; of a client that died, what can still be said."""
    client.spool.seek(0)
    for message in read_spool(client.spool, summary_only=True):
        if isinstance(message, Summary):
            return message
    client.spool.seek(0)
    stamps = [(m.planned_ns, m.closed_ns) for m in read_spool(client.spool) if isinstance(m, Exchange)]
    if not stamps:
        raise LlmoptError(
            client.died or "a load client left nothing behind",
            hint="is the disk of the temporary folder full? TMPDIR names another",
        )
    first, last = min(a for a, _ in stamps), max(b for _, b in stamps)
    return Summary(first, last, 0.0, 0, [clock_offset()], [], client.died or "a load client died")
