"""What the process of the model tells the process that speaks HTTP; both parts of hf_server.py know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class News:
    """All tokens of a request so far. ``scheduled_s``: when its batch began, on CLOCK_MONOTONIC; ``None``: not known."""

    request: str
    tokens: list[int]
    finished: bool
    error: str | None = None
    scheduled_s: float | None = None
    cached: int = 0


Deliver = Callable[[list[News]], None]
