"""How many replicas a load needs, what is left when one is lost, and what they cost a month.

A replica is counted with the lower end of what one was measured to do at the load that keeps the SLOs, so that the number of
replicas errs on the side of too many.  What the SLOs do when one is lost is read off the measured load curve: between two
points in a straight line over requests per second (``interpolated``), below the lowest as at the lowest, and beyond the highest
nothing is known.  A closed loop never queues more than its users: an open stream of the same rate waits longer, and a
figure from one says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.core.metrics import METRICS, value_of
from llmopt.core.units import show
from llmopt.deploy.plan import Capacity, Evidence, Slo, Wishes

HOURS_OF_A_MONTH = 730.0  # 8760 / 12
SPARE = 1  # N + 1: one may be lost, or taken away for an update, and the load still fits


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A metric at a load, read off the curve: ``value`` unknown where nothing was measured so far up."""

    value: float | None
    how: str


def capacity(evidence: Evidence, wishes: Wishes, *, shared_machine: bool = False) -> Capacity:
    """``shared_machine``: all replicas run on one machine, each was measured with one of its own.

    Raises UsageError for a load where nothing tells what a replica can do, and for a number that is none.
    """
    rate = evidence.figures.get("requests_per_s")
    each = None if rate is None else rate.value if rate.low is None else rate.low
    replicas, needed = replicas_for(wishes, each)
    total = None if each is None else each * replicas
    left = None if each is None else each * (replicas - 1)
    month, month_spot = (
        None if price is None else price * HOURS_OF_A_MONTH * replicas
        for price in (wishes.price_per_hour, wishes.spot_price_per_hour)
    )
    words = (
        *words_of_one(evidence, each),
        *words_of_all(wishes, replicas, needed, each, shared_machine),
        *words_of_a_loss(evidence, wishes, replicas, each),
        *words_of_cost(evidence, wishes, replicas, month, month_spot),
    )
    return Capacity(
        replicas=replicas,
        spare=max(0, replicas - (needed if needed is not None else replicas)),
        per_replica_rps=each,
        total_rps=total,
        after_one_lost_rps=left,
        load_rps=wishes.load_rps,
        per_month=month,
        per_month_spot=month_spot,
        words=words,
    )


def replicas_for(wishes: Wishes, each: float | None) -> tuple[int, int | None]:
    """(all, those that the load needs; ``None`` where no load was given). Raises UsageError."""
    if wishes.load_rps is None:
        if wishes.replicas is None or wishes.replicas < 1:
            raise UsageError(f"{wishes.replicas} replicas are none", hint="--replicas 2")
        return wishes.replicas, None
    if not (math.isfinite(wishes.load_rps) and wishes.load_rps > 0):
        raise UsageError(f"--load must be more than 0 requests/s, got {wishes.load_rps:g}", hint="--load 4")
    if not each:
        raise UsageError(
            "what one replica can do was not measured, so no load can be shared out",
            hint="--replicas N instead of --load",
        )
    needed = math.ceil(round(wishes.load_rps / each, 9))
    return needed + SPARE, needed


# --- in words, each with its evidence ------------------------------------------------------------------------------


def words_of_one(evidence: Evidence, each: float | None) -> Iterator[str]:
    rate = evidence.figures.get("requests_per_s")
    if rate is None or rate.value is None or each is None:
        yield "what one replica can do is unknown: requests_per_s was not measured"
        return
    bounds = "" if rate.low is None or rate.high is None else f" [{rps(rate.low)}, {rps(rate.high)}]"
    which = "its lower end counts" if rate.low is not None else "it has no interval, and counts as it is"
    runs = f"{evidence.runs} run{'s' * (evidence.runs != 1)}"
    yield f"one replica does {rps(rate.value)} requests/s{bounds} at {evidence.load} ({rate.evidence}, {runs}): {which}"


def words_of_all(
    wishes: Wishes, replicas: int, needed: int | None, each: float | None, shared_machine: bool
) -> Iterator[str]:
    if wishes.load_rps is not None and each is not None:
        yield (
            f"{replicas} replicas: {wishes.load_rps:g} requests/s / {rps(each)} a replica need {needed}, and {SPARE} is spare"
            " (calculated from the lower end of the measured rate)"
        )
    elif each is not None:
        yield f"{count(replicas)} together: {rps(each * replicas)} requests/s (calculated: {replicas} × {rps(each)})"
    if shared_machine and replicas > 1:
        yield (
            f"one replica was measured with the machine to itself, and here {replicas} share one:"
            " the sum holds only where each has cores, memory and GPUs of its own"
        )


def words_of_a_loss(evidence: Evidence, wishes: Wishes, replicas: int, each: float | None) -> Iterator[str]:
    if each is None:
        return
    if replicas == 1:
        yield "with one replica nothing is left when it is lost: requests fail until it is back" + restart_words(
            evidence
        )
        return
    left = each * (replicas - 1)
    load = wishes.load_rps if wishes.load_rps is not None else each * replicas
    asked = "the load" if wishes.load_rps is not None else "all that they do together"
    kept = [slo.text for slo in evidence.slos if slo.measured is not None and slo.measured <= slo.bound]
    promise = f", where {' and '.join(kept)} {'was' if len(kept) == 1 else 'were'} measured to hold" if kept else ""
    yield f"one lost: {rps(left)} requests/s are left (calculated: {replicas - 1} × {rps(each)}){promise}"
    share = load / (replicas - 1)
    where = f"one lost at {asked} ({rps(load)} requests/s, {rps(share)} a replica)"
    for words in dict.fromkeys(kept_at(slo, evidence, share) for slo in evidence.slos):
        yield f"{where}: {words}"


def kept_at(slo: Slo, evidence: Evidence, share: float) -> str:
    """Whether an SLO holds at so many requests per second a replica, in words."""
    read = at_rate(evidence, slo, share)
    if read.value is None:
        return f"whether the SLOs hold is unknown: {read.how}"
    unit = METRICS[slo.metric].unit
    holds = "holds" if read.value <= slo.bound else "is missed"
    return f"{slo.text} {holds}: {show(read.value, unit)} ({read.how})"


def words_of_cost(
    evidence: Evidence, wishes: Wishes, replicas: int, month: float | None, month_spot: float | None
) -> Iterator[str]:
    if month is not None:
        yield f"on demand: {month:,.2f} a month (calculated: {replicas} × {wishes.price_per_hour:g} an hour × {HOURS_OF_A_MONTH:g} h)"
    if month_spot is not None:
        yield (
            f"on spot: {month_spot:,.2f} a month (calculated: {replicas} × {wishes.spot_price_per_hour:g} an hour × {HOURS_OF_A_MONTH:g} h);"
            " an interruption takes one replica away, which is the loss above, until another machine is there"
            + restart_words(evidence)
        )


def restart_words(evidence: Evidence) -> str:
    if evidence.load_s is None:
        return " and has loaded the model (how long that takes was not measured)"
    return f" and has loaded the model ({evidence.load_s:.1f} s, measured)"


# --- the load curve --------------------------------------------------------------------------------------------------


def at_rate(evidence: Evidence, slo: Slo, rate: float) -> Reading:
    """The SLO's percentile at so many requests per second of one replica."""
    points = sorted(known_points(evidence.curve, slo))
    if not points:
        return Reading(value=None, how="no load curve was measured")
    loop = evidence.workload.get("load", "closed")
    caution = "; of a closed loop: an open stream of that rate waits longer" if loop == "closed" else ""
    (lowest, first), (highest, _) = points[0], points[-1]
    if rate <= lowest:
        return Reading(value=first, how=f"measured at {rps(lowest)} requests/s, the lowest load{caution}")
    if rate > highest:
        return Reading(value=None, how=f"more than the {rps(highest)} requests/s that were measured of one replica")
    below, above = next((a, b) for a, b in itertools.pairwise(points) if a[0] < rate <= b[0])
    part = (rate - below[0]) / (above[0] - below[0])
    return Reading(
        value=below[1] + part * (above[1] - below[1]),
        how=f"interpolated between {rps(below[0])} and {rps(above[0])} requests/s{caution}",
    )


def known_points(curve: Sequence[Any], slo: Slo) -> Iterator[tuple[float, float]]:
    """(requests per second, the SLO's percentile) of the points that stand: neither invalid nor past saturation.

    Past saturation the same rate is met at ever longer waiting times, so such a point is no function of the rate.
    """
    for point in curve:
        if point.get("status") == "invalid" or point.get("saturated"):
            continue
        rate = value_of(point["metrics"], METRICS["requests_per_s"], None)
        value = value_of(point["metrics"], METRICS[slo.metric], f"p{round(slo.share * 100)}")
        if rate is not None and value is not None:
            yield rate, value


def rps(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def count(replicas: int) -> str:
    return f"{replicas} replica{'' if replicas == 1 else 's'}"
