"""Will that engine load this quantization here?  What was seen is data (``loading.toml``); this reads it."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from llmopt.core.domain import Quantization
from llmopt.core.errors import UsageError, nearest
from llmopt.quantize import Method, Route

TABLE = Path(__file__).with_name("loading.toml")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of what was seen. ``seen``: "tried" by us or "documented" by the engine."""

    engine: str
    device: str
    quantizations: tuple[str, ...]
    formats: tuple[str, ...]
    loads: bool
    seen: str
    version: str = ""
    note: str = ""

    def matches(self, engine: str, device: str, quantization: Quantization) -> bool:
        return (
            self.engine == engine
            and self.device in ("any", device)
            and quantization.format in self.formats
            and any(fnmatch(quantization.name, pattern) for pattern in self.quantizations)
        )

    @property
    def evidence(self) -> str:
        """In words; what an engine documents is no more than that, and has no version that we saw it with."""
        if self.seen == "tried":
            return f"tried with {self.engine} {self.version}"
        return f"documented for {self.engine}, not tried by us"


@functools.cache
def entries() -> tuple[Entry, ...]:
    rows = tomllib.loads(TABLE.read_text())["entry"]
    return tuple(
        Entry(**row | {"quantizations": tuple(row["quantizations"]), "formats": tuple(row["formats"])}) for row in rows
    )


def engines() -> list[str]:
    return list(dict.fromkeys(entry.engine for entry in entries()))


def seen(engine: str, device: str, quantization: Quantization) -> Entry | None:
    """What is known of this combination; ``None`` when nothing is."""
    return next((e for e in entries() if e.matches(engine, device, quantization)), None)


def choose_route(method: Method, layout: str | None, engine: str | None, device: str) -> tuple[Route, Entry | None]:
    """The route that writes the wanted layout, else the first that the engine is known to load, else the first.

    ``device``: "cpu" or "cuda".  Raises UsageError when the engine is known not to load what would be made.
    """
    if engine is None:
        return method.route(layout), None
    if engine not in engines():
        raise UsageError(f"unknown backend {engine!r}", hint=nearest(engine, engines()))
    routes = [method.route(layout)] if layout else list(method.routes)
    known = [(route, seen(engine, device, method.as_written(route))) for route in routes]
    for route, entry in known:
        if entry is not None and entry.loads:
            return route, entry
    refused = [entry for _, entry in known if entry is not None]
    if len(refused) < len(known):  # nothing speaks against one of them
        return next((route, None) for route, entry in known if entry is None)
    entry = refused[0]
    raise UsageError(
        f"{engine} does not load {method.name} on this machine ({entry.evidence}): {entry.note}",
        hint=f"another --quant, another --for: {' or '.join(able(method, device)) or 'no engine is known'}",
    )


def able(method: Method, device: str) -> Sequence[str]:
    """The engines that are known to load one of the method's layouts on such a device."""
    layouts = [method.as_written(route) for route in method.routes]
    return [e for e in engines() if any((entry := seen(e, device, q)) is not None and entry.loads for q in layouts)]
