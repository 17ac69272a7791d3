"""The load client: stamps every read before anything looks at it, and turns each request into a ``RequestTrace``.

One asyncio loop, one connection per slot kept open over its requests.  Hot path:
``data_received`` takes the clock, appends the bytes, and asks h11 only where the
response ends; events are parsed when the request is over.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

from llmopt.bench.schedule import ClosedLoop, PlannedRequest
from llmopt.bench.stream import Answer, error_text, read_answer
from llmopt.core.domain import RequestTrace

API_KEY_VARIABLE = "LLMOPT_API_KEY"
LAG_PROBE_S = 0.01
MAX_RESPONSE_BYTES = 32 << 20  # no completion is that long: a server that never stops must not fill our memory


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to post; the API key is read from the environment alone and never stored."""

    host: str
    port: int
    path: str
    tls: bool

    @classmethod
    def of(cls, base_url: str, endpoint: str) -> Endpoint:
        parts = urlsplit(base_url)
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/") + ("/chat/completions" if endpoint == "chat" else "/completions")
        return cls(host=parts.hostname or "", port=parts.port or (443 if tls else 80), path=path, tls=tls)

    def request(self, body: bytes) -> bytes:
        head = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            f"Content-Length: {len(body)}",
        ]
        if key := os.environ.get(API_KEY_VARIABLE):
            head.append(f"Authorization: Bearer {key}")
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """All timelines of a run, and what the client noticed about itself."""

    traces: tuple[RequestTrace, ...]
    loop_lag_p99_s: float
    client_cpu_s: float


class Response(asyncio.Protocol):
    """One connection. ``reads`` holds (stamp, body bytes) of the current response."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.parser = h11.Connection(h11.CLIENT)
        self.reads: list[tuple[int, bytes]] = []
        self.status: int | None = None
        self.ended: asyncio.Future[None] | None = None
        self.closed = False
        self.sent_ns: int | None = None
        self.size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        at_ns = time.monotonic_ns()
        self.feed(data, at_ns)

    def feed(self, data: bytes, at_ns: int) -> None:
        try:
            self.parser.receive_data(data)
            while (event := self.parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Response):
                    self.status = event.status_code
                elif isinstance(event, h11.Data):
                    self.reads.append((at_ns, bytes(event.data)))
                    self.size += len(event.data)
                    if self.size > MAX_RESPONSE_BYTES:
                        raise h11.RemoteProtocolError(f"the response is longer than {MAX_RESPONSE_BYTES >> 20} MiB")
                elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                    self.finish(None)
                    break
        except h11.ProtocolError as error:
            self.finish(ConnectionError(str(error)))
            if self.transport is not None:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.ended is not None and not self.ended.done():
            self.feed(b"", time.monotonic_ns())  # a body without a length ends here, any other is cut
            self.finish(exc or ConnectionError("the server closed the connection"))

    def finish(self, error: BaseException | None) -> None:
        if self.ended is None or self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)

    async def ask(self, request: bytes) -> None:
        """Send one request and wait for the end of its response; ``sent_ns`` is the stamp of the send."""
        assert self.transport is not None
        self.reads, self.status, self.sent_ns, self.size = [], None, None, 0
        self.ended = asyncio.get_running_loop().create_future()
        # The bytes are ours; h11 is told of the request only so that it can follow the response.
        self.parser.send(h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
        self.parser.send(h11.EndOfMessage())
        self.sent_ns = time.monotonic_ns()
        self.transport.write(request)
        await self.ended

    def reusable(self) -> bool:
        """Make ready for the next request on the same connection, when both sides keep it open."""
        if self.closed or self.parser.our_state is not h11.DONE or self.parser.their_state is not h11.DONE:
            return False
        self.parser.start_next_cycle()
        return True


@dataclass(kw_only=True)
class Slot:
    """One user of the closed loop with its own connection."""

    endpoint: Endpoint
    timeout_s: float
    connection: Response | None = None

    async def connect(self) -> Response:
        """The connection of this slot, opened anew where there is none or the server has closed it."""
        if self.connection is not None and not self.connection.closed:
            return self.connection
        self.connection = None
        context = ssl.create_default_context() if self.endpoint.tls else None
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(Response, self.endpoint.host, self.endpoint.port, ssl=context)
        self.connection = protocol
        return protocol

    def drop(self) -> None:
        if self.connection is not None and self.connection.transport is not None:
            self.connection.transport.abort()
        self.connection = None

    async def ask(self, request: bytes) -> None:
        """Send on the kept connection; once more on a fresh one when the server had just closed the kept one.

        That race is of HTTP, not of the engine (RFC 9112, 9.3.1): it is seen as no byte of an answer at all.
        The time it took stays in every latency, which counts from the planned moment.
        """
        kept = self.connection is not None and not self.connection.closed
        connection = await self.connect()
        try:
            await connection.ask(request)
        except OSError:
            if not kept or connection.status is not None or connection.reads:
                raise
            self.drop()
            await (await self.connect()).ask(request)

    async def run(self, planned: PlannedRequest) -> RequestTrace:
        """Send one request; every failure is a trace with an ``error``, never an exception."""
        planned_ns = time.monotonic_ns()
        body = json.dumps(planned.body).encode()
        error: str | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.ask(self.endpoint.request(body))
        except TimeoutError:
            error = f"timeout: no end within {self.timeout_s:.0f} s"
        except OSError as problem:
            error = f"connection: {problem}"
        closed_ns = time.monotonic_ns()
        response = self.connection
        if response is None:
            return trace(planned, planned_ns, None, closed_ns, [], None, error)
        result = trace(planned, planned_ns, response.sent_ns, closed_ns, response.reads, response.status, error)
        if error is not None or not response.reusable():
            self.drop()
        return result


def trace(
    planned: PlannedRequest,
    planned_ns: int,
    sent_ns: int | None,
    closed_ns: int,
    reads: list[tuple[int, bytes]],
    status: int | None,
    error: str | None,
) -> RequestTrace:
    """Parse the reads of one finished request."""
    answer = Answer()
    if error is None and status != 200:
        error = f"status {status}: {body_error(reads)}"
    elif reads and status == 200:
        answer = read_answer(reads)
        error = error or answer.error or incomplete(answer)
    elif error is None:
        error = "empty: the response had no body"
    return RequestTrace(
        index=planned.index,
        planned_ns=planned_ns,
        requested_output_tokens=planned.output_tokens,
        prompt_tokens_asked=planned.prompt_tokens,
        sent_ns=sent_ns,
        first_byte_ns=reads[0][0] if reads else None,
        closed_ns=closed_ns,
        chunks=tuple(answer.chunks),
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        output_tokens=answer.output_tokens,
        finish_reason=answer.finish_reason,
        error=error,
    )


def incomplete(answer: Answer) -> str | None:
    """A stream that ends cleanly without a finish reason or [DONE] was cut, whatever HTTP says."""
    if answer.finish_reason is None and not answer.done:
        return "cut: the stream ended without a finish reason"
    return None if answer.chunks else "empty: no token in the stream"


def body_error(reads: list[tuple[int, bytes]]) -> str:
    text = b"".join(data for _, data in reads)
    try:
        return error_text(json.loads(text))
    except ValueError:
        return text[:120].decode("utf-8", "replace")


@dataclass(kw_only=True)
class LagProbe:
    """Measures how late the event loop wakes up: the client's own part in every latency."""

    lags_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            self.lags_s.append(loop.time() - due)


async def drive(schedule: ClosedLoop, endpoint: Endpoint, done: Callable[[RequestTrace], None]) -> list[RequestTrace]:
    """Run all slots to the end of the schedule; ``done`` is called after each request."""
    waiting = deque(schedule.requests)
    traces: list[RequestTrace] = []

    async def user(slot: Slot) -> None:
        while waiting:
            result = await slot.run(waiting.popleft())
            traces.append(result)
            done(result)
        slot.drop()

    slots = [Slot(endpoint=endpoint, timeout_s=schedule.timeout_s) for _ in range(schedule.concurrency)]
    async with asyncio.TaskGroup() as group:
        for slot in slots:
            group.create_task(user(slot))
    return sorted(traces, key=lambda t: t.index)


def run_load(
    schedule: ClosedLoop, base_url: str, endpoint: str, done: Callable[[RequestTrace], None] = lambda _: None
) -> LoadResult:
    """Play a schedule against a server; returns when every request has ended or timed out."""
    probe = LagProbe()
    cpu = time.process_time()

    async def main() -> list[RequestTrace]:
        watch = asyncio.create_task(probe.run())
        try:
            return await drive(schedule, Endpoint.of(base_url, endpoint), done)
        finally:
            watch.cancel()

    gc.collect()
    gc.disable()
    try:
        traces = asyncio.run(main())
    finally:
        gc.enable()
    lags = sorted(probe.lags_s)
    lag = lags[int(0.99 * (len(lags) - 1))] if lags else 0.0
    return LoadResult(traces=tuple(traces), loop_lag_p99_s=lag, client_cpu_s=time.process_time() - cpu)
