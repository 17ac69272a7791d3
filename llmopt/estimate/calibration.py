"""What runs of a device teach about it: the factors that explain them best, and how well they do.

Unknown are the logarithms by which the table is off, for each engine and, on top, for each of its layouts, drawn towards
0 by the table's own spread (so that one run moves little beyond its own configuration, and many are followed), with a
least squares on logarithms that single wild runs do not bend.  What they leave is kept for each configuration
(``neighbours``).  Each configuration is also predicted by all the others:
that error is what ``estimate`` prints beside its figures, and what its intervals rest on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmopt.estimate.efficiency import (
    NAMES,
    OF_A_FORMAT,
    Coordinate,
    Group,
    Knowledge,
    coordinates,
    known,
    prior_factors,
    shifted,
    table,
)
from llmopt.estimate.least_squares import Point, Vector, solve
from llmopt.estimate.neighbours import CORRECTED, Neighbour, left_at, place_of
from llmopt.estimate.roofline import Demand, Factors, Peak, Times, times

METRICS = ("itl_s", "output_tps", "ttft_s")
NOISE = {"itl_s": 0.06, "output_tps": 0.06, "ttft_s": 0.25}  # of a run and of the model, until the fit itself tells
LEAST_NOISE = 0.02
PASSES = 2  # of the fit, each with the noise that the one before showed
TO_DEVIATION = 1.4826  # of a normal distribution: its deviation over its median absolute error
NINE_OF_TEN, DEVIATIONS = 0.9, 1.645  # how many of a normal distribution lie within so many deviations
ENOUGH = 5  # configurations' worth of weight has the table's error of the model


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One run. ``key``: alike for runs of the same configuration and load; ``measured``: of ``METRICS`` those that it has."""

    group: Group
    peak: Peak
    demand: Demand
    measured: Mapping[str, float]
    key: str


def calibrated(observations: Sequence[Observation]) -> Knowledge:
    """What these runs teach; nothing without any."""
    merged = by_configuration([o for o in observations if known(o.group)])
    if not merged:
        return Knowledge()
    places = list(dict.fromkeys(c for o in merged for c in coordinates(o.group)))
    noise = dict(NOISE)
    for _ in range(PASSES):
        points = [point_of(o, places, noise) for o in merged]
        solution = solve(points, [c.spread for c in places])
        noise = shown(merged, points, solution.unknowns, noise)
    near = neighbours_of(merged, points, solution.unknowns)
    errors = left_out(merged, solution.left_out, near)
    return Knowledge(
        neighbours=near,
        found=dict(zip(places, solution.unknowns, strict=True)),
        covariance={
            (one, other): solution.covariance[i][j] for i, one in enumerate(places) for j, other in enumerate(places)
        },
        error=error_of(errors), runs=len(merged), engines=counted(merged),
        left_out={name: statistics.median(abs(math.expm1(e)) for e in own) for name, own in errors.items()},
    )  # fmt: skip


def by_configuration(observations: Sequence[Observation]) -> list[Observation]:
    """Repeats as one, of their geometric means: a configuration that was measured ten times is not left out by one of them."""
    groups: dict[str, list[Observation]] = {}
    for o in observations:
        groups.setdefault(o.key, []).append(o)
    return [
        Observation(
            group=own[0].group, peak=own[0].peak, demand=own[0].demand, key=key,
            measured={
                name: statistics.geometric_mean(values)
                for name in METRICS if (values := [o.measured[name] for o in own if name in o.measured])
            },
        )
        for key, own in groups.items()
    ]  # fmt: skip


def point_of(o: Observation, places: Sequence[Coordinate], noise: Mapping[str, float]) -> Point:
    predict = predictor(o, places)
    names = [name for name in METRICS if name in o.measured]
    measured = [math.log(o.measured[name]) for name in names]

    def residuals(unknowns: Vector) -> Vector:
        found = predict(unknowns)
        return [math.log(getattr(found, name)) - log for name, log in zip(names, measured, strict=True)]

    own = tuple(places.index(c) for c in coordinates(o.group))
    return Point(residuals=residuals, uses=own, deviations=tuple(noise[name] for name in names))


def predictor(o: Observation, places: Sequence[Coordinate]) -> Callable[[Vector], Times]:
    """As ``Knowledge.factors`` does it, without looking anything up again."""
    prior = prior_factors(o.group)
    engine, layout = o.group.engine, o.group.layout
    of = [
        (
            name,
            getattr(prior, name),
            places.index(Coordinate(engine=engine, factor=name)),
            places.index(Coordinate(engine=engine, factor=name, layout=layout)) if name in OF_A_FORMAT else None,
        )
        for name in NAMES
    ]
    bandwidth, flops, demand = o.peak.bandwidth, o.peak.computing(layout), o.demand

    def predict(unknowns: Vector) -> Times:
        values = {n: shifted(n, v, unknowns[i] + (0.0 if j is None else unknowns[j])) for n, v, i, j in of}
        return times(demand, bandwidth, flops, Factors(**values, hides_launches=prior.hides_launches))

    return predict


def shown(
    merged: Sequence[Observation], points: Sequence[Point], unknowns: Vector, noise: Mapping[str, float]
) -> dict[str, float]:
    """The deviation of each metric's residuals; with few of them mostly what was expected before."""
    found = {}
    for name, expected in noise.items():
        own = []
        for o, point in zip(merged, points, strict=True):
            names = [n for n in METRICS if n in o.measured]
            if name in names:
                own.append(abs(point.residuals(unknowns)[names.index(name)]))
        seen = TO_DEVIATION * statistics.median(own) if own else expected
        share = len(own) / (len(own) + ENOUGH)
        found[name] = max(LEAST_NOISE, share * seen + (1 - share) * expected)
    return found


def neighbours_of(merged: Sequence[Observation], points: Sequence[Point], unknowns: Vector) -> tuple[Neighbour, ...]:
    """What the fitted factors leave of each configuration."""
    found = []
    for o, point in zip(merged, points, strict=True):
        off = dict(zip([n for n in METRICS if n in o.measured], point.residuals(unknowns), strict=True))
        left = {name: -off[name] for name in CORRECTED if name in off}
        found.append(Neighbour(place=place_of(o.group, o.demand), left=left))
    return tuple(found)


def left_out(
    merged: Sequence[Observation], residuals: Sequence[Vector], near: Sequence[Neighbour]
) -> dict[str, list[float]]:
    """By metric, how far each configuration is from what all others predict, their neighbours' rest included."""
    found: dict[str, list[float]] = {}
    for place, (o, own) in enumerate(zip(merged, residuals, strict=True)):
        others = [*near[:place], *near[place + 1 :]]
        for name, value in zip([n for n in METRICS if n in o.measured], own, strict=True):
            moved = left_at(near[place].place, others, name) if name in CORRECTED else 0.0
            found.setdefault(name, []).append(value + moved)
    return found


def error_of(errors: Mapping[str, Sequence[float]]) -> float:
    """Deviation of what a model that was fitted to all others is off, with the table's own as ``ENOUGH`` configurations."""
    own = [e for name in ("itl_s", "output_tps") for e in errors.get(name, ())]
    mine = float(table()["spread"]["model"])
    if not own:
        return mine
    off = sorted(abs(e) for e in own)
    # Some are further off than a normal distribution with that median has them: nine of ten shall lie within the interval.
    ninth = off[min(len(off) - 1, math.ceil(NINE_OF_TEN * len(off)))] / DEVIATIONS
    seen = max(TO_DEVIATION * statistics.median(off), ninth, LEAST_NOISE)
    count = len(own) / 2
    return math.sqrt((ENOUGH * mine**2 + count * seen**2) / (ENOUGH + count))


def counted(merged: Sequence[Observation]) -> dict[str, int]:
    found: dict[str, int] = {}
    for o in merged:
        found[o.group.engine] = found.get(o.group.engine, 0) + 1
    return found
