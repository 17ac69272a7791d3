"""The SLOs of a deployment: what alerts burn against, what the canary counts, what ``llmopt verify`` judges by.

An SLO is a bound on a percentile of what a request takes; each percentile has one, since that names its series everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from llmopt.core.domain import Limit
from llmopt.core.errors import UsageError
from llmopt.core.limits import parse_limit
from llmopt.core.metric_table import METRICS, STATISTICS, value_of
from llmopt.core.units import bound_that_holds
from llmopt.deploy.plan import Slo
from llmopt.deploy.queries import slo_label

OF_SLOS = ("ttft", "tpot")  # what twice the measured is promised of where nobody gave an SLO
PERCENTILES = ("p95", "p90", "p50")  # the highest of which there were samples enough
SHARES = {name: int(name[1:]) / 100 for name in STATISTICS if name[1:].isdigit()}
SLACK = 2.0

Measured = Callable[[str, float], float | None]  # by metric and share


def slos_of(
    asked: Sequence[str], goal: Sequence[Limit], judged: Sequence[str], metrics: dict[str, Any]
) -> tuple[Slo, ...]:
    """Those that are asked for now, else the goal's limits on percentiles, else those that its runs were judged by, else ours.

    Raises UsageError for one that is asked for and is no percentile of what a request takes.
    """
    measured = measured_in(metrics)
    if asked:
        return slos_asked_for(asked, measured)
    for limits in (goal, [parse_limit(text, bare_distribution=True) for text in judged]):
        found = [slo for limit in limits if not limit.default and (slo := slo_of(limit, measured))]
        if found:
            for slo in found:
                require_sound(slo)
            return one_each(found)
    return ours(metrics)


def without_slo(asked: Sequence[str], goal: Sequence[Limit], judged: Sequence[str]) -> tuple[str, ...]:
    """Limits that it was judged by and that are no SLO: a mean, a throughput, memory, a share of requests.

    Not those on the weights' quality, which stay kept: other weights are refused.
    """
    limits = [limit for limit in goal if not limit.default]
    if not asked and not any(map(is_slo, limits)):
        limits += [parse_limit(text, bare_distribution=True) for text in judged]
    left = [limit.text for limit in limits if not is_slo(limit) and not is_of_weights(limit)]
    return tuple(dict.fromkeys(left))


def is_slo(limit: Limit) -> bool:
    return slo_of(limit, lambda metric, share: None) is not None


def is_of_weights(limit: Limit) -> bool:
    return limit.metric in METRICS and METRICS[limit.metric].source == "quality"


def slos_asked_for(texts: Sequence[str], measured: Measured) -> tuple[Slo, ...]:
    """Raises UsageError for what is no percentile of what a request takes."""
    found = []
    for text in texts:
        limit = parse_limit(text)
        slo = slo_of(limit, measured)
        if slo is None:
            rate = limit.metric == "tps" and limit.statistic in SHARES and 0 < limit.bound < math.inf
            raise UsageError(
                f"--slo {text!r} is no bound above 0 on a percentile of what a request takes",
                hint=f"--slo '{f'tpot_{limit.statistic}<{1000 / limit.bound:.4g}ms' if rate else 'ttft_p95<500ms'}'",
            )
        found.append(slo)
    return one_each(found)


def measured_in(metrics: dict[str, Any]) -> Measured:
    return lambda metric, share: value_of(metrics, METRICS[metric], f"p{round(share * 100)}")


def slo_of(limit: Limit, measured: Measured) -> Slo | None:
    """A limit on a percentile of what a request takes; ``None`` for others, and for a bound that nothing keeps or breaks.

    ``tps_p50>20`` says that half of the requests take at most 1/20 s a token: the same share of ``tpot``.  Another percentile
    of a rate is one of the slowest requests' times, 5 % for ``tps_p95``, that nobody means and no run tells.
    """
    metric = METRICS.get(limit.metric)
    if metric is None or metric.of_request is None or limit.statistic not in SHARES or not limit.bound > 0:
        return None
    share, name, bound = SHARES[limit.statistic], limit.metric, limit.bound
    if name == "tps":
        if limit.statistic != "p50":
            return None
        name, bound = "tpot", 1 / limit.bound
    if not 0 < bound < math.inf:
        return None
    return Slo(text=limit.text, metric=name, share=share, bound=bound, measured=measured(name, share))


def require_sound(slo: Slo) -> None:
    """Raise UsageError for an SLO of a document that is none, or whose words say something else than its figures."""
    told = slo_of(parse_limit(slo.text), lambda metric, share: None)
    same = told is not None and (told.metric, told.share) == (slo.metric, slo.share)
    if told is None or not same or not math.isclose(told.bound, slo.bound):
        raise UsageError(
            f"the SLO {slo.text!r} is none that llmopt knows: {slo.share:g} of requests with {slo.metric} within {slo.bound:g}",
            hint="--slo 'ttft_p95<500ms'",
        )


def one_each(slos: Iterable[Slo]) -> tuple[Slo, ...]:
    """The tightest of each percentile; it names those that follow from it (all are upper bounds of times)."""
    found: dict[str, Slo] = {}
    for slo in slos:
        label = slo_label(slo)
        first = found.setdefault(label, slo)
        if first is not slo:
            tight, wide = sorted((first, slo), key=lambda one: one.bound)
            implied = dict.fromkeys((*tight.implies, wide.text, *wide.implies))
            found[label] = replace(tight, implies=tuple(text for text in implied if text != tight.text))
    return tuple(found.values())


def ours(metrics: dict[str, Any]) -> tuple[Slo, ...]:
    """Twice what was measured, as a limit that can be written."""
    found = []
    for metric in OF_SLOS:
        known = ((p, value_of(metrics, METRICS[metric], p)) for p in PERCENTILES)
        percentile, value = next(((p, v) for p, v in known if v), ("", None))
        if value is not None:
            text = f"{metric}_{percentile}<{bound_that_holds(SLACK * value, 's', at_most=True)}"
            limit = parse_limit(text)
            share = float(percentile[1:]) / 100
            found.append(
                Slo(text=text, metric=metric, share=share, bound=limit.bound, measured=value, chosen_by_us=True)
            )
    return tuple(found)
