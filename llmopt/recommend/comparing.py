"""Who is better than whom in one thing, how surely, and the order that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.metrics import METRICS
from llmopt.core.statistics import Z_95
from llmopt.recommend.candidates import Candidate
from llmopt.recommend.curves import EVIDENCE, PEAKS
from llmopt.recommend.front import Axis
from llmopt.recommend.points import Point
from llmopt.recommend.scores import UNKNOWN
from llmopt.recommend.ties import FEWEST_RUNS, SURE, beats, beats_by_interval

EXACT = ("weights_bytes",)  # counted, not sampled: any difference is one


@dataclass(frozen=True, kw_only=True)
class Beats:
    """P(one is better than the next), and over what that was found; ``None`` where only the figures are known."""

    probability: float | None
    over: str | None
    equal: bool = False

    @property
    def sure(self) -> bool:
        """Where no interval is known nobody has surely won, however far apart the figures are."""
        return self.probability is not None and self.probability >= SURE

    @property
    def apart(self) -> bool:
        """Whether they are of unlike rank: where no interval tells, the figures do. Not known is not even."""
        return self.sure if self.probability is not None else not self.equal

    @property
    def words(self) -> str:
        known = self.probability is not None
        return f"P(better) {self.probability:.2f} over {self.over}" if known else "their figures are equal"


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

    One without an interval leads none but its equals: nothing says that others tie with it.  A candidate whose objective is
    unknown ties with nobody: its group is ``None``; nor does an estimate with a measurement.
    """
    groups: dict[str, int | None] = {}
    leader: Candidate | None = None
    number = 0
    for c in sorted(candidates, key=lambda c: (EVIDENCE.index(c.evidence), axis.cost(c), c.label, c.key)):
        if not math.isfinite(axis.cost(c)):
            groups[c.key] = None
            continue
        if leader is None or leader.evidence != c.evidence or probability(leader, c, axis).apart:
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
    return Beats(probability=None, over=None, equal=equal)


def judged_at(c: Candidate, metric: str) -> Point:
    """The point that a figure comes from: of a peak the load, up to the chosen one, at which it was reached."""
    if metric not in PEAKS:
        return c.point
    below = [p for p in c.points[: c.at + 1] if not p.invalid and p.value(metric) is not None]
    return max(below, key=lambda p: p.value(metric) or 0.0, default=c.point)


def surely_behind(shown: Sequence[Candidate], axes: Sequence[Axis]) -> dict[str, Candidate]:
    """By key: who of those on the front is nowhere worse and somewhere surely better.

    On the front is whoever has nobody: it may be behind another's figures that the data do not tell from its own.
    ``shown``: from the best on, in the order of ``in_order``; who is nowhere worse than another comes before it there.
    """
    import numpy as np

    rows = np.array([(EVIDENCE.index(c.evidence), *(a.cost(c) for a in axes)) for c in shown], np.float64)
    beaten = dict[str, Candidate]()
    for place in sorted(range(len(shown)), key=lambda n: tuple(rows[n])):  # whoever is ahead of one comes before it
        ahead = (rows <= rows[place]).all(axis=1) & (rows < rows[place]).any(axis=1)
        others = (shown[n] for n in np.flatnonzero(ahead) if shown[n].key not in beaten)
        by = next((other for other in others if surely_ahead(other, shown[place], axes)), None)
        if by is not None:
            beaten[shown[place].key] = by
    return beaten


def surely_ahead(one: Candidate, other: Candidate, axes: Sequence[Axis]) -> bool:
    """Somewhere; what is known is surely better than what is not."""
    costs = ((a, a.cost(one), a.cost(other)) for a in axes)
    return any(own < its and (not math.isfinite(its) or probability(one, other, a).sure) for a, own, its in costs)


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


def beats_next(one: Candidate, other: Candidate | None, axis: Axis) -> dict[str, Any] | None:
    if (
        other is None
        or not math.isfinite(axis.cost(one))
        or not math.isfinite(axis.cost(other))
        or one.evidence != other.evidence
    ):
        return None
    found = probability(one, other, axis)
    return {
        "label": other.label,
        "in": axis.name,
        "probability": found.probability,
        "over": found.over,
    }


def by_figures_alone(one: Candidate, other: Candidate | None, axis: Axis) -> str | None:
    """The sentence about an order that no interval bears out."""
    if other is None or METRICS[axis.metric].source == "quality":  # the base's distance to itself has no interval
        return None
    found = beats_next(one, other, axis)
    if found is None or found["over"] or axis.cost(one) == axis.cost(other):
        return None
    return f"before {found['label']} by its figure alone: no interval, run each three times"
