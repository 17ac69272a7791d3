"""One change at a time: what each step of a recipe gave over the one before it, and all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmopt.core.domain import Measurement
from llmopt.core.metrics import parse_metric, value_of
from llmopt.core.statistics import ratio_interval
from llmopt.recommend.candidates import merge
from llmopt.recommend.cost import TOKENS_OF_A_PRICE
from llmopt.recommend.curves import PEAKS, SECONDS_OF_AN_HOUR

# What a step may change, as ratio to the step before.
WATCHED = ("ttft_p50", "tps_p50", "output_tps", "requests_per_s", "peak_rss_bytes", "peak_vram_bytes")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of a recipe of steps: its runs, and what went wrong where something did."""

    name: str
    runs: tuple[Measurement, ...] = ()
    failure: str | None = None


def steps_document(name: str, steps: Sequence[Step], *, price_per_hour: float | None = None) -> dict[str, Any]:
    """JSON-ready: every step with its figures, its change against the last step that is good, and against the first.

    A step whose runs are all invalid keeps its figures and is compared with nothing.
    """
    rows: list[dict[str, Any]] = []
    good: list[tuple[dict[str, Any], Step]] = []
    for step in steps:
        row: dict[str, Any] = {"step": step.name, "failure": step.failure}
        if step.runs:
            row |= figures(step, price_per_hour) | {"change": {}, "since_start": {}}
            if row["verdict"]["status"] != "invalid":
                for word, (other, runs) in {"change": good[-1], "since_start": good[0]}.items() if good else ():
                    row[word] = changes(other, row, (runs, step))
                good.append((row, step))
        rows.append(row)
    newest = max((run for step in steps for run in step.runs), key=lambda run: run.started_at, default=None)
    return {
        "schema": 1,
        "kind": "steps",
        "name": name,
        "base": newest.artifact.get("base_name", "") if newest else "",
        "machine": asdict(newest.machine) if newest else {},
        "workload": newest.workload if newest else {},
        "price_per_hour": price_per_hour,
        "steps": rows,
    }


def figures(step: Step, price_per_hour: float | None) -> dict[str, Any]:
    found = merge(step.name, step.runs)
    return {
        "case": found.case,
        "metrics": found.metrics,
        "intervals": found.intervals,
        "quality": found.quality,
        "verdict": asdict(found.verdict),
        "runs": found.runs,
        "price_per_million_tokens": price(found.metrics.get("output_tps"), price_per_hour),
    }


def price(output_tps: float | None, price_per_hour: float | None) -> float | None:
    """Of a million output tokens at this throughput, in the currency of ``price_per_hour``."""
    if not output_tps or price_per_hour is None:
        return None
    return price_per_hour / SECONDS_OF_AN_HOUR / output_tps * TOKENS_OF_A_PRICE


def changes(before: dict[str, Any], after: dict[str, Any], runs: tuple[Step, Step]) -> dict[str, dict[str, Any]]:
    """By metric, the ratio of the two figures as they are shown, and its interval over runs.

    That is of geometric means, widened to hold the ratio; single runs and the highest peaks have none.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in WATCHED:
        metric, statistic = parse_metric(name)
        old, new = (value_of(row["metrics"], metric, statistic) for row in (before, after))
        if not old or new is None:
            continue
        known = None if name in PEAKS else ratio_interval(*(values(step, name) for step in runs))
        ratio = new / old
        low, high = (None, None) if known is None else (min(known[0], ratio), max(known[1], ratio))
        found[name] = {"ratio": ratio, "low": low, "high": high}
    return found


def values(step: Step, name: str) -> list[float]:
    """The figure of every usable run that has it."""
    metric, statistic = parse_metric(name)
    return merge(step.name, step.runs).point.values(metric.name, statistic)
