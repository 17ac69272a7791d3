"""What the process of the model tells the process that speaks HTTP; both parts of hf_server.py know it."""

from __future__ import annotations

import os
import sys
import time
import traceback
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
LAST_NEWS_S = 0.2  # for what was delivered last to reach its clients


def die_of(error: BaseException | None) -> None:
    """End this process with what went wrong as its last words: what can answer no more must not look alive."""
    if error is None:
        print("RuntimeError: the generating thread ended", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    time.sleep(LAST_NEWS_S)
    os._exit(1)
