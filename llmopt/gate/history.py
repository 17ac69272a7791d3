"""A metric of one case over its sessions, and where it stepped.

A point is one session (one start of a server): its runs share its luck, so several of them are no more evidence than one.
Steps are looked for on the logarithm, where a loss of 5 % is as large at 10 ms as at 10 s.  The search is binary
segmentation (Scott and Knott 1974): the best single step is held against noise by Student's t, so the history needs no
noise known beforehand; where there is none, the best pair is tried, since a spell that came and went hides from single
steps; then the parts are searched likewise.  The levels are those at which noise alone has a step in fewer than 1 of 100
histories (tests/unit/gate/test_history.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from llmopt.core.domain import Measurement
from llmopt.core.metric_table import Metric, name_of, value_of
from llmopt.core.student import quantile, tail
from llmopt.gate.thresholds import ABSOLUTE, NO_RATIO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST = 3  # points on each side of a step: one odd session is none
LEVEL_SINGLE, LEVEL_PAIR = 0.0082, 0.001  # of a false step, by noise alone
MOST_IN_PAIRS = 400  # points; beyond, pairs would be too many to try, and single steps have their parts
CONFIDENCE = 0.95
LEAST_SPREAD = 1e-3  # memory may not move at all, and a move by less than this share is not worth a name


@dataclass(frozen=True, kw_only=True)
class Point:
    """One session. ``value`` is the mean of its runs, geometric where the metric is one of ratios."""

    value: float
    started_at: str
    commit: str
    version: str
    llmopt_version: str
    runs: tuple[str, ...]
    suspect: bool


@dataclass(frozen=True, kw_only=True)
class Step:
    """Between the points ``place - 1`` and ``place``. ``change`` is after / before − 1, or after − before if ``absolute``."""

    place: int
    change: float
    low: float
    high: float
    before: float
    after: float
    worse: bool


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric over the sessions that know it, oldest first."""

    metric: Metric
    statistic: str | None
    points: tuple[Point, ...]
    steps: tuple[Step, ...]
    absolute: bool

    @property
    def name(self) -> str:
        return name_of(self.metric.name, self.statistic)


def series_of(runs: Sequence[Measurement], metric: Metric, statistic: str | None) -> Series:
    """``runs``: of one case on one machine. Those that are invalid, or do not know the metric, are left out."""
    absolute = metric.name in (*ABSOLUTE, *NO_RATIO)
    sessions: dict[str, list[tuple[Measurement, float]]] = {}
    for run in sorted(runs, key=lambda r: r.started_at):
        value = figure(run, metric, statistic)
        if run.verdict.status != "invalid" and value is not None and (absolute or value > 0):
            # Records of before sessions were named, and of other tools: those of a day and a commit are one.
            session = run.session or f"{run.started_at[:10]} {run.commit}"
            sessions.setdefault(session, []).append((run, value))
    points = tuple(point(group, absolute) for group in sessions.values())
    scaled = [p.value if absolute else math.log(p.value) for p in points]
    found = steps_of(scaled, metric, absolute)
    return Series(metric=metric, statistic=statistic, points=points, steps=found, absolute=absolute)


def figure(run: Measurement, metric: Metric, statistic: str | None) -> float | None:
    """The metric's value in a record, of quality too; ``None`` where it is unknown or no number."""
    quality: dict[str, Any] = run.quality or {}
    keys = {"kl": "kl_mean", "kl_p99": "kl_p99", "top1": "top1_agreement", "perplexity": "perplexity"}
    value = quality.get(keys[metric.name]) if metric.name in keys else value_of(run.metrics, metric, statistic)
    return float(value) if value is not None and math.isfinite(value) else None


def point(group: Sequence[tuple[Measurement, float]], absolute: bool) -> Point:
    first = group[0][0]
    values = [value for _, value in group]
    mean = math.fsum(values) / len(values)
    if not absolute:
        mean = math.exp(math.fsum(map(math.log, values)) / len(values))
    return Point(
        value=mean,
        started_at=first.started_at,
        commit=first.commit,
        version=str(first.backend.get("version") or ""),
        llmopt_version=first.llmopt_version,
        runs=tuple(run.run_id for run, _ in group),
        suspect=any(run.verdict.status != "valid" for run, _ in group),
    )


# --- steps --------------------------------------------------------------------------------------------------------


def steps_of(values: Sequence[float], metric: Metric, absolute: bool) -> tuple[Step, ...]:
    """The steps of a series on the scale that it is searched on, with what each did, 95 % interval."""
    floor = LEAST_SPREAD * (max(map(abs, values), default=0.0) if absolute else 1.0)
    places = find_steps(values, floor)
    edges = [0, *places, len(values)]
    found = []
    for number, place in enumerate(places):
        before, after = values[edges[number] : place], values[place : edges[number + 2]]
        change, half = difference(before, after, floor)
        ends = [x if absolute else math.expm1(x) for x in (change, change - half, change + half)]
        levels = [math.fsum(side) / len(side) for side in (before, after)]
        found.append(
            Step(
                place=place, change=ends[0], low=ends[1], high=ends[2],
                before=levels[0] if absolute else math.exp(levels[0]),
                after=levels[1] if absolute else math.exp(levels[1]),
                worse=(change > 0) == (metric.better == "lower"),
            )
        )  # fmt: skip
    return tuple(found)


def difference(before: Sequence[float], after: Sequence[float], floor: float) -> tuple[float, float]:
    """Of the means, and half its interval by Student's t with the noise of both sides together."""
    means = [math.fsum(side) / len(side) for side in (before, after)]
    squares = math.fsum((v - mean) ** 2 for side, mean in zip((before, after), means, strict=True) for v in side)
    freedom = len(before) + len(after) - 2
    spread = max(math.sqrt(squares / freedom), floor)
    error = spread * math.sqrt(1 / len(before) + 1 / len(after))
    return means[1] - means[0], quantile((1 - CONFIDENCE) / 2, freedom) * error


def find_steps(values: Sequence[float], floor: float = 0.0) -> list[int]:
    """The places where a new level begins, in order. ``floor``: the least noise that is believed."""
    import numpy as np

    def search(start: int, end: int) -> list[int]:
        cuts = [start + cut for cut in cuts_of(whole[start:end], floor)]
        edges = [start, *cuts, end]
        inside = [search(*part) for part in pairwise(edges)] if cuts else []
        return sorted([*cuts, *chain.from_iterable(inside)])

    whole = np.asarray(values, np.float64)
    places = search(0, len(whole))
    for number, place in enumerate(places):  # found beside other steps, a cut may lie beside its best place
        start = places[number - 1] if number else 0
        end = places[number + 1] if number + 1 < len(places) else len(whole)
        places[number] = start + single(whole[start:end], floor)[0] if end - start >= 2 * LEAST else place
    return places


def cuts_of(values: NDArray[np.float64], floor: float) -> tuple[int, ...]:
    """Where these fall apart into two levels, or else three; empty where noise explains them."""
    count = len(values)
    if count < 2 * LEAST:
        return ()
    place, chance = single(values, floor)
    if chance < LEVEL_SINGLE:
        return (place,)
    if 3 * LEAST <= count <= MOST_IN_PAIRS:
        one, other, chance = pair(values, floor)
        if chance < LEVEL_PAIR:
            return one, other
    return ()


def single(values: NDArray[np.float64], floor: float) -> tuple[int, float]:
    """The best place of one step, and how probable noise alone has one as good anywhere.

    Neighbouring places are nearly the same test, so places do not count in full (Bonferroni); by simulation of 10 to 120
    points, 1.7 × places^0.66 is no less than their number of independent ones.
    """
    import numpy as np

    count = len(values)
    sums, total = centred_sums(values)
    places = np.arange(LEAST, count - LEAST + 1)
    gains = sums[places] ** 2 * count / (places * (count - places))
    best = int(gains.argmax())
    spread = max(math.sqrt(max(0.0, total - gains[best]) / (count - 2)), floor)
    t = math.sqrt(gains[best]) / spread if spread else math.inf if gains[best] > 0 else 0.0
    return int(places[best]), min(1.0, 2 * tail(t, count - 2) * min(len(places), 1.7 * len(places) ** 0.66))


def pair(values: NDArray[np.float64], floor: float) -> tuple[int, int, float]:
    """The best two places together, and how probable noise alone has two as good: F of 2 and n − 3, Bonferroni over pairs."""
    import numpy as np

    count = len(values)
    sums, total = centred_sums(values)
    one = np.arange(LEAST, count - 2 * LEAST + 1)[:, None]
    other = np.arange(2 * LEAST, count - LEAST + 1)[None]
    apart = other - one >= LEAST
    between = (sums[other] - sums[one]) ** 2 / np.where(apart, other - one, 1)
    gains = np.where(apart, sums[one] ** 2 / one + between + sums[other] ** 2 / (count - other), 0.0)
    row, column = divmod(int(gains.argmax()), gains.shape[1])
    gain = float(gains[row, column])
    left = max(total - gain, (count - 3) * floor**2)
    # The upper tail of F(2, m) is (1 + 2 f / m)^(−m / 2), and 2 f / m here is gain / left.
    chance = (left / (left + gain)) ** ((count - 3) / 2) if gain > 0 else 1.0
    return int(one[row, 0]), int(other[0, column]), min(1.0, chance * int(apart.sum()))


def centred_sums(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Running sums of the distances from the mean, from nought; and the sum of their squares."""
    import numpy as np

    centred = values - values.mean()
    return np.concatenate([[0.0], np.cumsum(centred)]), float(centred @ centred)
