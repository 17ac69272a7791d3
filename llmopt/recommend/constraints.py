"""Limits and goals from the words on the command line."""

from __future__ import annotations

from dataclasses import replace

from llmopt.core.domain import Goal
from llmopt.core.errors import UsageError, nearest
from llmopt.core.limits import parse_limit

OBJECTIVES = ("throughput", "latency", "memory")
DEFAULT_MAX_KL = 0.1
MEMORY_LIMIT = "memory<="


def make_goal(
    slos: list[str], *, max_memory: str | None = None, max_kl: float | None = None, optimize: str = "throughput"
) -> Goal:  # fmt: skip
    """All limits in one goal; without ``max_kl`` the default of this page holds, and the report says so."""
    if optimize not in OBJECTIVES:
        raise UsageError(f"unknown objective {optimize!r}", hint=nearest(optimize, list(OBJECTIVES)))
    limits = [parse_limit(text) for text in slos]
    if max_memory is not None:
        limits.append(replace(parse_limit(f"peak_rss_bytes<={max_memory}"), text=f"{MEMORY_LIMIT}{max_memory}"))
    if max_kl is not None and max_kl < 0:
        raise UsageError("--max-kl must not be negative", hint="--max-kl 0.05")
    if max_kl is not None:
        limits.append(parse_limit(f"kl<={max_kl}"))
    elif not any(limit.metric == "kl" for limit in limits):
        limits.append(replace(parse_limit(f"kl<={DEFAULT_MAX_KL}"), default=True))
    return Goal(limits=tuple(limits), optimize=optimize)  # type: ignore[arg-type]


def on_memory(goal: Goal, metric: str) -> Goal:
    """The goal with its memory limit on that metric: GPU memory where the candidates have any, else the process tree's."""
    limits = (replace(x, metric=metric) if x.text.startswith(MEMORY_LIMIT) else x for x in goal.limits)
    return replace(goal, limits=tuple(limits))
