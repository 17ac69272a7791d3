"""From raw reads to a timeline: server-sent events are parsed only after every byte was stamped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llmopt.core.domain import TokenChunk


@dataclass(kw_only=True)
class Answer:
    """What a stream said."""

    chunks: list[TokenChunk] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    error: str | None = None


def events(reads: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
    """``data:`` payloads with the stamp of the read that completed them."""
    pieces: list[bytes] = []  # of a line that has not ended: joined once, for a body without lines may be long
    for at_ns, data in reads:
        pieces.append(data)
        if b"\n" not in data:
            continue
        *lines, rest = b"".join(pieces).split(b"\n")
        pieces = [rest]
        for line in lines:
            if line.startswith(b"data:"):
                yield at_ns, line[5:].strip().decode("utf-8", "replace")
    if (rest := b"".join(pieces)).startswith(b"data:"):
        yield at_ns, rest[5:].strip().decode("utf-8", "replace")


def read_answer(reads: Iterable[tuple[int, bytes]]) -> Answer:
    """Every event of one response. Tokens of one read are one chunk: nobody saw them apart."""
    answer = Answer()
    for at_ns, payload in events(reads):
        if payload == "[DONE]":
            answer.done = True
            continue
        try:
            event = json.loads(payload)
        except ValueError:
            answer.error = f"not JSON in the stream: {payload[:80]}"
            return answer
        if not isinstance(event, dict) or event.get("error"):
            answer.error = error_text(event)
            return answer
        try:
            take_event(answer, event, at_ns)
        except (AttributeError, TypeError, KeyError):
            answer.error = f"an event of unknown shape in the stream: {payload[:80]}"
            return answer
    return answer


def take_event(answer: Answer, event: dict[str, Any], at_ns: int) -> None:
    """One event. Growing usage tells a chunk's tokens, but only while every chunk so far carried usage too:

    servers that report usage once, with the last chunk, would otherwise book a whole answer to it.
    """
    grown = take_usage(answer, event.get("usage"))
    choice = next(iter(event.get("choices") or []), None)
    if choice is None:
        return
    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    text, reasoning = token_text(choice)
    counted = grown if all(chunk.tokens is not None for chunk in answer.chunks) else 0
    if text or counted:
        add_chunk(answer, at_ns, counted or None, reasoning)


def take_usage(answer: Answer, usage: Any) -> int:
    """Keep the counts; returns by how much the output grew. Raises TypeError for counts that are no numbers."""
    if not isinstance(usage, dict):
        return 0
    before = answer.output_tokens or 0
    details = usage.get("prompt_tokens_details") or {}
    answer.prompt_tokens = count(usage.get("prompt_tokens"), answer.prompt_tokens)
    answer.output_tokens = count(usage.get("completion_tokens"), answer.output_tokens)
    answer.cached_tokens = count(details.get("cached_tokens"), answer.cached_tokens)
    return max(0, (answer.output_tokens or 0) - before)


def count(value: Any, known: int | None) -> int | None:
    if value is None:
        return known
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no count")
    return value


def token_text(choice: dict[str, Any]) -> tuple[str, bool]:
    """The text that counts as a token in this choice, and whether it is reasoning; a role alone is none."""
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or "", False
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    if thought and not delta.get("content"):
        return str(thought), True
    if delta.get("content"):
        return str(delta["content"]), False
    calls = delta.get("tool_calls") or []
    return "".join(str((call.get("function") or {}).get("arguments") or "x") for call in calls), False


def add_chunk(answer: Answer, at_ns: int, tokens: int | None, reasoning: bool) -> None:
    last = answer.chunks[-1] if answer.chunks else None
    if last is not None and last.at_ns == at_ns and last.reasoning == reasoning:
        both = last.tokens + tokens if last.tokens is not None and tokens is not None else None
        answer.chunks[-1] = TokenChunk(at_ns=at_ns, tokens=both, reasoning=reasoning)
    else:
        answer.chunks.append(TokenChunk(at_ns=at_ns, tokens=tokens, reasoning=reasoning))


def error_text(event: Any) -> str:
    error = event.get("error") if isinstance(event, dict) else event
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]
