"""At which load a configuration is judged: one and the same for all limits.

With SLOs, the highest load measured that keeps every limit.  Without, the load of the highest throughput before
saturation: of an open loop the highest rate that the server keeps up with, of a closed one the fewest users that reach the
highest throughput, since more of them only wait longer.  For the lowest latency it is the lowest load, which is the same for
all: each at the load of its own throughput would put the one in front that can take the fewest users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmopt.core.domain import Goal, Limit
from llmopt.core.metric_table import parse_metric
from llmopt.recommend.candidates import Candidate
from llmopt.recommend.constraints import OBJECTIVES, excess_at, holds, of_the_load

AS_MUCH = 0.98  # of the highest throughput of a curve: the rest is noise between points


def choose(candidate: Candidate, goal: Goal) -> Candidate:
    """The candidate at its point. Invalid points are none; one past saturation keeps no SLO."""
    places = [i for i, point in enumerate(candidate.points) if not point.invalid]
    if not places:
        return replace(candidate, at=0, why="no valid run")
    slos = [limit for limit in goal.limits if of_the_load(limit)]
    passing = [i for i in places if all(holds(candidate, i, limit) for limit in goal.limits)]
    if slos:
        quick = [i for i in places if all(holds(candidate, i, x) for x in slos) and not candidate.points[i].saturated]
        passing = [i for i in passing if i in quick]
        at = passing[-1] if passing else nearest_place(candidate, quick or places, goal.limits)
        return replace(candidate, at=at, why=why_with_slos(candidate, at, places, passing))
    if wants_latency(goal):
        at = (passing or places)[0]
        return replace(
            candidate, at=at, why=f"{candidate.points[at].load}: the lowest load, where latencies are compared"
        )
    at, why = best_throughput(candidate, passing or places)
    return replace(candidate, at=at, why=why)


def wants_latency(goal: Goal) -> bool:
    """Whether the first objective is a time of a request."""
    first = goal.optimize.split(",")[0].strip()
    if first in OBJECTIVES:  # asked of every candidate: parse_metric would look for the nearest name each time
        return first == "latency"
    metric, _ = parse_metric(first)
    return metric.of_request is not None and metric.unit == "s"


def nearest_place(candidate: Candidate, places: Sequence[int], limits: Sequence[Limit]) -> int:
    """The load at which the limits are broken least; the highest of equals: KL is broken alike at all."""
    return min(places, key=lambda i: (candidate.points[i].saturated, excess_at(candidate, i, limits), -i))


def why_with_slos(candidate: Candidate, at: int, places: Sequence[int], passing: Sequence[int]) -> str:
    load, count = candidate.points[at].load, len(candidate.points)
    if not passing:
        where = f"nearest to it: {load}, of {count} loads measured" if count > 1 else f"the one load measured: {load}"
        return f"no load keeps every limit at once; {where}"
    if count == 1:
        return f"{load}: the one load measured"
    words = f"{load}: the highest of {count} loads measured that keeps every limit"
    if at == places[-1] == count - 1:
        words += ", and the highest measured: it may keep them at more"
    missed = [candidate.points[i].load for i in places if i < at and i not in passing]
    if missed:
        words += f"; doubt: it does not at {', '.join(missed)}, which is less"
    return words


def best_throughput(candidate: Candidate, places: Sequence[int]) -> tuple[int, str]:
    points = candidate.points
    if len(points) == 1:
        return places[0], f"{points[places[0]].load}: the one load measured"
    before = [i for i in places if not points[i].saturated]
    rates = {i: rate for i in before or places if (rate := points[i].value("output_tps")) is not None}
    if not rates:
        return places[-1], f"{points[places[-1]].load}: its throughput is not known at any load"
    most = max(rates.values())
    at = next(i for i, rate in rates.items() if rate >= AS_MUCH * most)
    if not before:
        return (
            at,
            f"{points[at].load}: every load measured is past saturation, latencies depend on the length of the run",
        )
    if points[at].workload["load"] == "open":
        end = "" if len(before) < len(places) else "; no saturation was reached"
        at = max(rates, key=lambda i: rates[i])
        return at, f"{points[at].load}: the highest throughput before saturation{end}"
    more = "; more users only wait longer" if at < places[-1] else "; no saturation was reached"
    return at, f"{points[at].load}: the highest throughput of its curve{more}"
