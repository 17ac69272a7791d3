"""What the factors leave, as a configuration's neighbours had it.

A roofline with a few factors is off by much the same for configurations that are alike: a kernel that does badly at two
sequences does so with the next model too.  So runs teach twice: the factors, and then what is left, as the mean over
neighbours weighted by how near they are (Nadaraya 1964, Watson 1964), drawn to nothing where nobody is near.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmopt.estimate.efficiency import Group
from llmopt.estimate.roofline import Demand, Times

# On the logarithms of sequences, prompt and operations of a token; by benchmarks/estimate/speed.py, where anything from
# .4 to 1 does nearly as well.
LENGTHS = (0.6, 0.9, 0.6)
OTHER_LAYOUT = math.exp(-2)  # weight of a neighbour with other weights' kernels
NOBODY = 0.3  # so much weight has it that there is nothing left
MOST = math.log(1.5)
CORRECTED = ("itl_s", "output_tps")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a configuration stands, by what decides who is like it."""

    engine: str
    kind: str
    layout: str
    at: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """``left``: by metric, the logarithm of measured over predicted."""

    place: Place
    left: Mapping[str, float] = field(default_factory=dict)


def place_of(group: Group, demand: Demand) -> Place:
    sizes = demand.batch, demand.prompt, demand.step_flops / max(1, demand.rows)
    logs = tuple(math.log(max(size, 1.0)) for size in sizes)
    return Place(engine=group.engine, kind=group.kind, layout=group.layout, at=(logs[0], logs[1], logs[2]))


def weight(one: Place, other: Place) -> float:
    """1 for the same place; 0 where another engine or kind of device was measured."""
    if (one.engine, one.kind) != (other.engine, other.kind):
        return 0.0
    far = sum(((a - b) / length) ** 2 for a, b, length in zip(one.at, other.at, LENGTHS, strict=True))
    return math.exp(-far / 2) * (1.0 if one.layout == other.layout else OTHER_LAYOUT)


def left_at(place: Place, neighbours: Sequence[Neighbour], metric: str) -> float:
    """The logarithm by which the prediction of a metric is to be moved."""
    pairs = [(weight(place, n.place), n.left[metric]) for n in neighbours if metric in n.left]
    mean = sum(w * value for w, value in pairs) / (sum(w for w, _ in pairs) + NOBODY)
    return max(-MOST, min(MOST, mean))


def corrected(times: Times, place: Place, neighbours: Sequence[Neighbour]) -> Times:
    """A request takes as much longer as fewer are done; the first token and the prompt stay what the factors say."""
    if not neighbours:
        return times
    itl, rate = (math.exp(left_at(place, neighbours, metric)) for metric in CORRECTED)
    done = times.requests_per_s
    return replace(
        times, itl_s=times.itl_s * itl, output_tps=times.output_tps * rate, e2e_s=times.e2e_s / rate,
        requests_per_s=None if done is None else done * rate,
    )  # fmt: skip
