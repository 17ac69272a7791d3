"""How much a server can take: rates up to saturation (``sweep``), and the highest that keeps the SLOs (``search``).

Both only decide which rate comes next; the caller measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmopt.bench.load import Progress
from llmopt.core.domain import Measurement
from llmopt.core.errors import UsageError
from llmopt.core.limits import parse_limit
from llmopt.core.load_level import past_saturation
from llmopt.core.statistics import wilson

MOST_DOUBLINGS = 16
REFINEMENTS = 3
SEARCH_STEPS = 7
CLOSE_ENOUGH = 1.05
DEFAULT_SHARE = 0.95  # of requests that must meet an SLO which names no percentile
LONGEST_POINT = 3  # times the requests of a point that could not be decided


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one rate gave; ``met`` says how many of ``planned`` requests kept each SLO."""

    rate: float
    completed_rps: float | None
    saturated: bool
    met: dict[str, int] = field(default_factory=dict)
    planned: int = 0
    run_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The end of a search: the highest rate shown to keep the SLOs, the lowest not shown to, and every point."""

    best: float | None
    above: float | None
    points: tuple[Point, ...]
    shares: dict[str, float]


def sweep(measure: Callable[[float], Point | None], first: float) -> list[Point]:
    """Double the rate until the server falls behind, then measure between the last good rate and that one.

    ``measure`` gives ``None`` for a rate that the client cannot send: the sweep ends below it.
    """
    points, rate = list[Point](), first
    for _ in range(MOST_DOUBLINGS):
        point = measure(rate)
        if point is None:
            break
        points.append(point)
        if point.saturated:
            break
        rate *= 2
    good = [p.rate for p in points if not p.saturated]
    bad = [p.rate for p in points if p.saturated]
    low, high = (max(good), min(bad)) if good and bad else (0.0, 0.0)
    for _ in range(REFINEMENTS if low else 0):
        middle = math.sqrt(low * high)
        point = measure(middle)
        if point is None:
            break
        points.append(point)
        low, high = (low, middle) if point.saturated else (middle, high)
    return sorted(points, key=lambda p: p.rate)


def search(measure: Callable[[float, int], Point | None], first: float, shares: dict[str, float]) -> Found:
    """The highest rate whose requests meet the SLOs, by bisection of its logarithm.

    ``shares`` says what part of the requests must meet each SLO.  A point passes when for every SLO the lower end of the
    Wilson 95 % interval of that part is high enough, and fails when for one the upper end is too low.  Between, it is
    measured again with more requests (``measure(rate, times)``); what is undecided then has not been shown to pass.
    """
    points: list[Point] = []

    def passes(rate: float) -> bool:
        pooled: list[Point] = []
        for times in (1, LONGEST_POINT):
            point = measure(rate, times)
            if point is None:
                return False
            points.append(point)
            pooled.append(point)
            decided = verdict_of(pooled, shares)
            if decided is not None:
                return decided
        return False

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
    return Found(best=best, above=above, points=tuple(points), shares=shares)


def verdict_of(points: Sequence[Point], shares: dict[str, float]) -> bool | None:
    """Whether the runs at one rate, pooled, keep every SLO; ``None`` while that is not decided."""
    if any(p.saturated for p in points):
        return False
    planned = sum(p.planned for p in points)
    intervals = {slo: wilson(sum(p.met.get(slo, 0) for p in points), planned) for slo in shares}
    if any(intervals[slo][1] < share for slo, share in shares.items()):
        return False
    return True if all(intervals[slo][0] >= share for slo, share in shares.items()) else None


def shares_of(slos: Sequence[str]) -> dict[str, float]:
    """What part of the requests must keep each SLO: the percentile it names, else ``DEFAULT_SHARE``. Raises UsageError."""
    shares = {}
    for slo in slos:
        statistic = parse_limit(slo, bare_distribution=True).statistic
        if statistic is not None and not statistic[1:].isdigit():
            raise UsageError(
                f"{slo!r}: a search counts requests, and {statistic} is none of them",
                hint="a percentile: ttft_p99<500ms",
            )
        shares[slo] = int(statistic[1:]) / 100 if statistic else DEFAULT_SHARE
    return shares


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


def point_of(rate: float, run: Measurement) -> Point:
    """A stored run as a point of a sweep or a search."""
    metrics = run.metrics
    codes = {doubt.code for doubt in run.verdict.reasons}
    steady = metrics["requests_per_s"]
    return Point(
        rate=rate,
        completed_rps=steady or metrics["requests_per_s_whole"],
        saturated=past_saturation(rate, steady, codes),
        met=metrics["slos_met"] or {},
        planned=metrics["requests_ok"] + metrics["requests_failed"],
        run_id=run.run_id,
    )
