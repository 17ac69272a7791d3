"""The space that is searched: quantizations × engines × serving knobs, and of everything left out the reason.

What an engine has and what it loads is told by the caller; nothing is asked of an engine here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from llmopt.core.domain import ServeOptions
from llmopt.core.errors import UsageError, nearest
from llmopt.recommend.proposals import Range

# The options that may be searched; the others change what is asked, not how it is served.
KNOBS = ("max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "enable_chunked_prefill", "kv_cache_dtype",
         "threads", "gpu_memory_utilization", "block_size", "attn_implementation", "batching", "tensor_parallel_size",
         "enforce_eager", "speculative_model", "num_speculative_tokens")  # fmt: skip
MOST = 512  # configurations that are listed
NUMERIC = ("max_num_seqs", "max_num_batched_tokens", "threads", "block_size", "gpu_memory_utilization")
SWITCHES = {"on": True, "off": False, "true": True, "false": False}
Value = int | float | bool | str


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine as the search sees it: the options that it has, the values to start from, and those to try beside them."""

    name: str
    options: frozenset[str]
    usual: Mapping[str, Any] = field(default_factory=dict)
    tried: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    lacking: str | None = None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One arm of the race. ``changed``: the knobs in which it differs from the engine's usual settings."""

    quantization: str
    options: ServeOptions
    changed: tuple[tuple[str, Value], ...] = ()

    @property
    def label(self) -> str:
        """Unique within a space."""
        return ", ".join([f"{self.quantization} on {self.options.backend}", *(words(n, v) for n, v in self.changed)])

    @property
    def traits(self) -> tuple[str, ...]:
        """What it has in common with others: runs of theirs say something of it."""
        return (self.quantization, self.options.backend, *(words(name, value) for name, value in self.changed))


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What will not be measured, and why."""

    label: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Space:
    configurations: tuple[Configuration, ...]
    dropped: tuple[Dropped, ...] = ()

    def without(self, reasons: Mapping[str, Dropped]) -> Space:
        """The space less the quantizations that are named, each with its reason."""
        left = tuple(c for c in self.configurations if c.quantization not in reasons)
        return Space(configurations=left, dropped=(*self.dropped, *reasons.values()))


def build(
    quantizations: Sequence[str],
    engines: Sequence[Engine],
    refusal: Callable[[str, str], str | None],
    knobs: Mapping[str, tuple[Value, ...]] | None = None,
    searched: Collection[str] = (),
) -> Space:
    """Every quantization on every engine that loads it, at the engine's usual settings and at others.

    Without ``knobs`` each value that an engine would try is changed alone; with them all combinations are taken, of those
    that the engine has; ``searched`` are others, which take values later.  ``refusal``: (engine, quantization) → why it
    cannot be loaded.  Raises UsageError for more than ``MOST``.
    """
    require_few(math.prod(len(values) for values in (knobs or {}).values()))
    found, dropped = list[Configuration](), list[Dropped]()
    for engine, quantization in itertools.product(engines, quantizations):
        label = f"{quantization} on {engine.name}"
        if engine.lacking:
            dropped.append(Dropped(label=label, reason=engine.lacking))
        elif reason := refusal(engine.name, quantization):
            dropped.append(Dropped(label=label, reason=reason))
        else:
            found += settings_of(quantization, engine, knobs)
    require_few(len(found))
    for name in (*(knobs or {}), *searched):
        dropped += [
            Dropped(label=f"{name} on {engine.name}", reason=f"{engine.name} has no such option")
            for engine in engines
            if not engine.lacking and name not in engine.options
        ]
    return Space(configurations=tuple(dict.fromkeys(found)), dropped=tuple(dropped))


def require_few(count: int) -> None:
    if count > MOST:
        raise UsageError(
            f"{count:,} configurations are too many to measure each",
            hint="fewer values of each --knob, or a range that is searched: --knob threads=1:8",
        )


def settings_of(
    quantization: str, engine: Engine, knobs: Mapping[str, tuple[Value, ...]] | None
) -> list[Configuration]:
    base = replace(ServeOptions(backend=engine.name), **engine.usual)
    usual = Configuration(quantization=quantization, options=base)
    if knobs is None:
        alone = [(name, value) for name, values in engine.tried.items() for value in values]
        return [usual, *(changed(usual, {name: value}) for name, value in alone if getattr(base, name) != value)]
    own = {name: values for name, values in knobs.items() if name in engine.options}
    return [changed(usual, dict(zip(own, values, strict=True))) for values in itertools.product(*own.values())]


def changed(usual: Configuration, values: Mapping[str, Value]) -> Configuration:
    return replace(usual, options=replace(usual.options, **values), changed=tuple(values.items()))  # type: ignore[arg-type]


def words(name: str, value: Value) -> str:
    if isinstance(value, bool):
        return f"{name} {'on' if value else 'off'}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def parse_knob(text: str) -> tuple[str, tuple[Value, ...] | Range]:
    """``threads=1,2`` → ("threads", (1, 2)), ``threads=1:8`` → a range, in the types of ServeOptions. Raises UsageError."""
    name, equals, listed = text.partition("=")
    name = name.strip().replace("-", "_").removeprefix("__")
    if name not in KNOBS:
        raise UsageError(f"no knob {name!r}", hint=nearest(name, list(KNOBS)))
    values = [word.strip() for word in listed.split(",") if word.strip()]
    if not equals or not values:
        raise UsageError(f"--knob {text!r} names no values", hint=f"--knob {name}=VALUE,VALUE")
    kind = next(str(f.type) for f in fields(ServeOptions) if f.name == name)
    if len(values) == 1 and ":" in values[0] and name in NUMERIC:
        low, high = (parse_value(name, word, kind) for word in values[0].split(":", 1))
        if not 0 < float(low) < float(high):
            raise UsageError(f"--knob {text!r} is no range", hint=f"--knob {name}=LOW:HIGH, both more than 0")
        return name, Range(low=float(low), high=float(high), whole=kind.startswith("int"))
    return name, tuple(dict.fromkeys(parse_value(name, word, kind) for word in values))


def positive(number: int) -> int:
    if number < 1:
        raise ValueError(f"{number} is less than one")
    return number


def parse_value(name: str, word: str, kind: str) -> Value:
    try:
        if kind.startswith("bool"):
            return SWITCHES[word.lower()]
        if kind.startswith("int"):
            return positive(int(word))
        return float(word) if kind.startswith("float") else word
    except (KeyError, ValueError):
        example = "on,off" if kind.startswith("bool") else "512,2048"
        raise UsageError(f"--knob {name}={word}: no value of it", hint=f"--knob {name}={example}") from None
