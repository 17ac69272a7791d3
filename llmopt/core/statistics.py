"""Percentiles and intervals, as pure functions; standard library and numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

# The fewest samples for which an upper percentile says anything: with n samples all
# below the p-th percentile has probability p^n, and these n bring that under 5 %.
MIN_SAMPLES = {90: 29, 95: 59, 99: 299}
T = TypeVar("T")
Z_95 = 1.959963984540054


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value with at least ``percent`` % of the sample at or below it (nearest rank).

    Nearest rank never interpolates, so a failed request that counts as infinity moves the
    tail by whole ranks instead of making half of it undefined.
    """
    if not values:
        raise ValueError("percentile of an empty sample")
    ordered = sorted(values)
    rank = math.ceil(round(percent * len(ordered) / 100, 9))  # 7 % of 100 is rank 7, whatever 0.07 × 100 is in binary
    return ordered[max(0, rank - 1)]


def distribution(values: Sequence[float], *, missing: int = 0, worst: float = math.inf) -> dict[str, Any]:
    """``{mean, p50, p90, p95, p99, min, max, n, missing}`` of a sample in which ``missing`` more counted as ``worst``.

    ``worst`` is +inf where lower is better, -inf where higher is.  A statistic that
    would be infinite, or that has too few samples behind it, is ``None``.  ``mean``,
    ``min`` and ``max`` are of the values that exist.
    """
    everything = [*values, *([worst] * missing)]
    result: dict[str, Any] = {"mean": sum(values) / len(values) if values else None}
    for percent in (50, 90, 95, 99):
        value = None
        if len(everything) >= MIN_SAMPLES.get(percent, 1):
            value = percentile(everything, percent)
        result[f"p{percent}"] = value if value is not None and math.isfinite(value) else None
    result |= {"min": min(values, default=None), "max": max(values, default=None)}
    return result | {"n": len(everything), "missing": missing}


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); (0, 1) when there were no trials."""
    if trials == 0:
        return 0.0, 1.0
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


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
