"""Readings and blocks: what a run leaves for the gate, and how a block becomes one difference for each metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmopt.core.metric_table import value_of
from llmopt.gate.counts import Counts, total
from llmopt.gate.thresholds import Threshold


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One run. ``invalid`` says why its figures count for nothing; ``session`` names the start of its server.

    ``model``: key of the unquantized weights that it comes from; ``unquantized``: it is these, with the usual KV cache.
    """

    run_id: str
    metrics: Mapping[str, Any]
    counts: Counts = field(default_factory=Counts)
    quality: Mapping[str, Any] | None = None
    invalid: tuple[str, ...] = ()
    session: str = ""
    started_at: str = ""
    model: str | None = None
    unquantized: bool = False

    def value(self, threshold: Threshold) -> float | None:
        """Above zero; ``None`` for what is unknown, or has no logarithm."""
        found = value_of(dict(self.metrics), threshold.metric, threshold.statistic)
        return found if found is not None and 0 < found < math.inf else None


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some runs of each side close together in time. It is whole when every run of it counts."""

    number: int
    base: tuple[Reading, ...]
    candidate: tuple[Reading, ...]

    @property
    def readings(self) -> tuple[Reading, ...]:
        return self.base + self.candidate

    @property
    def whole(self) -> bool:
        return bool(self.base and self.candidate) and not any(r.invalid for r in self.readings)

    def knows(self, threshold: Threshold) -> bool:
        """Whether a run of each side has the figure: those that have it speak for their side."""
        return all(any(r.value(threshold) is not None for r in side) for side in (self.base, self.candidate))

    def worsening(self, threshold: Threshold) -> float:
        """Mean logarithm of the candidate's runs less that of the base's, worse above zero."""
        sides = [mean_log(side, threshold) for side in (self.base, self.candidate)]
        return (sides[1] - sides[0]) * (1 if threshold.metric.better == "lower" else -1)

    def counts(self) -> tuple[Counts, Counts]:
        return total(r.counts for r in self.base), total(r.counts for r in self.candidate)


def sides_of(blocks: Sequence[Block]) -> tuple[list[Reading], list[Reading]]:
    return [r for b in blocks for r in b.base], [r for b in blocks for r in b.candidate]


def mean_log(readings: Sequence[Reading], threshold: Threshold) -> float:
    """Of the runs that have the figure; there must be one."""
    values = [v for r in readings if (v := r.value(threshold)) is not None]
    return math.fsum(map(math.log, values)) / len(values)


def geometric_mean(readings: Sequence[Reading], threshold: Threshold) -> float:
    return math.exp(mean_log(readings, threshold))
