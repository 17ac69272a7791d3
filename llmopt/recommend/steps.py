"""One change at a time: what each step of a recipe gave over the one before it, and all of them together."""

from __future__ import annotations

import statistics as st
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmopt.core.domain import Measurement
from llmopt.core.metrics import parse_metric, value_of
from llmopt.core.statistics import ratio_interval
from llmopt.recommend.candidates import merge

# What a step may change, as ratio to the step before.
WATCHED = ("ttft_p50", "tps_p50", "output_tps", "requests_per_s", "peak_rss_bytes", "peak_vram_bytes")
TOKENS_OF_A_PRICE = 1e6
SECONDS_OF_AN_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of a recipe of steps: its runs, or why there are none."""

    name: str
    runs: tuple[Measurement, ...] = ()
    failure: str | None = None


def steps_document(name: str, steps: Sequence[Step], *, price_per_hour: float | None = None) -> dict[str, Any]:
    """JSON-ready: every step with its figures, its change against the last step that ran, and against the first."""
    ran = [step for step in steps if step.runs]
    rows, before = list[dict[str, Any]](), None
    for step in steps:
        row: dict[str, Any] = {"step": step.name, "failure": step.failure}
        if step.runs:
            row |= figures(step, price_per_hour)
            row["change"] = changes(before, step) if before else {}
            row["since_start"] = changes(ran[0], step) if before else {}
            before = step
        rows.append(row)
    newest = ran[-1].runs[-1] if ran else None
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


def changes(before: Step, after: Step) -> dict[str, dict[str, float | None]]:
    """Ratio of the medians over runs, by metric, with its interval where both sides have three runs or more."""
    found: dict[str, dict[str, float | None]] = {}
    for name in WATCHED:
        old, new = values(before, name), values(after, name)
        if not old or not new or st.median(old) <= 0:
            continue
        low, high = ratio_interval(old, new) or (None, None)
        found[name] = {"ratio": st.median(new) / st.median(old), "low": low, "high": high}
    return found


def values(step: Step, name: str) -> list[float]:
    """The figure of every run that has it and is not invalid."""
    metric, statistic = parse_metric(name)
    usable = [run for run in step.runs if run.verdict.status != "invalid"] or step.runs
    return [v for run in usable if (v := value_of(run.metrics, metric, statistic)) is not None]
