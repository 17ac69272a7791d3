"""What the scripted server says, and when: from a request to a plan of writes with due times.

A ``Script`` is every number that can be set, by an option of the process or behind a model's name.  ``streamed``
makes an ``Answer`` from it, whose events a trap may change; ``compile_answer`` turns that into a ``Plan`` of ready
bytes, so that the server's loop only waits and sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import parse_qsl

MS = 1_000_000
NEVER_NS = 1 << 62
CREATED = 1_700_000_000  # the same for all requests: payloads are rendered once and kept
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"


class ScriptError(ValueError):
    """A request or an option that makes no script; its words go to the client."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """``--ttft-ms 50`` for the process, ``"model": "scripted?ttft_ms=50"`` for one request."""

    ttft_ms: float = field(default=20, metadata={"help": "first token after the slot was free"})
    tpot_ms: float = field(default=2, metadata={"help": "from one token to the next"})
    tokens_per_chunk: int = field(default=1, metadata={"help": "tokens of one event"})
    output_tokens: int | None = field(default=None, metadata={"help": "stop earlier than asked"})
    prompt_tokens: int | None = field(default=None, metadata={"help": "report this prompt length"})
    usage: str = field(default="each", metadata={"help": "never, last, or each chunk"})
    usage_unasked: bool = field(default=False, metadata={"help": "usage even without stream_options"})
    usage_factor: int = field(default=1, metadata={"help": "report so many times the output tokens"})
    cached_tokens: int = field(default=0, metadata={"help": "report these as cached; -1: all but one"})
    preemptions: int = field(default=0, metadata={"help": "say in /metrics that a request was put back so often"})
    header_delay_ms: float = field(default=0, metadata={"help": "headers, and all that follows, later"})
    trap: str = field(default="none", metadata={"help": "one of --list-traps, or several with commas between"})
    times: int | None = field(default=None, metadata={"help": "the trap holds for so many first requests of a model"})
    delay_ms: float = field(default=0, metadata={"help": "the delay of traps that have one"})
    stall_ms: float = field(default=300, metadata={"help": "the pause of trap=stall"})
    text: str = field(default=" the", metadata={"help": "text of one token"})
    blank_every: int = field(default=0, metadata={"help": "every so many tokens, one of empty text"})
    first_empty: bool = field(default=False, metadata={"help": "completions too begin with an event without text"})
    delta: str = field(default="content", metadata={"help": "where chat text is: content, reasoning, tool_calls, ..."})


PARSERS: dict[str, Callable[[str], Any]] = {
    "float": float,
    "int": int,
    "int | None": int,
    "bool": lambda word: word.lower() not in ("0", "false", "no", ""),
    "str": str,
}
SCRIPT_PARSERS = {f.name: PARSERS[str(f.type)] for f in fields(Script)}


def split_model(model: str) -> tuple[str, dict[str, Any]]:
    """``scripted?ttft_ms=50`` → name and settings. Raises ScriptError for what is no setting."""
    name, _, query = model.partition("?")
    settings = {}
    for key, word in parse_qsl(query, keep_blank_values=True):
        if key not in SCRIPT_PARSERS:
            raise ScriptError(f"unknown setting {key!r} in the model name; known are {', '.join(SCRIPT_PARSERS)}")
        try:
            settings[key] = SCRIPT_PARSERS[key](word)
        except ValueError:
            raise ScriptError(f"{key}={word!r} in the model name is no {SCRIPT_PARSERS[key].__name__}") from None
    return name, settings


SHORT = {"ttft": "ttft_ms", "itl": "tpot_ms", "tpot": "tpot_ms"}


def split_path(path: str) -> dict[str, Any]:
    """``/x/ttft=30,itl=5/v1/completions`` → settings, so that one server is several by their URLs. Raises ScriptError."""
    head, _, rest = path.removeprefix("/").partition("/")
    if head != "x":
        return {}
    words = [pair.partition("=") for pair in rest.partition("/")[0].split(",")]
    return split_model("?" + "&".join(f"{SHORT.get(name, name)}={value}" for name, _, value in words))[1]


def make_script(settings: Mapping[str, Any]) -> Script:
    script = Script(**settings)
    if script.usage not in ("never", "last", "each"):
        raise ScriptError(f"usage={script.usage!r} is none of never, last, each")
    if script.tokens_per_chunk < 1 or min(script.ttft_ms, script.tpot_ms) < 0:
        raise ScriptError("tokens_per_chunk must be 1 or more, and no time negative")
    return script


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Everything that an answer depends on; equal asks share one plan."""

    script: Script
    model: str
    chat: bool = False
    stream: bool = True
    tokens: int = 16
    finish: str | None = "length"
    prompt_tokens: int = 1
    usage_each: bool = False
    usage_last: bool = False
    close: bool = False

    @property
    def cached_tokens(self) -> int:
        said = self.script.cached_tokens
        return said if said >= 0 else self.prompt_tokens + said


def make_ask(body: Mapping[str, Any], script: Script, *, chat: bool, close: bool) -> Ask:
    """What the JSON body of a request asks for. Raises ScriptError."""
    asked = body.get("max_completion_tokens") or body.get("max_tokens") or 16
    if not isinstance(asked, int) or asked < 1:
        raise ScriptError(f"max_tokens must be a whole number of at least 1, got {asked!r}")
    tokens = asked if script.output_tokens is None else min(asked, script.output_tokens)
    options = body.get("stream_options") or {}
    last = bool(options.get("include_usage")) or script.usage_unasked
    each = last or bool(options.get("continuous_usage_stats"))
    return Ask(
        script=script,
        model=str(body.get("model", "scripted")),
        chat=chat,
        stream=bool(body.get("stream")),
        tokens=tokens,
        finish="length" if tokens == asked else "stop",
        prompt_tokens=script.prompt_tokens or prompt_length(body),
        usage_each=each and script.usage == "each",
        usage_last=last and script.usage != "never",
        close=close,
    )


def prompt_length(body: Mapping[str, Any]) -> int:
    """Token ids are counted, of text the words."""
    prompt = body.get("prompt", "")
    if "messages" in body:
        prompt = " ".join(message_text(message.get("content")) for message in body["messages"])
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    if isinstance(prompt, list):
        return sum(prompt_length({"prompt": one}) for one in prompt) or 1
    return max(1, len(str(prompt).split()))


def message_text(content: Any) -> str:
    """A message is text, or parts of which some have text."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content)
    return str(content or "")


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
