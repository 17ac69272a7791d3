"""Constraints first, then the Pareto front, then the rank; every line with its reasons in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmopt.core.domain import Goal, Limit, Recommendation
from llmopt.core.limits import meets
from llmopt.core.metrics import METRICS
from llmopt.core.statistics import MIN_SAMPLES
from llmopt.core.units import show
from llmopt.recommend.candidates import Candidate

WORDS = {"throughput": "throughput", "latency": "request latency", "memory": "memory"}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that a configuration can be better in."""

    word: str
    metric: str
    statistic: str | None

    @property
    def sign(self) -> int:
        return 1 if METRICS[self.metric].better == "lower" else -1

    @property
    def name(self) -> str:
        return f"{self.metric}_{self.statistic}" if self.statistic else self.metric

    def cost(self, candidate: Candidate) -> float:
        """Lower is better; unknown is worst."""
        value = candidate.value(self.metric, self.statistic)
        return float("inf") if value is None else self.sign * value

    def show(self, candidate: Candidate) -> str:
        return show(candidate.value(self.metric, self.statistic), METRICS[self.metric].unit)


def memory_axis(candidates: Sequence[Candidate]) -> Axis:
    """GPU memory where any candidate uses some, else the memory of the process tree."""
    video = any(c.value("peak_vram_bytes") for c in candidates)
    return Axis(word="memory", metric="peak_vram_bytes" if video else "peak_rss_bytes", statistic=None)


def axes(candidates: Sequence[Candidate]) -> dict[str, Axis]:
    """The axes of the front."""
    return {
        "throughput": Axis(word="throughput", metric="output_tps", statistic=None),
        "latency": Axis(word="request latency", metric="e2e", statistic="p50"),
        "memory": memory_axis(candidates),
        "quality": Axis(word="closeness to the base", metric="kl", statistic=None),
    }


def recommend(candidates: Sequence[Candidate], goal: Goal) -> tuple[list[Recommendation], list[Recommendation]]:
    """(ranked, rejected), best objective first. Who is behind the Pareto front says so, and can never be first alone."""
    rejected = [(c, because) for c in candidates if (because := objections(c, goal))]
    refused = {c.key for c, _ in rejected}
    kept = [c for c in candidates if c.key not in refused]
    lines = [line(c, because=because) for c, because in sorted(rejected, key=lambda pair: pair[0].label)]
    if not kept:
        return [], lines
    axis = axes(kept)
    objective = axis[goal.optimize]
    dominators = {c.key: dominator(c, kept, list(axis.values())) for c in kept}
    order = sorted(
        kept, key=lambda c: (objective.cost(c), dominators[c.key] is not None, axis["quality"].cost(c), c.label)
    )
    groups = tie_groups(kept, objective)
    ranked = []
    for place, candidate in enumerate(order, 1):
        found = line(candidate, reasons=reasons(candidate, order, dominators[candidate.key], goal, axis, groups))
        ranked.append(
            replace(found, rank=place, tie_group=groups[candidate.key], on_front=dominators[candidate.key] is None)
        )
    return ranked, lines


def objections(candidate: Candidate, goal: Goal) -> tuple[str, ...]:
    """Why a candidate is out; empty when it keeps every limit."""
    found = []
    if candidate.verdict.status == "invalid":
        found += [f"its run is invalid: {d.message}" for d in candidate.verdict.reasons if d.severity == "invalid"]
    for limit in goal.limits:
        if (reason := broken(candidate, limit)) is not None:
            found.append(reason)
    return tuple(found)


def broken(candidate: Candidate, limit: Limit) -> str | None:
    value = candidate.value(limit.metric, limit.statistic)
    if value is None and limit.default:
        return None
    if value is None:
        return f"{limit.text}: not known ({why_unknown(candidate, limit)})"
    if meets(limit, value):
        return None
    return f"{limit.text}: measured {show(value, METRICS[limit.metric].unit)}"


def why_unknown(candidate: Candidate, limit: Limit) -> str:
    row = candidate.metrics.get(METRICS[limit.metric].key)
    needed = MIN_SAMPLES.get(int(limit.statistic[1:])) if limit.statistic and limit.statistic[0] == "p" else None
    if isinstance(row, dict) and needed and (row.get("n") or 0) < needed:
        return f"{row.get('n'):.0f} samples, {limit.statistic} needs {needed}"
    if METRICS[limit.metric].source == "quality":
        return "its quality was not measured"
    return "too many requests failed" if isinstance(row, dict) else "this server or machine does not tell"


def dominator(candidate: Candidate, all_: Sequence[Candidate], axes_: Sequence[Axis]) -> Candidate | None:
    """A candidate that is at least as good on every axis and better on one."""
    own = [a.cost(candidate) for a in axes_]
    for other in all_:
        costs = [a.cost(other) for a in axes_]
        if all(x <= y for x, y in zip(costs, own, strict=True)) and costs != own:
            return other
    return None


def tie_groups(candidates: Sequence[Candidate], objective: Axis) -> dict[str, int | None]:
    """Best first, those whose intervals overlap the leader of their group are one group: the data does not tell them apart.

    A candidate whose objective is unknown ties with nobody: its group is ``None``.
    """
    groups: dict[str, int | None] = {}
    leader: Candidate | None = None
    number = 0
    for candidate in sorted(candidates, key=lambda c: (objective.cost(c), c.label)):
        if not math.isfinite(objective.cost(candidate)):
            groups[candidate.key] = None
            continue
        if leader is None or not overlap(leader, candidate, objective):
            leader, number = candidate, number + 1
        groups[candidate.key] = number
    return groups


def overlap(a: Candidate, b: Candidate, axis: Axis) -> bool:
    one, two = a.intervals.get(axis.name), b.intervals.get(axis.name)
    if one is None or two is None:
        return axis.cost(a) == axis.cost(b)
    return bool(one["low"] <= two["high"] and two["low"] <= one["high"])


def reasons(
    candidate: Candidate, order: Sequence[Candidate], dominated_by: Candidate | None, goal: Goal, axis: dict[str, Axis],
    groups: dict[str, int | None],
) -> tuple[str, ...]:  # fmt: skip
    found = [headline(candidate, order, goal, axis)]
    group = groups[candidate.key]
    others = [c.label for c in order if group is not None and groups[c.key] == group and c is not candidate]
    if others:
        found.append(f"ties in {axis[goal.optimize].word} with {', '.join(others)}: their intervals overlap")
    best = [a.word for a in axis.values() if math.isfinite(own := a.cost(candidate)) and own == min(map(a.cost, order))]
    if best and len(order) > 1:
        found.append(f"best of all in {' and '.join(best)}")
    if dominated_by is not None:
        found.append(f"behind the front: {dominated_by.label} is at least as good in everything")
    known = [limit for limit in goal.limits if candidate.value(limit.metric, limit.statistic) is not None]
    if known:
        found.append("keeps " + ", ".join(kept(candidate, limit) for limit in known))
    if candidate.quality:
        low, high = candidate.quality["kl_mean_interval"]
        found.append(f"KL to the base {candidate.quality['kl_mean']:.4f} [{low:.4f}, {high:.4f}], "
                     f"{candidate.quality['top1_agreement']:.1%} of top tokens unchanged")  # fmt: skip
    if candidate.value("kl") is None:
        found.append("doubt: its quality was not measured, so nothing says that its answers are any good")
    if note := candidate.case["backend"].get("note"):
        found.append(f"note: {note}")
    found += [f"doubt: {d.message} ({d.remedy})" for d in candidate.verdict.reasons]
    return tuple(found)


def kept(candidate: Candidate, limit: Limit) -> str:
    return f"{limit.text} ({show(candidate.value(limit.metric, limit.statistic), METRICS[limit.metric].unit)})"


def headline(candidate: Candidate, order: Sequence[Candidate], goal: Goal, axis: dict[str, Axis]) -> str:
    """The objective with its interval, and its ratio to the unquantized base where that was measured."""
    objective = axis[goal.optimize]
    if not math.isfinite(objective.cost(candidate)):
        return f"{objective.word} not known"
    text = f"{objective.word} {objective.show(candidate)}"
    bounds = candidate.intervals.get(objective.name)
    if bounds is not None:
        unit = METRICS[objective.metric].unit
        text += f" [{show(bounds['low'], unit)}, {show(bounds['high'], unit)}]"
    base = next((c for c in order if c.case["artifact"].get("method") == "none" and c is not candidate), None)
    own, other = (c.value(objective.metric, objective.statistic) if c else None for c in (candidate, base))
    if base is not None and own and other:
        text += f", {own / other:.2f}× {base.label}"
    return text


def line(candidate: Candidate, *, reasons: tuple[str, ...] = (), because: tuple[str, ...] = ()) -> Recommendation:
    verdict: dict[str, Any] = asdict(candidate.verdict)
    return Recommendation(
        rank=None,
        tie_group=None,
        on_front=False,
        case=candidate.case,
        metrics=candidate.metrics,
        intervals=candidate.intervals,
        quality=candidate.quality,
        verdict=verdict,
        evidence="measured",
        runs=candidate.runs,
        reasons=reasons,
        because=because,
    )
