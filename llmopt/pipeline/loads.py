"""One run, a sweep over rates, or a search for the highest: each point is a run with a record of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from llmopt.bench import sweep as sweeping
from llmopt.bench.sweep import Found, Point
from llmopt.bench.workload import check_workload
from llmopt.core.domain import Measurement, Workload
from llmopt.core.errors import ServerError, UsageError
from llmopt.pipeline.measuring import RunOptions, Subject, measure_and_save
from llmopt.pipeline.reporter import Reporter

SWEEP_REQUESTS = 128
SWEEP_SECONDS = 3.0  # a point lasts at least so long: a queue needs time to show
UNLOADED_REQUESTS = 8


def check_rates(*, sweep: bool, search: bool, slos: Sequence[str], turns: int, others: Sequence[object]) -> None:
    """Raise UsageError for options that do not go together with a sweep or a search."""
    if sweep and search:
        raise UsageError("--sweep and --search are different questions", hint="one of them")
    if any(other is not None for other in others):
        raise UsageError(
            "a sweep or search sets the rate itself", hint="leave out --concurrency, --ramp, --trace and --until"
        )
    if turns > 1:
        raise UsageError("a sweep or search counts requests, and --turns sends conversations", hint="leave out --turns")
    if search and not slos:
        raise UsageError("--search needs to know what must hold", hint="--slo 'ttft_p99<500ms'")
    sweeping.shares_of(slos if search else [])


def run(
    subject: Subject,
    workload: Workload,
    options: RunOptions,
    report: Reporter,
    *,
    sweep: bool = False,
    search: bool = False,
    requests: int | None = None,
    rate: float | None = None,
) -> tuple[list[Measurement], dict[str, Any] | None]:
    """The runs, and for a sweep or a search, which begin at ``rate``, the document about them."""
    if not sweep and not search:
        return [measure_and_save(subject, workload, options, report)], None
    points = Points(subject, workload, options, report, requests)
    first = rate or points.gentle_rate()
    if sweep:
        found = sweeping.sweep(lambda rate: points.measure(rate, requests or SWEEP_REQUESTS), first)
        return points.runs, sweep_document(workload, found)
    shares = sweeping.shares_of(workload.slos)
    count = requests or sweeping.requests_for(max(shares.values()))
    result = sweeping.search(lambda rate, times: points.measure(rate, count * times), first, shares)
    return points.runs, search_document(workload, result)


class Points:
    """Measures one rate after the other on a server that stays warm."""

    def __init__(
        self, subject: Subject, workload: Workload, options: RunOptions, report: Reporter, requests: int | None
    ) -> None:
        self.subject, self.workload, self.options, self.report = subject, workload, options, report
        self.requests = requests
        self.runs: list[Measurement] = []
        self.unloaded_s = self.unloaded()

    def unloaded(self) -> float:
        """Seconds of a request that has the server to itself; its record is none of the points."""
        alone = replace(
            self.workload,
            load="closed",
            rate=None,
            concurrency=1,
            requests=UNLOADED_REQUESTS,
            duration_s=None,
            max_concurrency=None,
        )
        run = measure_and_save(self.subject, alone, self.options, self.report, word="one request at a time")
        return float(run.metrics["e2e_s"]["p50"] or 1.0)

    def gentle_rate(self) -> float:
        """Half of what one user after the other gets through, to two digits."""
        rate = 0.5 / self.unloaded_s
        digits = 1 - math.floor(math.log10(rate))
        return round(rate, digits)

    def measure(self, rate: float, requests: int) -> Point | None:
        """One point; ``None`` for a rate that this client cannot send. A point at which nothing succeeds is past saturation."""
        lasting = requests if self.requests else max(requests, math.ceil(rate * SWEEP_SECONDS))
        shape = replace(self.workload, rate=rate, requests=None if self.workload.duration_s else lasting)
        try:
            check_workload(shape, self.options.workers)
        except UsageError as error:
            if not self.runs:
                raise
            self.report.say(error.message)
            return None
        try:
            run = measure_and_save(
                self.subject, shape, self.options, self.report, warm=True, word=f"{rate:.4g} requests/s",
                stop_when=sweeping.falls_behind(rate, self.unloaded_s),
            )  # fmt: skip
        except ServerError as error:
            self.report.say(f"{rate:.4g} requests/s: {error.message}")
            return Point(rate=rate, completed_rps=0.0, saturated=True)
        self.runs.append(run)
        return sweeping.point_of(rate, run)


def sweep_document(workload: Workload, points: Sequence[Point]) -> dict[str, Any]:
    kept = [p.rate for p in points if not p.saturated]
    lost = [p.rate for p in points if p.saturated]
    return {
        "kind": "sweep",
        "keeps_up_to": max(kept, default=None),
        "saturated_from": min(lost, default=None),
        "slos": list(workload.slos),
        "points": [asdict(p) for p in points],
    }


def search_document(workload: Workload, found: Found) -> dict[str, Any]:
    return {
        "kind": "search",
        "best": found.best,
        "not_shown_above": found.above,
        "shares": found.shares,
        "slos": list(workload.slos),
        "points": [asdict(p) for p in found.points],
    }
