"""Figures out of a foreign document: checked, in seconds, and no statistic that ours would not have either."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.core.statistics import MIN_SAMPLES, distribution

MS = 1e-3
PERCENTILES = ("p50", "p90", "p95", "p99")
LARGEST = 2**53  # beyond it a number of JSON is no exact count
ROUNDED_TO = 2  # significant digits of a mean length that nobody asked for


def number(document: Mapping[str, Any], key: str) -> float | None:
    """``None`` for what is not there. Raises UsageError for what is no finite number."""
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"its {key} is {str(value)[:40]}, and no number", hint="run the benchmark again")
    return float(value)


def required(document: Mapping[str, Any], key: str) -> float:
    """Raises UsageError for what is not there as well."""
    value = number(document, key)
    if value is None:
        raise UsageError(f"it has no {key}", hint="is it a whole result? --as NAME says of which tool it is")
    return value


def count(document: Mapping[str, Any], key: str) -> int:
    value = required(document, key)
    if value < 0 or value != int(value):
        raise UsageError(f"its {key} is {value:g}, and no count", hint="run the benchmark again")
    return int(value)


def positive(document: Mapping[str, Any], key: str) -> int | None:
    """A count of what there is at least one of; ``None`` for what is not there. Raises UsageError."""
    if document.get(key) is None:
        return None
    value = count(document, key)
    if not 0 < value < LARGEST:
        raise UsageError(f"its {key} is {value:.3g}, and no count", hint="run the benchmark again")
    return value


def part(document: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The object at a path; empty where there is none."""
    found: Any = document
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def spread(told: Mapping[str, float | None], *, ok: int, failed: int, scale: float = MS) -> dict[str, Any] | None:
    """A distribution from a tool's own statistics, of its ``ok`` requests; ``None`` where it tells none.

    Our percentiles count a failed request as the worst there is, and need enough samples: where a request failed they
    are unknown, since the tool left it out, and where samples are few as well.
    """
    known = {name: value * scale for name, value in told.items() if value is not None}
    if not known or not ok:
        return None
    planned = ok + failed
    for name in PERCENTILES:
        if failed or planned < MIN_SAMPLES.get(int(name[1:]), 1):
            known.pop(name, None)
    if not known:
        return None
    names = ("mean", *PERCENTILES, "min", "max")
    return {name: known.get(name) for name in names} | {"n": planned, "missing": failed}


def of_values(values: Sequence[float], *, failed: int) -> dict[str, Any] | None:
    """A distribution by our own rules, where the file has a value of every request that was answered."""
    if not values:
        return None
    if not all(math.isfinite(v) and v >= 0 for v in values):
        raise UsageError("a time in it is below zero, or no number", hint="run the benchmark again")
    return distribution(values, missing=failed)


def per_second(total: float | None, seconds: float | None) -> float | None:
    return total / seconds if total is not None and seconds else None


def mean_length(total: float | None, requests: int) -> int:
    """Tokens of a request where only the sum is told, roughly: runs of one data set are one case though answers differ.

    The sums themselves are compared by the gate.  1 where nothing is told, since a workload has no unknown lengths.
    """
    if not total or not requests:
        return 1
    mean = total / requests
    return max(1, round(mean, ROUNDED_TO - 1 - math.floor(math.log10(mean))).__int__())


def flat(document: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The figures that are there, by the tool's names."""
    return {name: document[name] for name in names if isinstance(document.get(name), int | float)}


def in_utc(moment: datetime.datetime | float | None) -> str | None:
    """A moment, or seconds since 1970, as records have it; a moment without a zone is taken as this machine's time."""
    if moment is None:
        return None
    known = datetime.datetime.fromtimestamp(moment, datetime.UTC) if isinstance(moment, int | float) else moment
    return known.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
