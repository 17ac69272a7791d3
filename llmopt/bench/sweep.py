"""How much a server can take: rates up to saturation (``sweep``), and the highest that keeps the SLOs (``search``).

Both only decide which rate comes next; the caller measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.bench.load import Progress
from llmopt.core.domain import Limit
from llmopt.core.statistics import wilson

KEEPS_UP = 0.95  # of the asked rate completed: below it the server is past saturation
MOST_DOUBLINGS = 16
REFINEMENTS = 3
SEARCH_STEPS = 7
CLOSE_ENOUGH = 1.05
DEFAULT_SHARE = 0.95  # of requests that must meet an SLO which names no percentile
LONGEST_POINT = 3  # times the requests of a point that could not be decided


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one rate gave; ``met`` of ``planned`` requests kept every SLO."""

    rate: float
    completed_rps: float | None
    saturated: bool
    met: int = 0
    planned: int = 0
    run_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The end of a search: the highest rate shown to keep the SLOs, the lowest not shown to, and every point."""

    best: float | None
    above: float | None
    points: tuple[Point, ...]
    share: float


def sweep(measure: Callable[[float], Point], first: float) -> list[Point]:
    """Double the rate until the server falls behind, then measure between the last good rate and that one."""
    points, rate = [], first
    for _ in range(MOST_DOUBLINGS):
        points.append(measure(rate))
        if points[-1].saturated:
            break
        rate *= 2
    good = [p.rate for p in points if not p.saturated]
    bad = [p.rate for p in points if p.saturated]
    low, high = (max(good), min(bad)) if good and bad else (0.0, 0.0)
    for _ in range(REFINEMENTS if low else 0):
        middle = math.sqrt(low * high)
        points.append(measure(middle))
        low, high = (low, middle) if points[-1].saturated else (middle, high)
    return sorted(points, key=lambda p: p.rate)


def search(measure: Callable[[float, int], Point], first: float, share: float) -> Found:
    """The highest rate whose requests meet the SLOs, by bisection of its logarithm.

    A point passes when the lower end of the Wilson 95 % interval of the share that met them is at least ``share``, and
    fails when the upper end is below.  Between, it is measured again with more requests (``measure(rate, times)``); what
    is undecided then has not been shown to pass.
    """
    points: list[Point] = []

    def passes(rate: float) -> bool:
        met = planned = 0
        for times in (1, LONGEST_POINT):
            point = measure(rate, times)
            points.append(point)
            met, planned = met + point.met, planned + point.planned
            low, high = wilson(met, planned)
            if low >= share or high < share or point.saturated:
                break
        return low >= share and not point.saturated

    best, above, rate = None, None, first
    for _ in range(MOST_DOUBLINGS):
        if passes(rate):
            best, rate = rate, rate * 2 if above is None else math.sqrt(rate * above)
        else:
            above, rate = rate, rate / 2 if best is None else math.sqrt(best * rate)
        if best is not None and above is not None:
            break
        if rate < first / 2**6:
            break
    for _ in range(SEARCH_STEPS if best is not None and above is not None else 0):
        assert best is not None
        assert above is not None
        if above / best <= CLOSE_ENOUGH:
            break
        middle = math.sqrt(best * above)
        best, above = (middle, above) if passes(middle) else (best, middle)
    return Found(best=best, above=above, points=tuple(points), share=share)


def share_of(limits: Sequence[Limit]) -> float:
    """The share of requests that must keep the SLOs: the highest percentile that any of them names."""
    named = [int(x.statistic[1:]) / 100 for x in limits if x.statistic and x.statistic[1:].isdigit()]
    return max(named, default=DEFAULT_SHARE)


def requests_for(share: float) -> int:
    """So many requests that one failure in twice the allowed number still lets a point pass or fail by its interval."""
    n = 20
    while wilson(n, n)[0] < share:
        n = math.ceil(n * 1.1)
    return 2 * n


def falls_behind(rate: float, unloaded_s: float) -> Callable[[Progress], bool]:
    """Whether a point is past saturation while it still runs, so that it need not run to its end.

    In flight are rate × latency requests (Little's law); three times what the unloaded latency explains, and a third of
    all that came, is a queue that grows.
    """
    expected = rate * unloaded_s

    def behind(now: Progress) -> bool:
        inside = now.active + now.waiting
        return inside > 3 * expected + 20 and inside > (now.finished + inside) / 3

    return behind


def point_of(rate: float, run: Any) -> Point:
    """A stored run as a point of a sweep or a search."""
    metrics = run.metrics
    planned = metrics["requests_ok"] + metrics["requests_failed"]
    steady = metrics["requests_per_s"]
    never_steady = any(d.code == "no_steady_window" and "never settled" in d.message for d in run.verdict.reasons)
    stopped = any(d.code == "ended_early" for d in run.verdict.reasons)
    met = metrics["slo_attainment"]
    return Point(
        rate=rate,
        completed_rps=steady or metrics["requests_per_s_whole"],
        saturated=stopped
        or not metrics["requests_ok"]
        or (never_steady if steady is None else steady < KEEPS_UP * rate),
        met=0 if met is None else round(met * planned),
        planned=planned,
        run_id=run.run_id,
    )
