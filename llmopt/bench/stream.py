"""From a recorded body to a timeline: server-sent events are parsed only after every byte was stamped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

MAX_EVENT_BYTES = 4 << 20


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    function: Function | None = None


class Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Event(msgspec.Struct):
    """The part of an OpenAI chunk that carries meaning; everything else is skipped unread."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    timings: Any = None  # llama.cpp's, with the last chunk


DECODER = msgspec.json.Decoder(Event)


@dataclass(kw_only=True)
class Answer:
    """What a stream said. ``chunks_ns`` are the stamps of its token-carrying reads, in order and without repeats;

    ``chunk_tokens`` the tokens of each, as long as cumulative usage told them, ``booked`` their sum.  ``prefill_s`` and
    ``decode_s`` are the server's own times.  ``error`` is ``kind: words``.
    """

    chunks_ns: list[int] = field(default_factory=list)
    chunk_tokens: list[int] | None = field(default_factory=list)
    first_visible_ns: int | None = None
    reasoning: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    booked: int = 0
    prefill_s: float | None = None
    decode_s: float | None = None
    error: str | None = None
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def complete(self) -> bool:
        """A stream that ends cleanly without a finish reason or [DONE] was cut, whatever HTTP says."""
        return self.done or self.finish_reason is not None


def events(parts: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The data of each server-sent event, with the stamp of the read that completed its last ``data:`` line.

    As the standard has it (WHATWG HTML, 9.2.6), but an event whose blank line never came is still given, and a carriage
    return ends no line by itself.  Raises ValueError for a line longer than any event is.
    """
    rest, data, at = b"", b"", 0
    for stamp, piece in parts:
        lines = (rest + piece if rest else piece).split(b"\n")
        rest = lines.pop()
        if len(rest) > MAX_EVENT_BYTES:
            raise ValueError(f"a line longer than {MAX_EVENT_BYTES >> 20} MiB")
        for line in lines:
            if line[:5] == b"data:":
                data, at = (data + b"\n" + line[5:] if data else line[5:]), stamp
            elif data and line in (b"", b"\r"):
                yield at, data.strip()
                data = b""
    if rest[:5] == b"data:":
        data, at = (data + b"\n" + rest[5:] if data else rest[5:]), stamp
    if data.strip():
        yield at, data.strip()


def read_answer(parts: Iterable[tuple[int, bytes]]) -> Answer:
    """Every event of one response; ``parts`` are (stamp of the read, body bytes). Never raises.

    Tokens of one read are one chunk: nobody saw them apart.  What follows an error event is not looked at.
    """
    answer = Answer()
    try:
        for at_ns, payload in events(parts):
            if payload == b"[DONE]":
                answer.done = True
                continue
            event = DECODER.decode(payload)
            if event.error:
                answer.error = f"error_event: {error_text(event.error)}"
                break
            take_event(answer, event, at_ns)
    except (ValueError, RecursionError) as problem:  # msgspec's errors, and text that is no UTF-8, are ValueErrors
        answer.error = f"bad_stream: {problem}"
    return answer


def take_event(answer: Answer, event: Event, at_ns: int) -> None:
    """One event. Growing usage tells a chunk's tokens, but only while every chunk so far carried usage too:

    servers that report usage once, with the last chunk, would otherwise book a whole answer to it.
    """
    if event.usage is not None:
        take_usage(answer, event.usage)
    if event.timings is not None:
        answer.prefill_s, answer.decode_s = (seconds_of(event.timings, name) for name in ("prompt_ms", "predicted_ms"))
    if not event.choices:
        return
    choice = event.choices[0]
    if choice.finish_reason:
        answer.finish_reason = choice.finish_reason
    text, reasoning = token_text(choice)
    if text:
        answer.texts.append(text)
    grown = 0 if answer.chunk_tokens is None else max(0, (answer.output_tokens or 0) - answer.booked)
    role_alone = choice.delta is not None and choice.delta.role is not None and not text
    if text or (grown and not role_alone):
        answer.booked += grown
        add_chunk(answer, at_ns, grown, reasoning)


def take_usage(answer: Answer, usage: Usage) -> None:
    """Keep the counts."""
    if usage.prompt_tokens is not None:
        answer.prompt_tokens = usage.prompt_tokens
    if usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens is not None:
        answer.cached_tokens = usage.prompt_tokens_details.cached_tokens
    if usage.completion_tokens is not None:
        answer.output_tokens = usage.completion_tokens


def seconds_of(timings: Any, name: str) -> float | None:
    value = timings.get(name) if isinstance(timings, dict) else None
    return value / 1e3 if isinstance(value, (int, float)) and value >= 0 else None


def token_text(choice: Choice) -> tuple[str, bool]:
    """The text that counts as a token in this choice, and whether it is reasoning; a role alone is none."""
    delta = choice.delta
    if delta is None:
        return choice.text or "", False
    if delta.content:
        return delta.content, False
    if thought := delta.reasoning_content or delta.reasoning:
        return thought, True
    words = [call.function.arguments or call.function.name or "" for call in delta.tool_calls or [] if call.function]
    return "".join(words), False


def add_chunk(answer: Answer, at_ns: int, tokens: int, reasoning: bool) -> None:
    if not tokens:
        answer.chunk_tokens = None
    same_read = bool(answer.chunks_ns) and answer.chunks_ns[-1] == at_ns
    if not same_read:
        answer.chunks_ns.append(at_ns)
    if answer.chunk_tokens is not None:
        if same_read:
            answer.chunk_tokens[-1] += tokens
        else:
            answer.chunk_tokens.append(tokens)
    if reasoning:
        answer.reasoning = True
    elif answer.first_visible_ns is None:
        answer.first_visible_ns = at_ns


def error_text(error: Any) -> str:
    """The words of an OpenAI error, or of whatever stands in its place, on one line."""
    if isinstance(error, dict) and isinstance(error.get("error"), (dict, str)):
        error = error["error"]
    words = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(words).split())[:200]
