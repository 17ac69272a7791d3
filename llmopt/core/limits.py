"""Limits, SLOs and stopping rules from the words on the command line: ``ttft_p95<500ms``, ``ttft<500ms``, ``ttft_p99±5%``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import replace

from llmopt.core.domain import Comparison, Limit
from llmopt.core.errors import UsageError
from llmopt.core.metric_table import METRICS, Metric, parse_metric
from llmopt.core.units import parse_quantity

COMPARE: dict[Comparison, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
UNTIL_STATISTICS = ("mean", "p50", "p90", "p95", "p99")
UNTIL_RATES = ("output_tps", "requests_per_s")


def parse_limit(text: str, *, bare_distribution: bool = False) -> Limit:
    """``ttft_p95<500ms`` → Limit. Raises UsageError that names the part which is wrong.

    ``bare_distribution`` admits ``ttft<500ms``, without a statistic.
    """
    match = re.fullmatch(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*(\S.*?)\s*", text)
    if match is None:
        raise UsageError(
            f"{text!r} is no constraint", hint="write METRIC<VALUE or METRIC>VALUE: 'ttft_p95<500ms', 'tps_p50>20'"
        )
    metric, statistic = parse_metric(match[1], bare_distribution=bare_distribution)
    bound = parse_quantity(match[3], metric.unit)
    wrong = match[2][0] == ("<" if metric.better == "higher" else ">")
    if wrong:
        turned = match[2].translate(str.maketrans("<>", "><"))
        raise UsageError(
            f"{text!r} would reject the better configurations: {match[1]} is better when {metric.better}",
            hint=f"{match[1]}{turned}{match[3]}",
        )
    comparison: Comparison = match[2]  # type: ignore[assignment]  # the pattern admits these four alone
    return Limit(
        metric=metric.name, statistic=statistic, comparison=comparison, bound=bound, text=text.replace(" ", "")
    )


def parse_slo(text: str) -> Limit:
    """A limit that each single request meets or not; a statistic in it (``ttft_p95``) says nothing there and is dropped.

    Raises UsageError for a metric that a request does not have.
    """
    limit = parse_limit(text, bare_distribution=True)
    if METRICS[limit.metric].of_request is None:
        known = ", ".join(m.name for m in METRICS.values() if m.of_request is not None)
        raise UsageError(f"{text!r}: {limit.metric} is not a metric of one request", hint=f"an SLO may use {known}")
    return replace(limit, statistic=None)


def meets(limit: Limit, value: float) -> bool:
    return COMPARE[limit.comparison](value, limit.bound)


def parse_until(text: str) -> tuple[Metric, str | None, float]:
    """``ttft_p99±5%`` → (ttft, "p99", 0.05): run until the 95 % interval is no wider than ± 5 % of the value.

    ``+-`` stands for ``±``.  Raises UsageError.
    """
    match = re.fullmatch(r"\s*([a-z0-9_]+)\s*(?:±|\+/?-)\s*([0-9]*\.?[0-9]+)\s*%\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is no stopping rule", hint="write METRIC±PERCENT%: --until 'ttft_p99±5%'")
    metric, statistic = parse_metric(match[1])
    if not (metric.of_request is not None and statistic in UNTIL_STATISTICS) and metric.name not in UNTIL_RATES:
        raise UsageError(
            f"{match[1]!r} has no interval within a run",
            hint=f"a statistic ({', '.join(UNTIL_STATISTICS)}) of a request's metric, {' or '.join(UNTIL_RATES)}",
        )
    share = float(match[2]) / 100
    if not 0 < share < 1:
        raise UsageError(f"{text!r} is out of range", hint="between 0% and 100%: --until 'ttft_p99±5%'")
    return metric, statistic, share
