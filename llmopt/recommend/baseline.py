"""Before and after: what a configuration gives over the one that stands today, by default the 16-bit base on its engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmopt.core.errors import UsageError, nearest
from llmopt.core.metrics import parse_metric
from llmopt.core.statistics import ratio_interval
from llmopt.recommend.candidates import Candidate

# By what it is compared, in the words of the issue: latency, throughput, memory, cost, quality.
WATCHED = {
    "latency": ("ttft_p50", "ttft_p95", "tpot_p50", "e2e_p50"),
    "throughput": ("tps_p50", "output_tps", "requests_per_s"),
    "memory": ("peak_vram_bytes", "peak_rss_bytes"),
    "cost": ("cost",),
    "quality": ("kl", "top1", "perplexity"),
}


def named(candidates: Sequence[Candidate], wanted: str) -> Candidate:
    """By label, by quantization where only one has it, or by key. Raises UsageError."""
    words = wanted.strip().lower()
    exact = [
        c for c in candidates if words in (c.label.lower(), c.key) or (len(words) >= 6 and c.key.startswith(words))
    ]
    loose = [c for c in candidates if words in (c.name.lower(), str(c.identity["name"]).lower())]
    found = exact or loose
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"--baseline {wanted!r} could be {len(found)} configurations",
            hint=f"one of: {'; '.join(c.label for c in found[:5])}",
        )
    raise UsageError(
        f"--baseline {wanted!r}: no run that can be compared is of that",
        hint=nearest(wanted, [c.label for c in candidates]),
    )


def bases(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The unquantized ones with a valid point."""
    return [c for c in candidates if c.artifact.get("method") == "none" and not c.invalid]


def default_baseline(candidate: Candidate, bases: Sequence[Candidate]) -> Candidate | None:
    """The base on the same engine, with the options most like its own; else on another engine; else none."""
    if not bases or candidate.artifact.get("method") == "none":
        return None

    def unlike(base: Candidate) -> tuple[int, str]:
        own, other = candidate.identity["serve"], base.identity["serve"]
        return sum(own.get(n) != other.get(n) for n in {*own, *other}), base.label

    return min([c for c in bases if c.backend == candidate.backend] or bases, key=unlike)


def against(baseline: Candidate, candidate: Candidate) -> dict[str, Any]:
    """JSON-ready: each at its own point. ``ratio`` is after / before; its interval is over runs, where both have two."""
    return {
        "label": baseline.label,
        "key": baseline.key,
        "load_before": baseline.point.load,
        "load_after": candidate.point.load,
        "changes": {
            name: found
            for group, names in WATCHED.items()
            for name in names
            if (found := change(baseline, candidate, group, name)) is not None
        },
    }


def change(baseline: Candidate, candidate: Candidate, group: str, name: str) -> dict[str, Any] | None:
    metric, statistic = parse_metric(name)
    before, after = (c.value(metric.name, statistic) for c in (baseline, candidate))
    if before is None or after is None:
        return None
    bounds = None
    if group != "quality":
        bounds = ratio_interval(*(c.point.values(metric.name, statistic) for c in (baseline, candidate)))
    low, high = bounds or (None, None)
    return {
        "of": group, "before": before, "after": after, "difference": after - before, "ratio": after / before if before else None,
        "low": low, "high": high, "over": "runs" if bounds else None,
        "evidence": max(baseline.evidence, candidate.evidence, key=("measured", "interpolated", "estimated").index),
    }  # fmt: skip
