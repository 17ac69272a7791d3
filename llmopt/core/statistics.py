"""Percentiles and intervals, as pure functions; standard library and numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The fewest samples for which an upper percentile says anything: with n samples all
# below the p-th percentile has probability p^n, and these n bring that under 5 %.
MIN_SAMPLES = {90: 29, 95: 59, 99: 299}
T = TypeVar("T")
Z_95 = 1.959963984540054
BATCH = 5
TREND_BATCHES = 10
# Student's t, 95 % two-sided, for 1 to 10 degrees of freedom; and 99 %, for 1 to 8.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
T_99 = (63.66, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value with at least ``percent`` % of the sample at or below it (nearest rank).

    Nearest rank never interpolates, so a failed request that counts as infinity moves the
    tail by whole ranks instead of making half of it undefined.
    """
    if not values:
        raise ValueError("percentile of an empty sample")
    return sorted(values)[rank(len(values), percent) - 1]


def rank(count: int, percent: float) -> int:
    """Which of ``count`` ordered values the percentile is, from 1: 7 % of 100 is 7, whatever 0.07 × 100 is in binary."""
    return max(1, math.ceil(round(percent * count / 100, 9)))


def distribution(
    values: Sequence[float] | NDArray[np.float64], *, missing: int = 0, worst: float = math.inf
) -> dict[str, Any]:
    """``{mean, p50, p90, p95, p99, min, max, n, missing}`` of a sample in which ``missing`` more counted as ``worst``.

    ``worst`` is +inf where lower is better, -inf where higher is.  A statistic that
    would be infinite, or that has too few samples behind it, is ``None``.  ``mean``,
    ``min`` and ``max`` are of the values that exist.
    """
    import numpy as np

    ordered = np.sort(np.asarray(values, np.float64))
    here, count = len(ordered), len(ordered) + missing
    result: dict[str, Any] = {"mean": float(ordered.mean()) if here else None}
    for percent in (50, 90, 95, 99):
        at = rank(count, percent) - 1 - (missing if worst < 0 else 0)
        enough = count >= MIN_SAMPLES.get(percent, 1)
        result[f"p{percent}"] = float(ordered[at]) if enough and 0 <= at < here else None
    result |= {"min": float(ordered[0]), "max": float(ordered[-1])} if here else {"min": None, "max": None}
    return result | {"n": count, "missing": missing}


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); (0, 1) when there were no trials."""
    if trials == 0:
        return 0.0, 1.0
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def outside(figure: Any, low: Any, high: Any) -> Any:
    """Whether an interval, or each of an array of them, is of another figure than this; not where one is NaN.

    A bootstrap may leave its own out, by a little: none by its whole width and 5 %.
    """
    slack = (high - low) + 0.05 * abs(figure) + 1e-6
    return (figure < low - slack) | (figure > high + slack)


def bootstrap(
    items: Sequence[T],
    statistic: Callable[[Sequence[T]], float | None],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of ``statistic`` over ``items`` (Efron 1979); ``None`` below three items.

    ``items`` are the independent units: whole runs, blocks of one run, windows of a text.
    """
    import numpy as np

    if len(items) < 3:
        return None
    generator = np.random.default_rng(seed)
    estimates = []
    for row in generator.integers(len(items), size=(resamples, len(items))):
        value = statistic([items[i] for i in row])
        if value is None or not math.isfinite(value):
            return None
        estimates.append(value)
    tail = (1 - confidence) / 2 * 100
    return percentile(estimates, tail), percentile(estimates, 100 - tail)


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the ratio of geometric means, after / before, by Welch's t on the logarithms (Welch 1947).

    For a handful of runs a side: a bootstrap of three values leaves out the truth in one case of ten.  ``None`` below two a
    side, and for values that have no logarithm.
    """
    if min(len(before), len(after)) < 2 or min(*before, *after) <= 0:
        return None
    sides = [[math.log(v) for v in side] for side in (before, after)]
    means = [math.fsum(side) / len(side) for side in sides]
    errors = [
        math.fsum((v - mean) ** 2 for v in side) / (len(side) - 1) / len(side)
        for side, mean in zip(sides, means, strict=True)
    ]
    middle, error = means[1] - means[0], math.sqrt(sum(errors))
    if error == 0:
        return math.exp(middle), math.exp(middle)
    freedom = sum(errors) ** 2 / sum(e * e / (len(side) - 1) for e, side in zip(errors, sides, strict=True))
    half = t_95(freedom) * error
    return math.exp(middle - half), math.exp(middle + half)


def t_95(freedom: float) -> float:
    """Student's t, 95 % two-sided, for so many degrees of freedom, rounded down.

    Beyond the table by the expansion of Cornish and Fisher in 1 / freedom, to its third term: within .001 of the table.
    """
    whole = max(1, int(freedom))
    if whole <= len(T_95):
        return T_95[whole - 1]
    first = (Z_95**3 + Z_95) / 4
    second = (5 * Z_95**5 + 16 * Z_95**3 + 3 * Z_95) / 96
    third = (3 * Z_95**7 + 19 * Z_95**5 + 17 * Z_95**3 - 15 * Z_95) / 384
    return Z_95 + first / whole + second / whole**2 + third / whole**3


def block_interval(
    values: NDArray[np.float64], percent: float | None, *, count: int, resamples: int = 300, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval of a percentile (of the mean where ``None``) over ``count`` blocks of consecutive values.

    Neighbours in a run are alike, so whole blocks are drawn (Künsch 1989).  Infinite values are of failures: they
    count in a percentile and not in the mean.  ``None`` below three blocks, and where an end would be infinite.
    """
    import numpy as np

    if percent is None:
        values = values[np.isfinite(values)]
    count = min(count, len(values))
    if count < 3:
        return None
    block = np.arange(len(values)) * count // len(values)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.int32)
    sizes = drawn @ np.bincount(block, minlength=count)
    if percent is None:
        estimates = (drawn @ np.bincount(block, values, minlength=count)) / sizes
    else:
        order = np.argsort(values, kind="stable")
        # How many of each block lie at or below each ordered value; a resample's percentile is found by bisection.
        marks = np.zeros((len(values), count), np.int32)
        marks[np.arange(len(values)), block[order]] = 1
        below = np.cumsum(marks, axis=0, dtype=np.int32)
        wanted = np.maximum(1, np.ceil(np.round(percent * sizes / 100, 9)))
        low: NDArray[np.int64] = np.zeros(resamples, np.int64)
        high: NDArray[np.int64] = np.full(resamples, len(values) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            enough = np.einsum("rb,rb->r", drawn, below[middle]) >= wanted
            low, high = np.where(enough, low, np.minimum(middle + 1, high)), np.where(enough, middle, high)
        estimates = values[order][low]
    estimates.sort()
    ends = float(estimates[rank(resamples, 2.5) - 1]), float(estimates[rank(resamples, 97.5) - 1])
    return ends if all(map(math.isfinite, ends)) else None


def mser(values: NDArray[np.float64]) -> int:
    """How many of the first values are warm-up: MSER-5 (White 1997; White, Cobb and Spratt 2000), at most the first half.

    The series is batched by 5 and cut where the standard error of the mean of what is left is smallest.  Noise alone
    often finds such a place too, so a cut must also pay: the means on its two sides differ by two standard errors.
    """
    import numpy as np

    batches = len(values) // BATCH
    if batches < 4:
        return 0
    means = values[: batches * BATCH].reshape(batches, BATCH).mean(axis=1)
    means = means - means.mean()
    left = np.arange(batches, 0, -1)
    sums, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    error = np.maximum(squares - sums**2 / left, 0) / left**2
    cut = int(np.argmin(error[: batches // 2 + 1])) * BATCH
    if not cut:
        return 0
    first, rest = values[:cut], values[cut:]
    error_of_difference = math.sqrt(first.var() / len(first) + rest.var() / len(rest))
    return cut if abs(first.mean() - rest.mean()) > 2 * error_of_difference else 0


def drifts(values: NDArray[np.float64], *, batch: int = BATCH, share: float = 0.1) -> bool:
    """Whether a series still goes up or down by more than ``share`` of its mean, and not by chance (1 %).

    A line through the means of up to ten batches, none smaller than ``batch``: neighbours are alike, batches are less so.
    """
    import numpy as np

    count = min(TREND_BATCHES, len(values) // max(BATCH, batch))
    if count < 3:
        return False
    edges = np.linspace(0, len(values), count + 1).round().astype(int)
    means = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    steps = np.arange(count) - (count - 1) / 2
    slope = (steps @ means) / (steps @ steps)
    explained = slope**2 * (steps @ steps)
    rest = ((means - means.mean()) ** 2).sum() - explained
    if abs(slope) * count <= share * abs(means.mean()):
        return False
    return bool(explained * (count - 2) > T_99[count - 3] ** 2 * rest)


def blocks(items: Sequence[T], count: int) -> list[list[T]]:
    """``items`` cut into at most ``count`` consecutive blocks of nearly equal size."""
    count = min(count, len(items))
    edges = [round(i * len(items) / count) for i in range(count + 1)] if count else [0]
    return [list(items[a:b]) for a, b in pairwise(edges)]


def relative_spread(values: Sequence[float]) -> float | None:
    """(max - min) / mean; ``None`` below two values."""
    if len(values) < 2 or not (mean := sum(values) / len(values)):
        return None
    return (max(values) - min(values)) / mean
