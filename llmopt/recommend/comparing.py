"""Who is better than whom in one thing, how surely, and the order that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.metrics import METRICS
from llmopt.core.statistics import Z_95
from llmopt.recommend.candidates import Candidate
from llmopt.recommend.front import Axis
from llmopt.recommend.points import EVIDENCE, PEAKS, Point
from llmopt.recommend.scores import UNKNOWN
from llmopt.recommend.ties import FEWEST_RUNS, SURE, beats, beats_by_interval

EXACT = ("weights_bytes",)  # counted, not sampled: any difference is one


@dataclass(frozen=True, kw_only=True)
class Beats:
    """P(one is better than the next), and over what that was found; ``None`` where only the figures are known."""

    probability: float
    over: str | None
    equal: bool = False

    @property
    def sure(self) -> bool:
        """Where no interval is known nobody has surely won, however far apart the figures are."""
        return self.over is not None and self.probability >= SURE

    @property
    def words(self) -> str:
        if self.over is not None:
            return f"P(better) {self.probability:.2f} over {self.over}"
        return "their figures are equal" if self.equal else "no interval: run each three times"


def in_order(
    candidates: Sequence[Candidate], wanted: Sequence[Axis], last: Callable[[Candidate], tuple[Any, ...]]
) -> list[Candidate]:
    """By the first objective; those that tie in it by the second, and so on. Measurements before estimates."""
    axis, *rest = wanted
    order = sorted(candidates, key=lambda c: (EVIDENCE.index(c.evidence), axis.cost(c), *last(c)))
    if not rest:
        return order
    groups = tie_groups(order, axis)
    found: list[Candidate] = []
    for number in dict.fromkeys(groups[c.key] for c in order):
        found += in_order([c for c in order if groups[c.key] == number], rest, last)
    return found


def tie_groups(candidates: Sequence[Candidate], axis: Axis) -> dict[str, int | None]:
    """Best first, those that the leader of their group does not surely beat are one group: the data does not tell them apart.

    A candidate whose objective is unknown ties with nobody: its group is ``None``; nor does an estimate with a measurement.
    """
    groups: dict[str, int | None] = {}
    leader: Candidate | None = None
    number = 0
    for c in sorted(candidates, key=lambda c: (EVIDENCE.index(c.evidence), axis.cost(c), c.label, c.key)):
        if not math.isfinite(axis.cost(c)):
            groups[c.key] = None
            continue
        if leader is None or leader.evidence != c.evidence or probability(leader, c, axis).sure:
            leader, number = c, number + 1
        groups[c.key] = number
    return groups


def probability(one: Candidate, other: Candidate, axis: Axis) -> Beats:
    """P(one is better): over runs where both have three, else from the intervals within them; else nothing is known of it."""
    lower = axis.lower_is_better
    if METRICS[axis.metric].source != "quality":
        values = [judged_at(c, axis.metric).values(axis.metric, axis.statistic) for c in (one, other)]
        if min(map(len, values)) >= FEWEST_RUNS:
            return Beats(probability=beats(*values, lower_is_better=lower), over="runs")
    figures = [c.value(axis.metric, axis.statistic) for c in (one, other)]
    bounds = [interval_of(c, axis) for c in (one, other)]
    if figures[0] is not None and figures[1] is not None and bounds[0] and bounds[1]:
        p = beats_by_interval(
            figures[0],
            (bounds[0]["low"], bounds[0]["high"]),
            figures[1],
            (bounds[1]["low"], bounds[1]["high"]),
            lower_is_better=lower,
        )
        over = " and ".join(sorted({b["over"] for b in bounds if b}))
        return Beats(probability=p, over=f"{over} within the run" if over == "blocks" else over)
    costs = axis.cost(one), axis.cost(other)
    equal = costs[0] == costs[1]
    if axis.metric in EXACT:
        return Beats(probability=0.5 if equal else float(costs[0] < costs[1]), over="the bytes of both")
    return Beats(probability=0.5, over=None, equal=equal)


def judged_at(c: Candidate, metric: str) -> Point:
    """The point that a figure comes from: of a peak the load, up to the chosen one, at which it was reached."""
    if metric not in PEAKS:
        return c.point
    below = [p for p in c.points[: c.at + 1] if not p.invalid and p.value(metric) is not None]
    return max(below, key=lambda p: p.value(metric) or 0.0, default=c.point)


def sure_dominator(c: Candidate, front: Sequence[Candidate], axes: Sequence[Axis]) -> Candidate | None:
    """Who of the front is nowhere worse and somewhere surely better; ``None`` where the data do not tell them apart."""
    own = [a.cost(c) for a in axes]
    for other in front:
        theirs = [a.cost(other) for a in axes]
        if (
            other.key != c.key
            and EVIDENCE.index(other.evidence) <= EVIDENCE.index(c.evidence)
            and all(t <= o for t, o in zip(theirs, own, strict=True))
            and any(
                math.isfinite(o) and t < o and probability(other, c, a).sure
                for t, o, a in zip(theirs, own, axes, strict=True)
            )
        ):
            return other
    return None


def interval_of(c: Candidate, axis: Axis) -> dict[str, Any] | None:
    if axis.metric != "task_score":
        return c.interval(axis.name)
    score = c.task_scores.get(axis.statistic or "", UNKNOWN)
    if score.value is None or score.stderr is None:
        return None
    half = (
        Z_95 * score.stderr
    )  # no record keeps the single answers: two artifacts cannot be paired question by question
    return {"low": score.value - half, "high": score.value + half, "over": "questions, not paired"}


def beats_next(one: Candidate, other: Candidate, axis: Axis) -> dict[str, Any] | None:
    if not math.isfinite(axis.cost(one)) or not math.isfinite(axis.cost(other)) or one.evidence != other.evidence:
        return None
    found = probability(one, other, axis)
    return {
        "label": other.label,
        "in": axis.name,
        "probability": found.probability if found.over else None,
        "over": found.over,
    }
