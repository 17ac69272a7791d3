"""What remains of a loss where the base has no figure of some of its runs.

The base may have lost its figures where it was bad, and the candidate kept its own: then bad runs of one side are compared
with the good ones of the other.  So as large a share of the candidate's runs is left out, its worst, and what is a
regression without them too is one (bounds by trimming: Lee, Review of Economic Studies 2009).  Figures that the candidate
lost are set against none of it: they may have been those of any runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmopt.gate.blocks import Block, Reading, mean_log, sides_of
from llmopt.gate.decide import Change, Sample, decide
from llmopt.gate.gaps import knowing
from llmopt.gate.thresholds import Threshold


def kept_share(base: Sequence[Reading], candidate: Sequence[Reading], one: Threshold) -> float:
    """The share of the candidate's runs with the figure that is compared; 1 where the base lost none of its own.

    Of few runs the share that gets lost is known badly: one standard error more is left out.
    """
    known = len(knowing(base, one)) / len(base)
    return max(0.0, known - math.sqrt(known * (1 - known) * (1 / len(base) + 1 / len(candidate))))


def best(runs: Sequence[Reading], one: Threshold, share: float) -> list[Reading]:
    """The best ``share`` of runs that all have the figure."""
    ordered = sorted(runs, key=lambda r: r.value(one) or math.inf, reverse=one.metric.better == "higher")
    return ordered[: int(len(runs) * share)]


def best_blocks(blocks: Sequence[Block], one: Threshold) -> list[Block]:
    """Blocks that know the metric, without the candidate's worst runs beside the base of their block; others are left out.

    The share is that of all ``blocks``: where a whole block of the base has no figure, it lost these too.
    """
    share = kept_share(*sides_of(blocks), one)
    known = [b for b in blocks if b.knows(one)]
    sign = 1 if one.metric.better == "lower" else -1
    places = sorted(
        (sign * (mean_log([run], one) - mean_log(block.base, one)), at, place)
        for at, block in enumerate(known)
        for place, run in enumerate(block.candidate)
        if run.value(one) is not None
    )
    kept = {(at, place) for _, at, place in places[: int(len(places) * share)]}
    left = [
        replace(b, candidate=tuple(r for place, r in enumerate(b.candidate) if (at, place) in kept))
        for at, b in enumerate(known)
    ]
    return [b for b in left if b.candidate]


def decide_surely(
    samples: Mapping[str, Sample],
    least: Mapping[str, Sample | None],
    values: Mapping[str, tuple[float, float]],
    thresholds: Sequence[Threshold],
    error: float,
) -> tuple[Change, ...]:
    """As ``decide``, but a regression only where it is one by ``least`` too: a sample without the candidate's worst runs.

    There is one of each metric from which something was left out; ``None`` where too little remains.
    """
    changes = decide(samples, values, thresholds, error)
    if not least:
        return tuple(changes)
    # Where too little remains no loss is shown.
    smaller = {name: replace(found, mean=0.0) if name in least else found for name, found in samples.items()}
    smaller |= {name: found for name, found in least.items() if found is not None}
    floors = decide(smaller, values, thresholds, error)
    return tuple(
        replace(one, decision="inconclusive", low=min(one.low, floor.low), more_blocks=None, withheld=True)
        if one.decision == "regression" and floor.decision != "regression"
        else one
        for one, floor in zip(changes, floors, strict=True)
    )
