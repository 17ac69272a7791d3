"""What an engine says of itself while it loads: where its memory goes, and how much of a context that holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 1000, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """By the engine's own word; ``None`` where it says nothing.

    ``kv_cache_bytes`` is what is reserved, not what is used; ``kv_capacity_tokens`` how many tokens fit into it, and
    ``max_concurrency`` how many sequences of the full context length that makes.  ``activation_bytes`` is the engine's
    peak of working memory, ``baseline_bytes`` what it held before the model: interpreter, libraries, the GPU's context.
    Over all devices and processes.
    """

    weights_bytes: int | None = None
    kv_cache_bytes: int | None = None
    activation_bytes: int | None = None
    baseline_bytes: int | None = None
    kv_capacity_tokens: int | None = None
    max_concurrency: float | None = None


def numbers(pattern: str, lines: Sequence[str]) -> list[float]:
    """The first group of every line that matches, as a number."""
    return [float(match[1].replace(",", "")) for line in lines if (match := re.search(pattern, line))]


def sizes(pattern: str, lines: Sequence[str]) -> list[int]:
    """Bytes of every line that matches: the pattern's first group is the number, its second the unit (MiB, GB)."""
    found = [match for line in lines if (match := re.search(pattern, line))]
    return [round(float(match[1].replace(",", "")) * UNITS[match[2].upper()]) for match in found]


def total(values: Sequence[int]) -> int | None:
    """Their sum; ``None`` when nothing was said."""
    return sum(values) if values else None
