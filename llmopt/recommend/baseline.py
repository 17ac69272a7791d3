"""Before and after: what a configuration gives over the one that stands today, by default the 16-bit base on its engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmopt.core.errors import UsageError, nearest
from llmopt.core.metric_table import name_of
from llmopt.core.metrics import parse_metric
from llmopt.core.statistics import ratio_interval
from llmopt.recommend.candidates import CONTEXT, Candidate
from llmopt.recommend.curves import PEAKS

# By what it is compared, in the words of the issue: latency, throughput, memory, cost, quality.
WATCHED = {
    "latency": ("ttft_p50", "ttft_p95", "tpot_p50", "e2e_p50"),
    "throughput": ("tps_p50", "output_tps", "requests_per_s"),
    "memory": ("peak_vram_bytes", "peak_rss_bytes"),
    "cost": ("cost",),
    "quality": ("kl", "top1", "perplexity"),
}


def named(candidates: Sequence[Candidate], wanted: str) -> Candidate:
    """By label, by quantization where only one has it, or by key. Raises UsageError, for one without a valid run too."""
    words = wanted.strip().lower()
    exact = [
        c for c in candidates if words in (c.label.lower(), c.key) or (len(words) >= 6 and c.key.startswith(words))
    ]
    loose = [c for c in candidates if words in (c.name.lower(), str(c.identity["name"]).lower())]
    found = exact or loose
    if len(found) == 1 and not found[0].invalid:
        return found[0]
    if len(found) == 1:
        why = "; ".join(d.message for d in found[0].verdict.reasons if d.severity == "invalid")
        raise UsageError(f"--baseline {wanted!r} has no valid run: {why}", hint="measure it again: llmopt bench")
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
    """The base on the same engine, with the options most like its own; else on another engine; else none.

    Of runs that were forced together only a base of the same model, machine and workload is one.
    """
    if candidate.artifact.get("method") == "none":
        return None
    context = candidate.identity.get("context")
    bases = [c for c in bases if c.identity.get("context") == context]
    if not bases:
        return None

    def unlike(base: Candidate) -> tuple[int, str]:
        own, other = candidate.identity["serve"], base.identity["serve"]
        return sum(own.get(n) != other.get(n) for n in {*own, *other}), base.label

    return min([c for c in bases if c.backend == candidate.backend] or bases, key=unlike)


def unlike_context(one: Candidate, other: Candidate) -> list[str]:
    """What runs that were forced together differ in, in words."""
    own, others = (c.identity.get("context", {}) for c in (one, other))
    return [words for name, words in CONTEXT.items() if own.get(name) != others.get(name)]


def common_places(baseline: Candidate, candidate: Candidate) -> tuple[int, int] | None:
    """Where both were measured under one load: the candidate's own, else the highest before saturation, else the highest.

    A latency of 16 users is no change of one of 1 user: without a load in common nothing is compared but what no load changes.
    """
    theirs, own = ({p.load: place for place, p in enumerate(c.points) if not p.invalid} for c in (baseline, candidate))
    both = [load for load in own if load in theirs]
    if candidate.point.load in both:
        return theirs[candidate.point.load], own[candidate.point.load]
    calm = [x for x in both if not (candidate.points[own[x]].saturated or baseline.points[theirs[x]].saturated)]
    highest = (calm or both)[-1:]
    return (theirs[highest[0]], own[highest[0]]) if highest else None


def against(baseline: Candidate, candidate: Candidate) -> dict[str, Any]:
    """JSON-ready: ``changes`` at one load that both were measured at; ``own_points``: each where it is judged, if elsewhere.

    ``load`` is ``None`` where they have none in common.  ``unlike``: what was forced together.
    """
    common, own = common_places(baseline, candidate), (baseline.at, candidate.at)
    return {
        "label": baseline.label,
        "key": baseline.key,
        "unlike": unlike_context(baseline, candidate),
        "load": candidate.points[common[1]].load if common else None,
        "changes": changes(baseline, candidate, common),
        "own_points": None
        if common == own
        else {
            "load_before": baseline.point.load,
            "load_after": candidate.point.load,
            "changes": changes(baseline, candidate, own),
        },
    }


def changes(baseline: Candidate, candidate: Candidate, places: tuple[int, int] | None) -> dict[str, dict[str, Any]]:
    return {
        name: found
        for group, names in WATCHED.items()
        if places is not None or group == "quality"
        for name in names
        if (found := change(baseline, candidate, places or (0, 0), group, name)) is not None
    }


def change(
    baseline: Candidate, candidate: Candidate, places: tuple[int, int], group: str, name: str
) -> dict[str, Any] | None:
    """``ratio`` is after / before, of the figures as they are shown.

    With runs to repeat it its interval is of their geometric means, widened to hold the ratio that it stands beside; of
    quality and of the highest peaks there is none.
    """
    metric, statistic = parse_metric(name)
    sides = list(zip((baseline, candidate), places, strict=True))
    before, after = (c.value_at(place, metric.name, statistic) for c, place in sides)
    if before is None or after is None:
        return None
    bounds = None
    if group != "quality" and name not in PEAKS:
        bounds = ratio_interval(*(c.points[place].values(metric.name, statistic) for c, place in sides))
    ratio = after / before if before else None
    low, high = (min(bounds[0], ratio), max(bounds[1], ratio)) if bounds and ratio is not None else (None, None)
    return {
        "of": group, "before": before, "after": after, "difference": after - before, "ratio": ratio,
        "low": low, "high": high, "over": None if low is None else "runs",
        "evidence": max((c.points[place].evidence for c, place in sides), key=("measured", "interpolated", "estimated").index),
    }  # fmt: skip


def ratio_words(baseline: Candidate, candidate: Candidate, metric: str, statistic: str | None) -> str:
    """``, 2.00× bf16 on hf at 4 users``; empty where that is not known at one load."""
    places = common_places(baseline, candidate)
    if places is None or baseline.key == candidate.key:
        return ""
    found = change(baseline, candidate, places, "", name_of(metric, statistic))
    if found is None or not found["ratio"]:
        return ""
    where = f" at {candidate.points[places[1]].load}" if places != (baseline.at, candidate.at) else ""
    unlike = unlike_context(baseline, candidate)
    return f", {found['ratio']:.2f}× {baseline.label}{where}" + (f" ({', '.join(unlike)})" if unlike else "")
