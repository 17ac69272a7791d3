"""What the runs of a race say of its arms: levels by least squares, a prediction corrected by them, and Student's tail.

Everything is in logarithms, higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SMALLEST = 1e-12  # variance: two arms may be all but one
DRAWS = 4000  # of a joint chance: its own error is below half a percent


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviation from run to run as a share, and the degrees of freedom of that: so many repeats told it.

    The default is what machines usually have, before anything was measured twice.
    """

    share: float = 0.04
    freedom: float = 4.0


USUAL_NOISE = Noise()


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What an estimate expects of an arm, in the objective's own unit; ``error``: its standard deviation as a share."""

    value: float
    error: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Belief:
    """The logarithm of an arm's value, higher is better: mean, standard error, and degrees of freedom of the latter."""

    mean: float
    error: float
    freedom: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Known:
    """``of`` each arm; ``noise``: of a run, as a share; ``trusted``: whether the prior held so far; ``pairs``: covariances."""

    of: dict[str, Belief]
    noise: float
    trusted: bool = True
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)

    def error_between(self, one: str, other: str) -> float:
        """Standard error of the difference of two arms."""
        variance = self.of[one].error ** 2 + self.of[other].error ** 2 - 2 * self.pairs.get((one, other), 0.0)
        return math.sqrt(max(variance, SMALLEST))

    def chance_of_none(self, others: Sequence[str], best: str, margin: float) -> float:
        """The chance that none of ``others`` is better than ``best`` by more than ``margin``, by draws of their Student's t.

        All are compared with one and the same arm, and what is wrong in its level is wrong in every comparison: single
        chances added up count that as often as there are others.
        """
        import numpy as np

        if not others:
            return 1.0
        arms = [best, *others]
        errors = np.array([self.of[arm].error for arm in arms])
        covariance = np.array([[self.pairs.get((one, other), 0.0) for other in arms] for one in arms])
        np.fill_diagonal(covariance, errors**2)
        values, vectors = np.linalg.eigh(covariance)
        draw = np.random.default_rng(0)  # the same draws each time: more runs make it surer, not luck
        normal = draw.standard_normal((DRAWS, len(arms))) @ (vectors * np.sqrt(values.clip(0))).T
        scales = {f: np.sqrt(f / draw.chisquare(f, DRAWS)) for f in sorted({self.of[arm].freedom for arm in arms})}
        scale = np.stack([scales[self.of[arm].freedom] for arm in arms], axis=1)
        levels = np.array([self.of[arm].mean for arm in arms]) + normal * scale
        return float((levels[:, 1:].max(axis=1) <= levels[:, 0] + margin).mean())


@dataclass(frozen=True, kw_only=True)
class Line:
    """Measured against predicted logarithms, a regression whose slope is expected at 1: it corrects a prior, and tells its error."""

    slope: float
    centre: tuple[float, float]
    variance: float
    spread: float
    freedom: float
    points: int
    claimed: float

    SLOPE_DOUBT = 0.5  # standard deviation of the slope before anything was measured
    WEIGHT = 3  # so many points' worth of weight has the claimed error

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]], claimed: float) -> Line:
        count = len(points)
        x, y = (math.fsum(p[i] for p in points) / count for i in (0, 1))
        xx = math.fsum((p[0] - x) ** 2 for p in points)
        xy = math.fsum((p[0] - x) * (p[1] - y) for p in points)
        variance, slope = claimed**2, 1.0
        for _ in range(4):
            ridge = variance / cls.SLOPE_DOUBT**2
            slope = (xy + ridge) / (xx + ridge)
            rest = math.fsum((p[1] - y - slope * (p[0] - x)) ** 2 for p in points) + ridge * (slope - 1) ** 2
            variance = (cls.WEIGHT * claimed**2 + rest) / (cls.WEIGHT + count - 1)
        freedom = cls.WEIGHT + count - 1
        spread = xx + variance / cls.SLOPE_DOUBT**2
        return cls(
            slope=slope, centre=(x, y), variance=variance, spread=spread, freedom=freedom, points=count, claimed=claimed
        )

    def at(self, predicted: float) -> Belief:
        away = predicted - self.centre[0]
        error = math.sqrt(self.variance * (1 + 1 / self.points + away**2 / self.spread))
        return Belief(mean=self.centre[1] + self.slope * away, error=error, freedom=self.freedom, runs=0)

    @property
    def holds(self) -> bool:
        """Whether the predictions were about as good as they claimed."""
        return self.variance <= 2.5 * self.claimed**2 and self.slope >= 0.5


def fit(
    values: Mapping[str, Mapping[int, float]], rounds: int, before: Noise, *, doubted: bool = True
) -> tuple[dict[str, float], float, float]:
    """Least squares of ``value = arm + round``: each arm's level, the standard deviation of a run, its degrees of freedom.

    Effects of rounds are drawn towards zero by as much as their own spread allows (a ridge), since few arms tell of a late
    round.  ``before`` is what was known of the deviation, with the weight of its degrees of freedom; where it may be
    ``doubted``, one that these values are not likely under has the weight of a guess.
    """
    import numpy as np

    normal, right = np.zeros((rounds, rounds)), np.zeros(rounds)
    for own in values.values():
        places, mean = list(own), math.fsum(own.values()) / len(own)
        for place in places:
            normal[place, place] += 1
            normal[place, places] -= 1 / len(own)
            right[place] += own[place] - mean
    effects = np.linalg.solve(normal + 1e-3 * np.eye(rounds), right)
    levels = levels_of(values, effects.tolist())
    rest = math.fsum((v - effects[r] - levels[arm]) ** 2 for arm, own in values.items() for r, v in own.items())
    used = len({r for own in values.values() for r in own})
    freedom = max(0, sum(map(len, values.values())) - len(values) - max(0, used - 1))
    weight = before.freedom
    if doubted and freedom and float(rest) > freedom * before.share**2 * usual_excess(freedom):
        weight = min(weight, USUAL_NOISE.freedom)  # a guess like any other
    variance = (weight * before.share**2 + float(rest)) / (weight + freedom)
    between = max(variance / 4, float(np.square(effects - effects.mean()).sum()) / max(1, used - 1))
    effects = np.linalg.solve(normal + variance / between * np.eye(rounds), right)
    return levels_of(values, effects.tolist()), math.sqrt(variance), weight + freedom


def usual_excess(freedom: float) -> float:
    """By what factor a variance is above the true one once in a hundred times (Wilson and Hilferty 1931)."""
    part = 2 / (9 * max(freedom, 1))
    return (1 - part + 2.326 * math.sqrt(part)) ** 3


def levels_of(values: Mapping[str, Mapping[int, float]], effects: Sequence[float]) -> dict[str, float]:
    return {arm: math.fsum(v - effects[r] for r, v in own.items()) / len(own) for arm, own in values.items()}


def student_tail(t: float, freedom: float) -> float:
    """The chance that Student's t exceeds ``t``, through Wallace's normal approximation (1959), within .002."""
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    tail = 0.5 * math.erfc(z / math.sqrt(2))
    return tail if t >= 0 else 1 - tail
