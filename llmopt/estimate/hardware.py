"""Devices by name, out of ``hardware.toml``."""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmopt.core.errors import UsageError, nearest

TABLE = Path(__file__).with_name("hardware.toml")
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Device:
    """``kind``: gpu, shared (one memory for processor and GPU) or cpu; ``tflops``: dense, by number type.

    ``link_bytes_per_s``: to others of its kind, in one direction; ``checked``: when the figures were looked up, empty for
    those from memory.
    """

    key: str
    name: str
    kind: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    tflops: dict[str, float] = field(default_factory=dict)
    link_bytes_per_s: float | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""
    date: str = ""
    checked: str = ""


@functools.cache
def devices() -> dict[str, Device]:
    """All that are known, in the order of the file."""
    rows: dict[str, dict[str, Any]] = tomllib.loads(TABLE.read_text())
    return {
        key: Device(
            key=key, name=row["name"], kind=row["kind"], memory_bytes=int(row["memory_gib"] * GIB),
            bandwidth_bytes_per_s=row["bandwidth_gbs"] * 1e9, tflops=dict(row["tflops"]),
            aliases=tuple(row.get("aliases", ())), source=row["source"], date=row["date"],
            link_bytes_per_s=row["link_gbs"] * 1e9 if "link_gbs" in row else None, checked=row.get("checked") or "",
        )
        for key, row in rows.items()
    }  # fmt: skip


def device(name: str) -> Device:
    """By its key, an alias, or its full name, with or without dashes; raises UsageError with the nearest names."""
    known = devices()
    wanted = plain(name).removeprefix("nvidia").removeprefix("geforce").removeprefix("amd")
    for found in known.values():
        if wanted in map(plain, (found.key, *found.aliases, found.name)):
            return found
    hint = nearest(name, [alias for one in known.values() for alias in (one.key, *one.aliases)])
    if hint.startswith("known:"):
        hint = "llmopt estimate --gpu list names them; or give its memory: --vram 24GiB"
    raise UsageError(f"unknown GPU {name!r}", hint=hint)


def plain(name: str) -> str:
    """Letters and digits alone, 80 GB and 80g as one."""
    return re.sub(r"(\d+)gi?b?$", r"\1g", "".join(letter for letter in name.lower() if letter.isalnum()))
