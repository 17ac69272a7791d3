"""Which engine loads which quantization on which kind of device: what was seen is data (``loading.toml``); this reads it.

Quantizing asks it before anything is made, serving before anything is started: so the two cannot contradict each other.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from llmopt.core.domain import Quantization
from llmopt.core.machine import this_machine

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


def device_here() -> str:
    """The kind of device that engines run on here: "cuda", or "cpu" where there is no GPU."""
    return "cuda" if this_machine().gpus else "cpu"
