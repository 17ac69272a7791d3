"""What is asked of the scripted server: the numbers of a script, and what the body of a request wants of it.

A ``Script`` is every number that can be set, by an option of the process or behind a model's name; an ``Ask`` is all that
an answer depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl


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
