"""What is measured now against what was promised: an endpoint that was deployed, and the figures that it was chosen by.

Nothing is paired: the promise was measured in another session, often on another machine, and its server is another start.
So both sides bear the noise between sessions, and the thresholds are wide.  SLOs are another question: whether this
endpoint keeps them now, by its own runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmopt.core.student import quantile
from llmopt.gate.decide import LEAST_SPREAD, Sample, sample_of
from llmopt.gate.thresholds import Threshold, at_most_thousandfold, parse_thresholds
from llmopt.gate.unpaired import ASSUMED_FREEDOM, SessionNoise

Kept = Literal["kept", "missed", "unclear"]
# Another start, another day, often another machine: with 5 % between sessions on both sides, which is assumed where nobody
# calibrated it, an interval at 95 % is 12 % wide to each side, and a tolerance below that would never let anything pass.
DEFAULTS = ("requests_per_s:20%:30%", "ttft_p50:20%:30%", "tpot_p50:20%:30%")
TWO_SIDED = 0.025  # of the intervals that figures carry


@dataclass(frozen=True, kw_only=True)
class Promised:
    """A figure with its 95 % interval, in the metric's own unit."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """Standard error on the logarithmic scale; nought where no interval says it."""
        if self.low is None or self.high is None or not 0 < self.low <= self.high < math.inf:
            return 0.0
        return math.log(self.high / self.low) / 2 / quantile(TWO_SIDED, ASSUMED_FREEDOM)


def default_thresholds() -> tuple[Threshold, ...]:
    return tuple(replace(threshold, default=True) for threshold in parse_thresholds(DEFAULTS))


def sample(promised: Promised, values: Sequence[float], threshold: Threshold, noise: SessionNoise) -> Sample:
    """How much worse ``values`` are than what was promised: Welch's t, its degrees of freedom after Satterthwaite (1946).

    ``values``: one or more runs of one session, above zero.  Raises ValueError without any.
    """
    if not values:
        raise ValueError("nothing was measured")
    logs = [math.log(v) for v in values]
    mean = math.fsum(logs) / len(logs)
    variances = [(noise.spread**2, noise.freedom)] * 2 + [(promised.error**2, ASSUMED_FREEDOM)]
    if len(logs) > 1:
        inside = math.fsum((v - mean) ** 2 for v in logs) / (len(logs) - 1) / len(logs)
        variances.append((inside, len(logs) - 1))
    whole = max(math.fsum(v for v, _ in variances), LEAST_SPREAD**2)
    freedom = whole**2 / max(math.fsum(v * v / f for v, f in variances), 1e-30)
    sign = 1 if threshold.metric.better == "lower" else -1
    return Sample(
        mean=sign * (mean - math.log(promised.value)),
        error=math.sqrt(whole),
        freedom=max(1.0, freedom),
        spread=math.sqrt(whole),
        blocks=len(values),
    )


@dataclass(frozen=True, kw_only=True)
class SloFound:
    """``measured``: geometric mean over the runs, with the interval that the confidence asks for."""

    status: Kept
    measured: float | None
    low: float | None
    high: float | None
    why: str = ""


def judge_slo(values: Sequence[float | None], bound: float, *, better: str, error: float) -> SloFound:
    """Whether runs keep ``bound``: kept where the interval over runs lies wholly on its good side, missed where on the other.

    ``values``: the percentile of each run; ``None`` where it has too few samples, infinite where failures are more than
    the share that may miss.  ``better``: ``lower`` or ``higher``.
    """
    if any(v is not None and math.isinf(v) for v in values):
        return SloFound(
            status="missed", measured=None, low=None, high=None, why="more requests failed than may miss it"
        )
    known = [v for v in values if v is not None and v > 0]
    if len(known) < len(values) or not known:
        return SloFound(status="unclear", measured=None, low=None, high=None, why="a run has too few requests for it")
    if len(known) < 2:
        return SloFound(
            status="unclear", measured=known[0], low=None, high=None, why="one run says nothing of its noise"
        )
    sign = 1 if better == "lower" else -1
    found = sample_of([sign * math.log(v / bound) for v in known])
    half = found.bound(error)
    ends = sorted(bound * math.exp(sign * at_most_thousandfold(x)) for x in (found.mean - half, found.mean + half))
    status: Kept = "kept" if found.mean + half < 0 else "missed" if found.mean - half > 0 else "unclear"
    return SloFound(status=status, measured=bound * math.exp(sign * found.mean), low=ends[0], high=ends[1])
