"""What of a workload is its load level, along which a load curve runs, and what all points of one curve have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from llmopt.core.domain import Workload, workload_identity

KEEPS_UP = 0.95  # of the asked rate completed: below it the server is past saturation
# How long a point lasts, with which draw, and what it is judged by: none of it is asked of a server at one moment.
OF_ONE_RUN = ("requests", "duration_s", "until", "warmup_requests", "seed", "slos")
LEVELS = {"closed": "concurrency", "open": "rate"}
DEFAULTS = asdict(Workload())


def whole(workload: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of what its record does not say: fields that were added later make nothing a stranger."""
    return DEFAULTS | dict(workload)


def shape(workload: Mapping[str, Any]) -> dict[str, Any]:
    """All that must be alike in two runs so that they may be points of curves which are compared; the loop is part of it."""
    w = whole(workload)
    idle = {"concurrency", LEVELS.get(w["load"], "concurrency"), *OF_ONE_RUN}
    return {name: value for name, value in workload_identity(w).items() if name not in idle}


def level(workload: Mapping[str, Any]) -> float | None:
    """Users of a closed loop, requests per second of an open one; ``None`` for a ramp and a trace, which have no single one."""
    w = whole(workload)
    value = w.get(LEVELS.get(w["load"], ""))
    return None if value is None else float(value)


def level_words(workload: Mapping[str, Any]) -> str:
    """``8 users``, ``12.5 requests/s``."""
    w, value = whole(workload), level(workload)
    if value is None:
        return "its ramp" if w["load"] == "ramp" else "its trace"
    return f"{value:g} user{'' if value == 1 else 's'}" if w["load"] == "closed" else f"{value:.4g} requests/s"


def past_saturation(rate: float, steady: float | None, doubts: Collection[str]) -> bool:
    """Whether an open loop at ``rate`` asked for more than the server can do: its latencies then depend on its length.

    ``steady``: requests per second of the steady window; ``doubts``: the codes of the run's verdict.
    """
    behind = "never_steady" in doubts if steady is None else steady < KEEPS_UP * rate
    return "ended_early" in doubts or behind
