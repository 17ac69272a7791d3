"""A status for each metric from its blocks: the statistics of the gate.

Of each block one number remains: how much worse the candidate's runs were than the base's, as a difference of mean
logarithms.  Blocks are independent (servers were started anew), runs of a block and requests of a run are not, so
nothing below a block is counted as evidence.

Student's t on these differences, not a bootstrap and not a permutation: of five blocks there are 32 sign flips, and the
rarest is still one in 32.  How often it is wrong with noise of several kinds is measured in benchmarks/gate.

*Regression*: the interval lies wholly beyond what is tolerated, and the estimate beyond what blocks.  *Pass*: the
interval lies wholly below what is tolerated.  Everything else is inconclusive.  The primary metric and the others share
the error half and half; the others share theirs by Holm (1979).  A pass needs every metric to pass, so it shares
nothing (Berger 1982).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmopt.core.student import quantile, tail
from llmopt.gate.thresholds import Threshold

Decision = Literal["regression", "improved", "equivalent", "not worse", "inconclusive"]
PASSED: tuple[Decision, ...] = ("improved", "equivalent", "not worse")
POWER = 0.8  # of the least effect that would have been found
MOST_BLOCKS = 2000  # a plan beyond is told as "more than"
# A clock and an engine that repeat themselves to the last digit are no proof of no noise at all.
LEAST_SPREAD = 1e-4


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric, base against candidate. All losses are on the logarithmic scale, worse is above zero.

    ``low`` is the bound that the metric's share of the error allows, ``high`` the one that the whole look allows.
    ``detectable``: the least true loss that blocks like these would find in four of five gates.  ``more_blocks``: so many
    blocks in all would decide if the estimate stayed what it is; ``None`` where none would.  ``by_block``: the loss of each.
    ``withheld``: a regression by the runs that are there, and none by what is sure of them, see ``trimming``.
    """

    threshold: Threshold
    base: float
    candidate: float
    loss: float
    low: float
    high: float
    spread: float
    blocks: int
    decision: Decision
    detectable: float
    more_blocks: int | None
    by_block: tuple[float, ...] = ()
    withheld: bool = False

    @property
    def passed(self) -> bool:
        return self.decision in PASSED


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the blocks say of one metric: the mean difference, its standard error with its degrees of freedom."""

    mean: float
    error: float
    freedom: float
    spread: float
    blocks: int
    by_block: tuple[float, ...] = ()

    def bound(self, level: float) -> float:
        """Half the width of the interval whose each side may be wrong with probability ``level``."""
        return quantile(level, self.freedom) * self.error

    def p_beyond(self, margin: float) -> float:
        """P of such a mean or a larger one if the true loss were ``margin``."""
        return tail((self.mean - margin) / self.error, self.freedom)


def sample_of(differences: Sequence[float]) -> Sample:
    """Of two blocks or more. Raises ValueError below."""
    count = len(differences)
    if count < 2:
        raise ValueError("one block says nothing of its own noise")
    mean = math.fsum(differences) / count
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1))
    spread = max(spread, LEAST_SPREAD)
    return Sample(
        mean=mean,
        error=spread / math.sqrt(count),
        freedom=count - 1,
        spread=spread,
        blocks=count,
        by_block=tuple(differences),
    )


def levels(samples: Mapping[str, Sample], thresholds: Sequence[Threshold], error: float) -> dict[str, float]:
    """The error that each metric's bound may spend: the primary one (the first) has half, the others share half by Holm.

    Holm's steps: the smallest p has the error over their number; where it is beyond its block the next has the error
    over one less; the first that is not ends it, and the rest stay at that level.
    """
    first, *others = thresholds
    if not others:
        return {first.name: error}
    found = {first.name: error / 2}
    left = sorted(others, key=lambda t: samples[t.name].p_beyond(t.as_log(t.tolerate)))
    for place, one in enumerate(left):
        level = error / 2 / (len(left) - place)
        if not regressed(samples[one.name], one, level):
            return found | {other.name: level for other in left[place:]}
        found[one.name] = level
    return found


def regressed(sample: Sample, threshold: Threshold, level: float) -> bool:
    beyond = sample.mean - sample.bound(level) > threshold.as_log(threshold.tolerate)
    return beyond and sample.mean > threshold.as_log(threshold.block)


def decide(
    samples: Mapping[str, Sample],
    values: Mapping[str, tuple[float, float]],
    thresholds: Sequence[Threshold],
    error: float,
) -> list[Change]:
    """One change for each threshold, in their order. ``values`` are base and candidate as they are shown."""
    level = levels(samples, thresholds, error)
    return [change(samples[one.name], values[one.name], one, level[one.name], error) for one in thresholds]


def change(sample: Sample, values: tuple[float, float], threshold: Threshold, level: float, error: float) -> Change:
    low, high = sample.mean - sample.bound(level), sample.mean + sample.bound(error)
    return Change(
        threshold=threshold,
        base=values[0],
        candidate=values[1],
        loss=sample.mean,
        low=low,
        high=high,
        spread=sample.spread,
        blocks=sample.blocks,
        decision=decision_of(sample.mean, low, high, threshold),
        detectable=detectable(sample, threshold, level),
        more_blocks=blocks_that_decide(sample, threshold, level, error),
        by_block=sample.by_block,
    )


def decision_of(mean: float, low: float, high: float, threshold: Threshold) -> Decision:
    tolerate, block = threshold.as_log(threshold.tolerate), threshold.as_log(threshold.block)
    if low > tolerate and mean > block:
        return "regression"
    if high >= tolerate:
        return "inconclusive"
    if high < 0:
        return "improved"
    return "equivalent" if low > -tolerate else "not worse"


def detectable(sample: Sample, threshold: Threshold, level: float) -> float:
    """The least true loss found in ``POWER`` of all gates with as many blocks and as much noise as these."""
    found = threshold.as_log(threshold.tolerate) + sample.bound(level)
    return max(found, threshold.as_log(threshold.block)) + quantile(1 - POWER, sample.freedom) * sample.error


def blocks_that_decide(sample: Sample, threshold: Threshold, level: float, error: float) -> int | None:
    """How many blocks in all would decide, at the same levels, if estimate and spread stayed what they are."""
    tolerate, block = threshold.as_log(threshold.tolerate), threshold.as_log(threshold.block)
    if sample.mean > tolerate:
        distance, spends = sample.mean - tolerate, level
        if sample.mean <= block:
            return None  # worse than is tolerated, and less than what blocks: no number of blocks changes that
    else:
        distance, spends = tolerate - sample.mean, error
    return blocks_for(distance, sample.spread, spends)


def blocks_for(distance: float, spread: float, level: float) -> int | None:
    """The fewest blocks whose interval is not wider to one side than ``distance``; ``None`` beyond ``MOST_BLOCKS``."""
    if distance <= 0:
        return None
    low, high = 2, MOST_BLOCKS

    def enough(count: int) -> bool:
        return quantile(level, count - 1) * spread / math.sqrt(count) < distance

    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
