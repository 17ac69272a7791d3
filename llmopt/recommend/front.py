"""What a configuration can be better in, who is behind whom, and where the front bends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmopt.core.domain import Goal
from llmopt.core.metric_table import name_of
from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.units import show
from llmopt.recommend.candidates import Candidate
from llmopt.recommend.curves import EVIDENCE

# What a step on the front is paid with, for the knee.
AGAINST = {
    "throughput": "latency",
    "latency": "throughput",
    "memory": "throughput",
    "quality": "throughput",
    "cost": "latency",
}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that a configuration can be better in."""

    word: str
    metric: str
    statistic: str | None
    turned: bool = False  # a score that is better when lower: perplexity

    @property
    def lower_is_better(self) -> bool:
        return self.turned or METRICS[self.metric].better == "lower"

    @property
    def name(self) -> str:
        return name_of(self.metric, self.statistic)

    def cost(self, candidate: Candidate) -> float:
        """Lower is better; unknown is worst."""
        value = candidate.value(self.metric, self.statistic)
        return math.inf if value is None else value if self.lower_is_better else -value

    def show(self, candidate: Candidate) -> str:
        return show(candidate.value(self.metric, self.statistic), METRICS[self.metric].unit)


def memory_axis(candidates: Sequence[Candidate]) -> Axis:
    """GPU memory where any candidate uses some, else the memory of the process tree."""
    video = any(c.value("peak_vram_bytes") for c in candidates)
    return Axis(word="memory", metric="peak_vram_bytes" if video else "peak_rss_bytes", statistic=None)


def quality_axis(candidates: Sequence[Candidate]) -> Axis:
    """The score that ranks a task which all were given, where there is one: near the base KL rejects, but does not rank."""
    tasks = [
        {name for name, score in c.task_scores.items() if score.primary}
        for c in candidates
        if c.curves.table.vocabulary["tasks"] != [""]
    ]
    common = sorted(set.intersection(*tasks)) if tasks and len(tasks) == len(candidates) else []
    if common:
        return score_axis(candidates, common[0])
    return Axis(word="closeness to the base", metric="kl", statistic=None)


def score_axis(candidates: Sequence[Candidate], name: str) -> Axis:
    directions = {score.higher_is_better for c in candidates if (score := c.task_scores.get(name)) is not None}
    return Axis(word=f"score in {name}", metric="task_score", statistic=name, turned=directions == {False})


def axes(candidates: Sequence[Candidate], goal: Goal | None = None) -> dict[str, Axis]:
    """The axes of the front, and those that the goal names beside them."""
    found = {
        "throughput": Axis(word="throughput", metric="output_tps", statistic=None),
        "latency": Axis(word="request latency", metric="e2e", statistic="p50"),
        "memory": memory_axis(candidates),
        "quality": quality_axis(candidates),
    }
    for name in goal.objectives if goal is not None else ():
        if name == "cost":
            found["cost"] = Axis(word="cost of 1M output tokens", metric="cost", statistic=None)
        elif name not in found:
            metric, statistic = parse_metric(name)
            if metric.name == "task_score" and statistic is not None:
                found[name] = score_axis(candidates, statistic)
            else:
                found[name] = Axis(word=name, metric=metric.name, statistic=statistic)
    return found


def dominators(candidates: Sequence[Candidate], axes: Sequence[Axis]) -> dict[str, Candidate | None]:
    """For each, by key, somebody of the front who is at least as good on every axis and better on one; else ``None``.

    An estimate is no reason against a measurement.  Nobody is behind one that comes later in the order of the first axis, so
    the first that is left stands on the front, and all whom it is ahead of go with it.
    """
    import numpy as np

    costs = {c.key: (EVIDENCE.index(c.evidence), *(a.cost(c) for a in axes)) for c in candidates}
    order = sorted(candidates, key=lambda c: (costs[c.key], c.label))
    rows = np.array([costs[c.key] for c in order], np.float64).reshape(len(order), len(axes) + 1)
    found: dict[str, Candidate | None] = {}
    left = np.arange(len(order))
    while len(left):
        first, rest = left[0], left[1:]
        found[order[first].key] = None
        behind = (rows[first] <= rows[rest]).all(axis=1) & (rows[first, 1:] < rows[rest, 1:]).any(axis=1)
        found |= {order[place].key: order[first] for place in rest[behind]}
        left = rest[~behind]
    return found


def knee(front: Sequence[Candidate], one: Axis, other: Axis) -> Candidate | None:
    """Where a front bends most: farthest from the chord between its ends, both axes scaled to the span of the front.

    The definition of Das, "On characterizing the 'knee' of the Pareto curve", Structural Optimization 18 (1999), in two
    dimensions.  ``None`` where fewer than three stand on the front of these two axes, and where nothing bends inwards.
    """
    points = sorted(((one.cost(c), other.cost(c), c.label, c) for c in front), key=lambda p: p[:3])
    points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    lowest, edge = math.inf, []
    for point in points:  # the front in these two alone
        if point[1] < lowest:
            lowest = point[1]
            edge.append(point)
    if len(edge) < 3:
        return None
    (left, top, *_), (right, bottom, *_) = edge[0], edge[-1]
    bends: Callable[[tuple[float, float, str, Candidate]], float] = lambda p: (  # noqa: E731
        1 - (p[0] - left) / (right - left) - (p[1] - bottom) / (top - bottom)
    )
    best = max(edge, key=bends)
    return best[3] if bends(best) > 1e-9 else None
