"""Which of two configurations is better, with what probability: the bootstrap over runs.

The independent unit is the run: requests inside one share its luck.  A bootstrap of a few values is too narrow, by
√((n−1)/n) and by t against z; the deviations are stretched by both (the expanded percentile interval of Hesterberg, "What
Teachers Should Know About the Bootstrap", 2015, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from llmopt.core.statistics import Z_95, percentile, t_95, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES, MANY = 1000, (20, 300)  # of more than 20 values 300 resamples place an end as well
KEPT = 200
FEWEST_RUNS = 3
SURE = 0.975  # two-sided 95 %: below it nobody has won


def draws(count: int, seed: int) -> NDArray[np.int32]:
    """Which of ``count`` values each resample takes; alike for all that have so many.

    Tables of up to 200 values are kept: those of thousands take megabytes each, and no longer than they are worth.
    """
    return kept_draws(count, seed) if count <= KEPT else drawn_anew(count, seed)


@lru_cache(64)
def kept_draws(count: int, seed: int) -> NDArray[np.int32]:
    return drawn_anew(count, seed)


def drawn_anew(count: int, seed: int) -> NDArray[np.int32]:
    import numpy as np

    resamples = RESAMPLES if count <= MANY[0] else MANY[1]
    return np.random.default_rng([seed, count]).integers(count, size=(resamples, count), dtype=np.int32)


@lru_cache(64)
def middles(count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Which two of ``count`` ordered values each resample's median lies between: the same for all that have so many."""
    import numpy as np

    drawn = np.sort(draws(count, 0), axis=1)
    return drawn[:, (count - 1) // 2].copy(), drawn[:, count // 2].copy()


@lru_cache(64)
def stretch(count: int) -> float:
    return t_95(count - 1) / Z_95 * math.sqrt(count / (count - 1))


def over_runs(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval over runs of their median; ``None`` below three.

    Of a few by Student's t about their mean, widened to hold the median that it stands beside: the bootstrap of three values
    is no more than their range, and left out the truth in one case of four (simulated: .75 of three, .87 of four; by t .95).
    Of many the stretched bootstrap of the median.  What is never below zero has no end there.
    """
    import numpy as np

    count = len(values)
    if count < FEWEST_RUNS:
        return None
    ordered = np.sort(np.array(values, np.float64))
    median = float(ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    if count <= MANY[0]:
        mean, half = float(ordered.mean()), t_95(count - 1) * float(ordered.std(ddof=1)) / math.sqrt(count)
        low, high = min(median, mean - half), max(median, mean + half)
    else:
        one, other = middles(count)
        drawn = ((ordered[one] + ordered[other]) / 2).tolist()
        low, high = (median + (percentile(drawn, p) - median) * stretch(count) for p in (2.5, 97.5))
    return (max(low, 0.0) if ordered[0] >= 0 else low), high


def over_requests(shares: Sequence[float], counts: Sequence[float], shown: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share over the requests of all runs together, widened to hold the one that is ``shown``."""
    hits = sum(share * count for share, count in zip(shares, counts, strict=True))
    low, high = wilson(round(hits), round(sum(counts)))
    return min(low, shown), max(high, shown)


@lru_cache(64)
def taken(count: int, seed: int) -> NDArray[np.float64]:
    """How often each value is in each resample: means by one product, ten times as fast as by index."""
    import numpy as np

    drawn = draws(count, seed)
    found = np.zeros((len(drawn), count))
    np.add.at(found, (np.arange(len(drawn))[:, None], drawn), 1)
    return found


def means_of(values: Sequence[float], seed: int) -> NDArray[np.float64]:
    """Of ``RESAMPLES`` resamples; of many values fewer are drawn, and each counts several times."""
    import numpy as np

    here, count = np.array(values), len(values)
    means = taken(count, seed) @ here / count if count <= KEPT else here[draws(count, seed)].mean(axis=1)
    return np.resize(means, RESAMPLES)


def beats(one: Sequence[float], other: Sequence[float], *, lower_is_better: bool) -> float:
    """P(the mean of ``one`` is better than that of ``other``), both of three runs or more."""
    import numpy as np

    means = []
    for seed, values in enumerate((one, other), 1):
        count, mean = len(values), sum(values) / len(values)
        means.append(mean + (means_of(values, seed) - mean) * stretch(count))
    gap = means[1] - means[0] if lower_is_better else means[0] - means[1]
    rounded = 1e-12 * max(abs(one[0]), abs(other[0]))  # equal values have means that differ by their rounding
    ahead = np.count_nonzero(gap > rounded) - np.count_nonzero(gap < -rounded)
    return 0.5 + float(ahead) / (2 * RESAMPLES)


def beats_by_interval(
    one: float, bounds_of_one: tuple[float, float], other: float, bounds_of_other: tuple[float, float], *,
    lower_is_better: bool,
) -> float:  # fmt: skip
    """The same from two 95 % intervals, each taken as normal: of blocks within one run, of windows of one text."""
    errors = [(high - low) / 2 / Z_95 for low, high in (bounds_of_one, bounds_of_other)]
    gap, error = (other - one) if lower_is_better else (one - other), math.hypot(*errors)
    if error == 0:
        return 0.5 if gap == 0 else float(gap > 0)
    return 0.5 * (1 + math.erf(gap / error / math.sqrt(2)))
