"""Every way in which the scripted server can be difficult, in one table.

How to add one: write a line of ``TRAPS``, with settings of the script that it changes, or a function from the good
answer to the difficult one, or both.  It is then an option (``--trap NAME``), a setting of a request (``model:
"scripted?trap=NAME"``), and listed by ``--list-traps``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

# Run by its path, the server is a script beside its parts; imported, a module of the package.
# isort: off
# fmt: off
if TYPE_CHECKING or __package__:
    from llmopt.serve.shims.scripted_answer import DONE, Answer, Events, Plan, Step
    from llmopt.serve.shims.scripted_answer import compile_answer, document, error, streamed, whole
    from llmopt.serve.shims.scripted_ask import Ask, Script, ScriptError, make_script
else:
    from scripted_answer import DONE, Answer, Events, Plan, Step
    from scripted_answer import compile_answer, document, error, streamed, whole
    from scripted_ask import Ask, Script, ScriptError, make_script
# fmt: on
# isort: on


@dataclass(frozen=True, kw_only=True)
class Trap:
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Answer], Answer] | None = None


def middle(answer: Answer) -> int:
    """The index of the first step that would go beyond half of the tokens."""
    sent = 0
    for index, step in enumerate(answer.body):
        sent += step.tokens
        if sent > answer.ask.tokens // 2:
            return index
    return len(answer.body)


def stop(
    answer: Answer, *, ended: str = "cut", then: str = "keep", terminator: bytes = b"", events: tuple[bytes, ...] = ()
) -> Answer:
    """End when the token after the middle is due, with ``events`` and ``terminator`` as last words."""
    half = middle(answer)
    last = Step(at_ms=answer.body[half].at_ms, events=list(events))
    return replace(
        answer, body=answer.body[:half], tail=[last], ended=ended, then=then, terminator=terminator, linger_ms=0
    )


def to_end_of_file(answer: Answer) -> Answer:
    """A body that only the end of the connection ends."""
    headers = {name: value for name, value in answer.headers.items() if name != "Transfer-Encoding"}
    return replace(answer, headers=headers | {"Connection": "close"}, frame=bytes, terminator=b"", then="close")


def cut_clean(answer: Answer) -> Answer:
    return stop(answer, terminator=answer.terminator, then=answer.then)


def cut_eof(answer: Answer) -> Answer:
    return stop(to_end_of_file(answer), then="close")


def error_event(answer: Answer) -> Answer:
    failure = b'data: {"error":{"message":"scripted failure","code":500}}\n\n'
    return stop(answer, ended="error", terminator=answer.terminator, then=answer.then, events=(failure, DONE))


def early_end(answer: Answer) -> Answer:
    return streamed(replace(answer.ask, tokens=max(1, answer.ask.tokens // 2), finish="stop"))


def endless(answer: Answer) -> Answer:
    on = streamed(replace(answer.ask, tokens=64, finish=None))
    return replace(on, tail=[], terminator=b"", endless=True)


def joined_events(answer: Answer) -> Answer:
    """Two token events in one send, when the first of them is due."""
    body: list[Step] = []
    for step in answer.body:
        before = body[-1] if body else None
        if before and before.tokens and step.tokens and len(before.events) == 1:
            before.events, before.tokens = before.events + step.events, before.tokens + step.tokens
        else:
            body.append(step)
    tail = [replace(step, at_ms=body[-1].at_ms) for step in answer.tail]
    return replace(answer, body=body, tail=tail)


def between(answer: Answer, event: Callable[[int], bytes], *, also_before: bool) -> Answer:
    """Put ``event(tokens so far)`` half a token's time before each token."""
    body: list[Step] = []
    sent, half = 0, answer.ask.script.tpot_ms / 2
    for step in answer.body:
        if step.tokens and (sent or also_before):
            body.append(Step(at_ms=max(0.0, step.at_ms - half), events=[event(sent)]))
        body.append(step)
        sent += step.tokens
    return replace(answer, body=sorted(body, key=lambda step: step.at_ms))


def empty_chunks(answer: Answer) -> Answer:
    return between(answer, Events(answer.ask).without_text, also_before=False)


def comments(answer: Answer) -> Answer:
    return between(answer, lambda _: b": ping\n\n", also_before=True)


def crlf(answer: Answer) -> Answer:
    for step in answer.steps:
        step.events = [event.replace(b"\n", b"\r\n") for event in step.events]
    return answer


def thirds(wire: bytes) -> list[bytes]:
    a, b = len(wire) // 3, 2 * len(wire) // 3
    return [wire[:a], wire[a:b], wire[b:]]


def inside_a_character(wire: bytes) -> list[bytes]:
    """Cut before the first byte that goes on with a character of several bytes."""
    at = next((i for i, byte in enumerate(wire) if byte & 0xC0 == 0x80), len(wire) // 2)
    return [wire[:at], wire[at:]]


def stall(answer: Answer) -> Answer:
    for step in answer.body[middle(answer) :] + answer.tail:
        step.at_ms += answer.ask.script.stall_ms
    return answer


def done_late(answer: Answer) -> Answer:
    end = answer.tail[-1]
    done = Step(at_ms=end.at_ms + answer.ask.script.delay_ms, events=end.events[-1:])
    return replace(answer, tail=[*answer.tail[:-1], replace(end, events=end.events[:-1]), done])


def no_done(answer: Answer) -> Answer:
    answer.tail[-1].events.pop()
    return answer


def garbage(answer: Answer) -> Answer:
    half = middle(answer)
    noise = Step(at_ms=answer.body[half].at_ms, events=[b"data: {this is not JSON\n\n"])
    return replace(answer, body=[*answer.body[:half], noise, *answer.body[half:]], ended="malformed")


def html(answer: Answer) -> Answer:
    page = "<!DOCTYPE html><html><body><h1>It works!</h1></body></html>"
    return replace(document(answer.ask, page, kind="text/html"), ended="malformed")


def hang(answer: Answer) -> Answer:
    return replace(answer, status="", body=[Step(at_ms=0, events=[])], tail=[], terminator=b"", then="hang")


def rate_limited(answer: Answer) -> Answer:
    refusal = document(answer.ask, error("rate limit reached", 429), status="429 Too Many Requests")
    return replace(refusal, headers=refusal.headers | {"Retry-After": "1"}, ended="error")


def server_error(answer: Answer) -> Answer:
    refusal = document(answer.ask, error("scripted error", 500), status="500 Internal Server Error")
    return replace(refusal, ended="error")


def chunk_extension(answer: Answer) -> Answer:
    return replace(answer, frame=lambda data: b"%x;ext=1\r\n%s\r\n" % (len(data), data))


def trailers(answer: Answer) -> Answer:
    headers = answer.headers | {"Trailer": "X-Checksum"}
    return replace(answer, headers=headers, terminator=b"0\r\nX-Checksum: none\r\n\r\n")


def keepalive_close(answer: Answer) -> Answer:
    return replace(answer, headers=answer.headers | {"Connection": "close"}, then="close")


TRAPS = {
    "none": Trap(about="no trap"),
    # What is a token, and when did it come?
    "role-only": Trap(about="the first event has no text, for completions too", settings={"first_empty": True}),
    "several-tokens": Trap(about="4 tokens per event, or tokens_per_chunk", settings={"tokens_per_chunk": 4}),
    "joined-events": Trap(about="two token events in each send", change=joined_events),
    "empty-chunks": Trap(about="an event without text or growing usage between tokens", change=empty_chunks),
    "empty-text-tokens": Trap(
        about="every second token has no text, only usage grows", settings={"blank_every": 2, "usage_unasked": True}
    ),
    "comments": Trap(about="comment lines before every token", change=comments),
    "crlf": Trap(about="lines of events end with CR LF", change=crlf),
    "split-reads": Trap(about="each event in 3 sends, the last when due", change=lambda a: replace(a, cut=thirds)),
    "split-utf8": Trap(
        about="each event in 2 sends, cut inside a character",
        settings={"text": " été"},
        change=lambda a: replace(a, cut=inside_a_character),
    ),
    "reasoning": Trap(about="the first half is delta.reasoning_content", settings={"delta": "reasoning_content"}),
    "reasoning-alt": Trap(about="the first half is delta.reasoning", settings={"delta": "reasoning"}),
    "tool-call": Trap(about="all tokens are arguments in delta.tool_calls", settings={"delta": "tool_calls"}),
    # What does usage say?
    "no-usage": Trap(about="usage is never sent", settings={"usage": "never"}),
    "usage-each": Trap(about="usage in each chunk, unasked", settings={"usage": "each", "usage_unasked": True}),
    "usage-last": Trap(about="usage at the end only, whatever is asked", settings={"usage": "last"}),
    "wrong-usage": Trap(about="usage counts 3 times the tokens", settings={"usage_factor": 3}),
    "cached": Trap(about="all but one of the prompt's tokens were cached", settings={"cached_tokens": -1}),
    # Late
    "stall": Trap(about="a pause of stall_ms (300) in the middle", change=stall),
    "done-late": Trap(about="[DONE] delay_ms (200) after the last token", settings={"delay_ms": 200}, change=done_late),
    "slow-headers": Trap(
        about="headers and all that follows delay_ms (150) later",
        settings={"delay_ms": 150},
        change=lambda a: replace(a, delay_ms=a.delay_ms + a.ask.script.delay_ms),
    ),
    "slow-start": Trap(
        about="the first request of a model delay_ms (500) later",
        settings={"delay_ms": 500, "times": 1},
        change=lambda a: replace(a, delay_ms=a.delay_ms + a.ask.script.delay_ms),
    ),
    "hang": Trap(about="no answer, ever", change=hang),
    "hang-middle": Trap(about="silence after half of the tokens", change=lambda a: stop(a, then="hang")),
    # Ends
    "early-end": Trap(about="half of the tokens, finish_reason stop, whole", change=early_end),
    "no-done": Trap(about="no [DONE], but all else", change=no_done),
    "cut-clean": Trap(about="half of the tokens, then the body ends in order", change=cut_clean),
    "cut-close": Trap(about="half of the tokens, then FIN inside the body", change=lambda a: stop(a, then="close")),
    "cut-eof": Trap(about="half of the tokens of a body of unknown length, then FIN", change=cut_eof),
    "eof-body": Trap(about="whole, in a body that only FIN ends", change=to_end_of_file),
    "reset": Trap(about="half of the tokens, then RST", change=lambda a: stop(a, ended="reset", then="reset")),
    "error-event": Trap(about="half of the tokens, then an error event and [DONE]", change=error_event),
    "endless": Trap(about="tokens for ever, without usage", settings={"usage": "never"}, change=endless),
    # Refusals
    "rate-limited": Trap(about="status 429 with Retry-After: 1 (the first `times` requests)", change=rate_limited),
    "server-error": Trap(about="status 500 (the first `times` requests)", change=server_error),
    # Not what was asked for
    "html": Trap(about="status 200 and a page", change=html),
    "json-body": Trap(about="one JSON document although a stream was asked", change=lambda a: whole(a.ask)),
    "garbage": Trap(about="an event that is no JSON in the middle", change=garbage),
    "bad-chunking": Trap(
        about="an invalid chunk size in the middle, then FIN",
        change=lambda a: stop(a, ended="malformed", then="close", terminator=b"zz\r\nnonsense\r\n"),
    ),
    # Rare but legal HTTP
    "trailers": Trap(about="a trailer behind the last chunk", change=trailers),
    "chunk-extension": Trap(about="chunk sizes with an extension", change=chunk_extension),
    "keepalive-close": Trap(about="whole, says Connection: close, and closes", change=keepalive_close),
    "close-idle": Trap(
        about="whole, and the idle connection is closed 1 ms later",
        change=lambda a: replace(a, linger_ms=1, then="close"),
    ),
}


def traps(names: str) -> list[Trap]:
    """``"crlf,comments"`` → both. Raises ScriptError."""
    if unknown := [name for name in names.split(",") if name not in TRAPS]:
        raise ScriptError(f"unknown trap {unknown[0]!r}; known are {', '.join(TRAPS)}")
    return [TRAPS[name] for name in names.split(",")]


def script_of(process: Mapping[str, Any], request: Mapping[str, Any]) -> Script:
    """What a request says goes before its trap's settings, these before the options, these before the options' trap's."""
    options_trap = {} if "trap" in request else settings_of(str(process.get("trap", "none")))
    request_trap = settings_of(str(request.get("trap", "none")))
    return make_script({**options_trap, **process, **request_trap, **request})


def settings_of(names: str) -> dict[str, Any]:
    return {name: value for trap in traps(names) for name, value in trap.settings.items()}


@lru_cache(maxsize=256)
def plan(ask: Ask) -> Plan:
    """The writes of one answer. A trap is for streams: what is asked as one document comes in order."""
    if not ask.stream:
        return compile_answer(whole(ask))
    answer = streamed(ask)
    for trap in traps(ask.script.trap):
        answer = trap.change(answer) if trap.change else answer
    return compile_answer(answer)
