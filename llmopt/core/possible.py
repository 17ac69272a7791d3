"""Figures that no run can have: a record with one was written into, and is no evidence of anything."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from llmopt.core.metric_table import METRICS, parse_metric
from llmopt.core.run_record import SPREAD
from llmopt.core.run_row import INTERVALS, NUMBERS, ROUNDED
from llmopt.core.run_table import RunTable
from llmopt.core.statistics import outside
from llmopt.core.units import SHARE_TOLD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Far above all that machines do, so that what is above is a slip of a pen: seconds, tokens or requests a second, bytes …
MOST = {"s": 1e8, "tps": 1e9, "rps": 1e9, "bytes": 1e16, "count": 1e15, "nats": 1e6, "joule": 1e15, "watt": 1e9}
SHARE_COUNTED = 1 + 1e-9
COUNTED = ("error_rate", "slo_attainment", "top1")
RISING = ("min", "p50", "p90", "p95", "p99", "max")
FIGURES = {
    name: f"{metric.key}.{statistic}" if statistic else metric.key
    for name, (metric, statistic) in {name: parse_metric(name) for name in INTERVALS}.items()
}  # by the name of its interval, the column of the figure


def bounds_of_figures() -> dict[str, tuple[float, float]]:
    """What each column can be at all: no size, time or rate is below nothing."""
    keys = {m.key: m for m in METRICS.values()} | METRICS
    bounds = {"level": (math.ulp(0.0), MOST["rps"]), "achieved_rate": (0.0, MOST["rps"])}
    for name in NUMBERS:
        head, _, rest = name.partition(".")
        metric = keys.get(head)
        if metric is None:
            continue
        most = SHARE_COUNTED if metric.name in COUNTED else SHARE_TOLD if metric.unit == "share" else MOST[metric.unit]
        if metric.name == "perplexity":
            most = math.inf  # of an artifact that is broken it may be anything
        bounds[name] = (
            -ROUNDED if metric.unit == "nats" else 0.0,
            MOST["count"] if rest in ("n", "missing") else most,
        )
    ends = {f"interval.{name}.{end}": bounds[column] for name, column in FIGURES.items() for end in ("low", "high")}
    return bounds | ends


def rising_pairs() -> list[tuple[str, str]]:
    """Columns of which the first is never above the second, where both are known."""
    pairs = [(f"interval.{name}.low", f"interval.{name}.high") for name in INTERVALS]
    for metric in SPREAD:
        names = [f"{metric.key}.{s}" for s in RISING]
        pairs += [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]  # those between may be unknown
        pairs += pairwise(f"{metric.key}.{s}" for s in ("min", "mean", "max"))
    return pairs


def impossible(table: RunTable) -> dict[int, str]:
    """Rows with a figure that no run can have, and which."""
    import numpy as np

    found: dict[int, str] = {}
    with np.errstate(invalid="ignore"):
        for name, (low, high) in bounds_of_figures().items():
            column = table.numbers.get(name)
            if column is not None:
                wrong = (column < low) | (column > high) | np.isinf(column)
                found |= {row: f"{name} is {column[row]:g}, which cannot be" for row in places(wrong)}
        for less, more in rising_pairs():
            below, above = table.numbers.get(less), table.numbers.get(more)
            if below is not None and above is not None:
                wrong = below > above + ROUNDED * np.abs(above)
                found |= {
                    row: f"{less} is {below[row]:g}, above {more}, {above[row]:g}, which cannot be"
                    for row in places(wrong)
                }
    return found


def forget_strange_intervals(table: RunTable) -> None:
    """In place: an interval that leaves out the figure beside it is of another, and says nothing of this one."""
    import numpy as np

    for name, column in FIGURES.items():
        figure, low, high = map(table.numbers.get, (column, f"interval.{name}.low", f"interval.{name}.high"))
        if figure is not None and low is not None and high is not None:
            strange = outside(figure, low, high)
            low[strange] = high[strange] = np.nan


def places(wrong: NDArray[np.bool_]) -> list[int]:
    import numpy as np

    return [int(row) for row in np.flatnonzero(wrong)]
