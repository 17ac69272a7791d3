"""What the scripted server says, and when: from what is asked (scripted_ask.py) to a plan of writes with due times.

``streamed`` makes an ``Answer``, whose events a trap may change; ``compile_answer`` turns that into a ``Plan`` of ready
bytes, so that the server's loop only waits and sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

# Run by its path, the server is a script beside its parts; imported, a module of the package.
if TYPE_CHECKING or __package__:
    from llmopt.serve.shims.scripted_ask import Ask, Script
else:
    from scripted_ask import Ask, Script

MS = 1_000_000
NEVER_NS = 1 << 62
CREATED = 1_700_000_000  # the same for all requests: payloads are rendered once and kept
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(kw_only=True)
class Step:
    """One send: when, counted from the start of the work, which events, and how many tokens they carry."""

    at_ms: float
    events: list[bytes]
    tokens: int = 0


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass(kw_only=True)
class Answer:
    """An answer that can still be changed: ``body`` has the tokens, ``tail`` the usage and [DONE]."""

    ask: Ask
    body: list[Step]
    tail: list[Step] = field(default_factory=list)
    status: str = "200 OK"
    headers: dict[str, str] = field(default_factory=dict)
    frame: Callable[[bytes], bytes] = chunked
    cut: Callable[[bytes], list[bytes]] | None = None  # one event into several sends, on the wire's bytes
    terminator: bytes = LAST_CHUNK
    delay_ms: float = 0
    ended: str = "whole"
    then: str = "keep"  # close, reset, hang, or leave the connection as it is
    linger_ms: float = 0  # from the end of the answer to ``then``
    needs_slot: bool = True
    endless: bool = False

    @property
    def steps(self) -> list[Step]:
        return self.body + self.tail


class Events:
    """Renders the events of one ask; the parts that do not change are made once."""

    def __init__(self, ask: Ask) -> None:
        self.ask, script = ask, ask.script
        kind = "chat.completion.chunk" if ask.chat else "text_completion"
        head = {"id": "chatcmpl-scripted" if ask.chat else "cmpl-scripted", "object": kind, "created": CREATED}
        self.head = json.dumps(head | {"model": ask.model}, separators=(",", ":"))[:-1]
        self.text = json.dumps(script.text, ensure_ascii=False)
        self.choices: dict[tuple[str, str | None], str] = {}

    def token(self, first: int, count: int, *, last: bool) -> bytes:
        """``count`` tokens from number ``first`` on."""
        script = self.ask.script
        blank = script.blank_every and first % script.blank_every == script.blank_every - 1
        text = '""' if blank else self.text if count == 1 else json.dumps(script.text * count, ensure_ascii=False)
        finish = self.ask.finish if last else None
        return self.event(self.place(text, first) if self.ask.chat else text, first + count, finish)

    def place(self, text: str, first: int) -> str:
        """The delta of a chat event: reasoning is the first half, a tool call is all."""
        where = self.ask.script.delta
        if where == "tool_calls":
            name = '"id":"call-scripted","type":"function",' if first == 0 else ""
            function = '"name":"scripted",' if first == 0 else ""
            return f'{{"tool_calls":[{{"index":0,{name}"function":{{{function}"arguments":{text}}}}}]}}'
        if where != "content" and first >= self.ask.tokens // 2:
            where = "content"
        return f'{{"{where}":{text}}}'

    def event(self, text: str, sent: int, finish: str | None = None) -> bytes:
        """``text`` is JSON: a string, or the delta of a chat."""
        before = self.choices.get((text, finish))
        if before is None:  # most tokens say the same: rendering a long answer must not hold up the others
            reason = "null" if finish is None else f'"{finish}"'
            key = "delta" if self.ask.chat else "text"
            choice = f'{{"index":0,"{key}":{text},"logprobs":null,"finish_reason":{reason},"stop_reason":null}}'
            before = self.choices[text, finish] = f'data: {self.head},"choices":[{choice}]'
        usage = f',"usage":{self.usage(sent)}' if self.ask.usage_each else ""
        return f"{before}{usage}}}\n\n".encode()

    def usage(self, sent: int) -> str:
        prompt, output = self.ask.prompt_tokens, sent * self.ask.script.usage_factor
        return (
            f'{{"prompt_tokens":{prompt},"total_tokens":{prompt + output},"completion_tokens":{output},'
            f'"prompt_tokens_details":{{"cached_tokens":{self.ask.cached_tokens}}}}}'
        )

    def without_text(self, sent: int, *, role: bool = False) -> bytes:
        """An event that is no token: nothing that usage counts has changed."""
        if not self.ask.chat:
            return self.event('""', sent)
        return self.event('{"role":"assistant","content":""}' if role else '{"content":""}', sent)

    def ending(self) -> list[bytes]:
        usage = f'data: {self.head},"choices":[],"usage":{self.usage(self.ask.tokens)}}}\n\n'.encode()
        return [usage, DONE] if self.ask.usage_last else [DONE]


def streamed(ask: Ask) -> Answer:
    """A good stream: headers, the role at half the time to the first token, tokens, usage and [DONE]."""
    script, events = ask.script, Events(ask)
    body = []
    if ask.chat or script.first_empty:
        body.append(Step(at_ms=script.ttft_ms / 2, events=[events.without_text(0, role=True)]))
    for first in range(0, ask.tokens, script.tokens_per_chunk):
        count = min(script.tokens_per_chunk, ask.tokens - first)
        event = events.token(first, count, last=first + count == ask.tokens)
        body.append(Step(at_ms=script.ttft_ms + first * script.tpot_ms, events=[event], tokens=count))
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"}
    tail = [Step(at_ms=body[-1].at_ms, events=events.ending())]
    ended = "stopped" if ask.finish == "stop" else "whole"
    return Answer(ask=ask, body=body, tail=tail, headers=headers, ended=ended, delay_ms=script.header_delay_ms)


def whole(ask: Ask) -> Answer:
    """The answer as one JSON document, at the moment when a stream would have its last token."""
    text = ask.script.text * ask.tokens
    content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if ask.chat else {"text": text}
    value = {
        "id": "cmpl-scripted",
        "object": "chat.completion" if ask.chat else "text_completion",
        "created": CREATED,
        "model": ask.model,
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": ask.finish, "stop_reason": None}],
        "usage": json.loads(Events(ask).usage(ask.tokens)),
    }
    at_ms = ask.script.header_delay_ms + ask.script.ttft_ms + (ask.tokens - 1) * ask.script.tpot_ms
    return document(ask, value, at_ms=at_ms, tokens=ask.tokens)


def document(
    ask: Ask, value: Any, *, status: str = "200 OK", kind: str = "application/json", at_ms: float = 0, tokens: int = 0
) -> Answer:
    """One body of known length; text stays as it is, all else becomes JSON."""
    data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    return Answer(
        ask=ask,
        body=[Step(at_ms=0, events=[data], tokens=tokens)],
        status=status,
        headers={"Content-Type": kind, "Content-Length": str(len(data))},
        frame=bytes,
        terminator=b"",
        delay_ms=at_ms,
        needs_slot=at_ms > 0 or tokens > 0,
    )


NOBODY = Ask(script=Script(), model="")


def reply(status: str, value: Any, *, close: bool = False) -> Plan:
    """An immediate JSON answer outside of any script."""
    answer = document(replace(NOBODY, close=close), value, status=status)
    answer.ended = "error"
    return compile_answer(answer)


def reply_text(text: str) -> Plan:
    answer = document(NOBODY, text, kind="text/plain; version=0.0.4; charset=utf-8")
    answer.ended = "error"
    return compile_answer(answer)


def error(message: str, code: int | str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "scripted", "code": code}}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the log needs of a plan when its bytes are gone: when tokens were due, from the start, and how many."""

    token_offsets_ns: list[int]
    token_counts: list[int]
    period_ns: int
    prompt_tokens: int
    cached_tokens: int = 0
    preemptions: int = 0

    def due_ns(self, number: int) -> int:
        """When write ``number`` of those that carry tokens is due."""
        rounds, index = divmod(number, len(self.token_offsets_ns))
        return self.token_offsets_ns[index] + rounds * self.period_ns

    def tokens(self, number: int) -> int:
        return self.token_counts[number % len(self.token_counts)]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Ready bytes with due times in ns from the start; ``late_ns`` is one token, after which sends may be joined."""

    offsets_ns: list[int]
    data: list[bytes]
    tokens: list[int]
    late_ns: int
    ended: str
    then: str
    needs_slot: bool
    loop_from: int | None = None
    timing: Timing


def compile_answer(answer: Answer) -> Plan:
    """Render an answer to bytes."""
    writes: list[tuple[float, bytes, int]] = [(0.0, head(answer), 0)] if answer.status else []
    script = answer.ask.script
    for step in answer.steps:
        wire = b"".join(map(answer.frame, step.events))
        pieces = answer.cut(wire) if answer.cut and step.tokens else [wire]
        for before, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
            early = before / len(pieces) * min(script.tpot_ms, script.ttft_ms)
            writes.append((step.at_ms - early, piece, 0 if before else step.tokens))
    if answer.terminator:
        at_ms, data, tokens = writes[-1]
        writes[-1] = (at_ms, data + answer.terminator, tokens)
    if answer.linger_ms:
        writes.append((writes[-1][0] + answer.linger_ms, b"", 0))
    if answer.headers.get("Content-Length"):  # head and body of a document are one send
        writes = [(0.0, b"".join(data for _, data, _ in writes), sum(tokens for *_, tokens in writes))]
    offsets = [round((answer.delay_ms + at_ms) * MS) for at_ms, _, _ in writes]
    plain = answer.cut is None and script.tpot_ms > 0
    first = next((i for i, write in enumerate(writes) if write[2]), 0)
    return Plan(
        offsets_ns=offsets,
        data=[data for _, data, _ in writes],
        tokens=[tokens for *_, tokens in writes],
        late_ns=round(script.tpot_ms * script.tokens_per_chunk * MS) if plain else NEVER_NS,
        ended=answer.ended,
        then="close" if answer.ask.close and answer.then == "keep" else answer.then,
        needs_slot=answer.needs_slot,
        loop_from=first if answer.endless else None,
        timing=Timing(
            token_offsets_ns=[offset for offset, write in zip(offsets, writes, strict=True) if write[2]],
            token_counts=[tokens for *_, tokens in writes if tokens],
            period_ns=offsets[-1] - offsets[first] + round(max(script.tpot_ms * script.tokens_per_chunk, 0.1) * MS),
            prompt_tokens=answer.ask.prompt_tokens,
            cached_tokens=answer.ask.cached_tokens,
            preemptions=script.preemptions,
        ),
    )


def head(answer: Answer) -> bytes:
    headers = answer.headers | ({"Connection": "close"} if answer.ask.close else {})
    lines = [f"HTTP/1.1 {answer.status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
