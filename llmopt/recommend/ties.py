"""Which of two configurations is better, with what probability: the bootstrap over runs.

The independent unit is the run: requests inside one share its luck.  A bootstrap of a few values is too narrow, by
√((n−1)/n) and by t against z; the deviations are stretched by both (the expanded percentile interval of Hesterberg, "What
Teachers Should Know About the Bootstrap", 2015, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from llmopt.core.statistics import Z_95, percentile, t_95

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES, MANY = 1000, (20, 300)  # of more than 20 values 300 resamples place an end as well
FEWEST_RUNS = 3
SURE = 0.975  # two-sided 95 %: below it nobody has won

Over = Literal["runs", "blocks", "windows of text"]


@lru_cache(64)
def draws(count: int, seed: int) -> NDArray[np.int64]:
    """Which of ``count`` values each resample takes; alike for all that have so many."""
    import numpy as np

    resamples = RESAMPLES if count <= MANY[0] else MANY[1]
    return np.random.default_rng([seed, count]).integers(count, size=(resamples, count))


@lru_cache(64)
def stretch(count: int) -> float:
    return t_95(count - 1) / Z_95 * math.sqrt(count / (count - 1))


def over_runs(values: Sequence[float], *, highest: bool = False) -> tuple[float, float] | None:
    """95 % bootstrap interval of the median (of the highest value) over runs; ``None`` below three."""
    import numpy as np

    if len(values) < FEWEST_RUNS:
        return None
    drawn = np.array(values)[draws(len(values), 0)]
    estimates = (drawn.max(axis=1) if highest else np.median(drawn, axis=1)).tolist()
    return percentile(estimates, 2.5), percentile(estimates, 97.5)


def beats(one: Sequence[float], other: Sequence[float], *, lower_is_better: bool) -> float:
    """P(the mean of ``one`` is better than that of ``other``), both of three runs or more."""
    import numpy as np

    means = []
    for seed, values in enumerate((one, other), 1):
        array = np.array(values)
        mean = array.mean()
        drawn = np.resize(array[draws(len(values), seed)].mean(axis=1), RESAMPLES)
        means.append(mean + (drawn - mean) * stretch(len(values)))
    better, equal = (means[0] < means[1]) if lower_is_better else (means[0] > means[1]), means[0] == means[1]
    return float(better.mean() + equal.mean() / 2)


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
