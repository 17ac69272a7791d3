"""Stored runs against stored runs: nothing was paired, so the session stands between them, and nothing makes it go away.

A session is one start of a server.  Runs of one session share its luck (memory layout, clocks, neighbours), so more of
them never make it smaller: the unit is the session, and of sessions in a row the day.  How far these are apart is taken
from the sides themselves where they have enough days, else from ``llmopt gate calibrate``, else it is assumed, and said so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmopt.gate.blocks import Reading, mean_log
from llmopt.gate.decide import LEAST_SPREAD, Sample
from llmopt.gate.thresholds import Threshold

# Of the session's share of a metric, on the logarithmic scale, where nobody has measured it on this machine.
ASSUMED = 0.05
ENOUGH = 5  # days of a side whose own spread says more than the assumption
DATE = len("2026-01-01")
ASSUMED_FREEDOM = 30.0


@dataclass(frozen=True, kw_only=True)
class SessionNoise:
    """Standard deviation between sessions on the logarithmic scale, with its degrees of freedom and where it is from."""

    spread: float
    freedom: float
    source: Literal["own", "calibrated", "assumed"]


def sessions(readings: Sequence[Reading]) -> list[list[Reading]]:
    """By the start of the server; runs that do not tell theirs are taken for one session, which is the careful way."""
    found: dict[str, list[Reading]] = defaultdict(list)
    for reading in readings:
        found[reading.session].append(reading)
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class Part:
    """One side: its mean logarithm, and the variance of that mean in parts with their degrees of freedom."""

    mean: float
    variances: tuple[tuple[float, float], ...]


def part(readings: Sequence[Reading], threshold: Threshold, noise: SessionNoise) -> Part:
    """Sessions one after another share their hour: only those of many days speak for themselves.

    Else the known noise stands for what the days have in common, undivided by what was measured within one of them.
    """
    groups = sessions(readings)
    means = [mean_log(group, threshold) for group in groups]
    middle = math.fsum(means) / len(means)
    of_a_day: dict[str, list[float]] = defaultdict(list)
    for group, mean in zip(groups, means, strict=True):
        of_a_day[day(group)].append(mean)
    days = [math.fsum(values) / len(values) for values in of_a_day.values()]
    if len(days) >= ENOUGH:
        center = math.fsum(days) / len(days)
        return Part(mean=center, variances=((square(days, center) / (len(days) - 1) / len(days), len(days) - 1),))
    variances = [(noise.spread**2 / len(days), noise.freedom)]
    if len(groups) > 1:
        variances.append((square(means, middle) / (len(means) - 1) / len(means), len(means) - 1))
    inside = [mean_log([r], threshold) - m for group, m in zip(groups, means, strict=True) for r in group]
    if len(groups) == 1 and len(inside) > 1:
        variances.append((square(inside, 0.0) / (len(inside) - 1) / len(inside), len(inside) - 1))
    return Part(mean=middle, variances=tuple(variances))


def day(session: Sequence[Reading]) -> str:
    return min(r.started_at for r in session)[:DATE]


def has_own_noise(readings: Sequence[Reading]) -> bool:
    """Whether a side has so many days that it speaks for itself, as in ``part``."""
    return len({day(group) for group in sessions(readings)}) >= ENOUGH


def square(values: Sequence[float], middle: float) -> float:
    return math.fsum((v - middle) ** 2 for v in values)


def sample(base: Sequence[Reading], candidate: Sequence[Reading], threshold: Threshold, noise: SessionNoise) -> Sample:
    """Welch's t over sessions, its degrees of freedom after Satterthwaite (1946)."""
    sides = [part(side, threshold, noise) for side in (base, candidate)]
    variances = [v for side in sides for v in side.variances]
    whole = max(math.fsum(v for v, _ in variances), LEAST_SPREAD**2)
    freedom = whole**2 / max(math.fsum(v * v / f for v, f in variances), 1e-30)
    sign = 1 if threshold.metric.better == "lower" else -1
    count = min(len(sessions(base)), len(sessions(candidate)))
    return Sample(
        mean=sign * (sides[1].mean - sides[0].mean),
        error=math.sqrt(whole),
        freedom=max(1.0, freedom),
        spread=math.sqrt(whole * count),
        blocks=count,
    )
