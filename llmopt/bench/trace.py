"""From raw exchanges to ``RequestTrace``: kernel stamps become CLOCK_MONOTONIC, bytes become tokens or an error.

Errors are ``kind: words`` with a kind of ``ERROR_KINDS`` or ``http_STATUS``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmopt.bench.framing import Body, FramingError, body_of
from llmopt.bench.recording import ClockOffset, Exchange, Summary
from llmopt.bench.schedule import PlannedRequest
from llmopt.bench.stream import Answer, error_text, read_answer
from llmopt.core.domain import Attempt, RequestTrace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ERROR_KINDS = ("refused", "timeout", "error_event", "cut", "reset", "stalled", "bad_stream", "dropped", "stopped")
STAMP_WORDS = 6  # a kernel stamp is three timespecs of two int64, of which the first is filled
CLOCK_SLACK_NS = 1_000_000


class Clock:
    """Turns the kernel's CLOCK_REALTIME into CLOCK_MONOTONIC, between the offsets that were measured during the run."""

    def __init__(self, offsets: Sequence[ClockOffset]) -> None:
        import numpy as np

        self.base = offsets[0].offset_ns
        self.at = np.array([o.at_ns for o in offsets], np.int64)
        self.drift = np.array([o.offset_ns - self.base for o in offsets], np.float64)
        jumps = np.flatnonzero(np.abs(np.diff(self.drift)) > CLOCK_SLACK_NS)
        self.set_between = [(int(self.at[i]), int(self.at[i + 1])) for i in jumps]

    def was_set(self, first_ns: int, last_ns: int) -> bool:
        """Whether somebody set the clock in this span, so that stamps of it cannot be trusted."""
        return any(start <= last_ns and first_ns <= end for start, end in self.set_between)

    def monotonic(self, kernel: bytes) -> NDArray[np.int64]:
        """Int64 nanoseconds of each raw stamp."""
        import numpy as np

        words = np.frombuffer(kernel, np.int64).reshape(-1, STAMP_WORDS)
        near = words[:, 0] * 1_000_000_000 + words[:, 1] - self.base
        drift: NDArray[np.int64] = np.rint(np.interp(near, self.at, self.drift)).astype(np.int64)
        found: NDArray[np.int64] = near - drift
        return found


@dataclass(kw_only=True)
class Reader:
    """Reads the exchanges of one client; ``lags`` collects user stamp − kernel stamp, ``user_stamped`` how many reads had none.

    ``count`` counts the tokens of a text where a tokenizer is known; ``secrets`` are blotted out of what a server says.
    ``total`` is the number of requests of the whole run: a closed loop that begins anew goes on counting from there.
    """

    clock: Clock
    secrets: Sequence[str] = ()
    total: int = 0
    count: Callable[[str], int] | None = None
    lags: list[NDArray[np.int64]] = field(default_factory=list)
    user_stamped: int = 0
    lateness_ns: list[int] = field(default_factory=list)

    def stamps(self, exchange: Exchange) -> list[int]:
        """One stamp per read: the kernel's, or ours where it gave none or its clock was set during the request."""
        import numpy as np

        user = np.frombuffer(exchange.user_ns, np.int64)
        if exchange.kernel and not self.clock.was_set(int(user[0]), int(user[-1])):
            kernel = self.clock.monotonic(exchange.kernel)
            lag = user - kernel
            early = exchange.sent_ns is not None and kernel[0] < exchange.sent_ns - CLOCK_SLACK_NS
            if not early and lag.min() > -CLOCK_SLACK_NS:
                self.lags.append(lag)
                return list(np.minimum(kernel, user).tolist())
        self.user_stamped += len(user)
        return list(user.tolist())

    def trace(
        self, planned: PlannedRequest, exchange: Exchange, earlier: RequestTrace | None = None, lap: int = 0
    ) -> RequestTrace:
        """The timeline of one request; ``earlier`` is its attempt before this one, whose time counts too."""
        stamps = self.stamps(exchange)
        if exchange.sent_ns is not None:
            self.lateness_ns.append(exchange.sent_ns - exchange.due_ns)
        answer, body, error = self.read(exchange, stamps)
        counted = self.count(answer.text) if self.count is not None and answer.texts else None
        for secret in self.secrets:
            error = error.replace(secret, "***") if error else error
        known = answer.output_tokens if error is None or answer.chunk_tokens else None
        if answer.chunk_tokens is None and len(answer.chunks_ns) == known:
            answer.chunk_tokens = [1] * known  # one token a chunk, proved by the count
        before: tuple[Attempt, ...] = ()
        if earlier is not None:
            last = Attempt(sent_ns=earlier.sent_ns, closed_ns=earlier.closed_ns or 0, error=earlier.error or "")
            before = (*earlier.attempts, last)
        return RequestTrace(
            index=planned.index + lap * self.total,
            planned_ns=exchange.planned_ns if earlier is None else earlier.planned_ns,
            requested_output_tokens=planned.output_tokens,
            prompt_tokens_asked=planned.prompt_tokens,
            sent_ns=exchange.sent_ns if earlier is None or earlier.sent_ns is None else earlier.sent_ns,
            first_byte_ns=first_byte(body, stamps),
            closed_ns=exchange.closed_ns,
            chunks_ns=tuple(answer.chunks_ns),
            chunk_tokens=tuple(answer.chunk_tokens or ()),
            first_visible_ns=answer.first_visible_ns,
            reasoning=answer.reasoning,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=counted if known is None else known,
            counted_tokens=counted,
            tokens_estimated=known is None and counted is not None,
            finish_reason=answer.finish_reason,
            error=error,
            conversation=planned.conversation,
            server_prefill_s=answer.prefill_s,
            server_decode_s=answer.decode_s,
            attempts=before,
        )

    def read(self, exchange: Exchange, stamps: list[int]) -> tuple[Answer, Body | None, str | None]:
        """(what the stream said, its body, what was wrong with it)."""
        import numpy as np

        sizes = np.frombuffer(exchange.sizes, np.uint32).tolist()
        try:
            body = body_of(exchange.raw, sizes, closed=exchange.server_closed)
        except FramingError as problem:
            return Answer(), None, exchange.error or f"bad_stream: {problem}"
        if body is None:
            return Answer(), None, exchange.error or "reset: the connection ended inside the head of the answer"
        if body.head.status != 200:
            return Answer(), body, exchange.error or status_error(body)
        kind = body.head.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/json"):
            return Answer(), body, exchange.error or not_a_stream(kind, body)
        answer = read_answer((stamps[read], data) for read, data in body.parts)
        broken = f"bad_stream: {body.problem}" if body.problem else None
        return answer, body, answer.error or exchange.error or broken or incomplete(answer, body)


def first_byte(body: Body | None, stamps: list[int]) -> int | None:
    return stamps[body.parts[0][0]] if body is not None and body.parts else None


def incomplete(answer: Answer, body: Body) -> str | None:
    if not answer.complete:
        how = "its HTTP body ended cleanly" if body.whole else "the connection was closed"
        return f"cut: no finish_reason and no [DONE], {how}"
    return None if answer.chunks_ns else "bad_stream: no token in the stream"


def status_error(body: Body) -> str:
    """``http_429: too many requests (Retry-After: 1)``."""
    words: Any = body.text[:4096]
    try:
        words = error_text(json.loads(body.text))
    except (ValueError, RecursionError):
        words = " ".join(words.decode("utf-8", "replace").split())[:120]
    wait = body.head.headers.get("retry-after")
    return f"http_{body.head.status}: {words or 'no words'}" + (f" (Retry-After: {wait[:20]})" if wait else "")


def not_a_stream(kind: str, body: Body) -> str:
    try:
        document = json.loads(body.text)
        if isinstance(document, dict) and document.get("error"):
            return f"error_event: {error_text(document)}"
    except (ValueError, RecursionError):
        pass
    what = "an HTML page" if kind == "text/html" else "one JSON document"
    return f"bad_stream: {what} instead of an event stream"


def never_sent(planned: PlannedRequest, planned_ns: int) -> RequestTrace:
    """A planned request that was never sent is a failure."""
    return RequestTrace(
        index=planned.index,
        planned_ns=planned_ns,
        requested_output_tokens=planned.output_tokens,
        prompt_tokens_asked=planned.prompt_tokens,
        conversation=planned.conversation,
        error="dropped: never sent",
    )


def read_traces(
    requests: Sequence[PlannedRequest],
    exchanges: Iterable[Exchange],
    reader: Reader,
    summary: Summary | None,
    known: dict[int, RequestTrace] | None = None,
) -> list[RequestTrace]:
    """The traces of one client, in the order of its requests; attempts of one request come in the order they were made.

    ``known`` holds what was read before, and takes up what is new.
    """
    traces = {} if known is None else known
    for exchange in exchanges:
        lap, place = divmod(exchange.index, len(requests))
        traces[exchange.index] = reader.trace(requests[place], exchange, traces.get(exchange.index), lap)
    for index, planned_ns in summary.never_sent if summary is not None else ():
        traces.setdefault(index, never_sent(requests[index % len(requests)], planned_ns))
    return sorted(traces.values(), key=lambda trace: trace.index)
