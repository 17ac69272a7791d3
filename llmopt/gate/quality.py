"""Quality of the two sides: proven once for each artifact, so its doubt is that of the text and not of the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.core.statistics import Z_95
from llmopt.core.student import quantile
from llmopt.gate.blocks import Reading
from llmopt.gate.counts import Outcome
from llmopt.gate.thresholds import Threshold

KEYS = {"kl": "kl_mean", "kl_p99": "kl_p99", "top1": "top1_agreement", "perplexity": "perplexity"}
INTERVALS = {"kl": "kl_mean_interval", "top1": "top1_interval", "perplexity": "perplexity_interval"}
TEXT = ("text_sha256", "tokens")
NORMAL = 1e6  # degrees of freedom


@dataclass(frozen=True, kw_only=True)
class QualityChange:
    """``worse`` is in the measure's own unit, of perplexity a loss on the logarithmic scale.

    Its bounds put the two intervals together as if they were independent, which makes them wider than they need be: the
    same text stands behind both.
    """

    threshold: Threshold
    base: float
    candidate: float
    worse: float
    low: float
    high: float
    outcome: Outcome

    @property
    def name(self) -> str:
        return self.threshold.name


def compare_quality(
    base_runs: Sequence[Reading],
    candidate_runs: Sequence[Reading],
    thresholds: Sequence[Threshold],
    *,
    confidence: float,
) -> tuple[QualityChange, ...]:
    """Every measure that both sides were proven in, on the same text.

    Raises UsageError for a measure that somebody named and one side lacks, and for proofs on different texts.
    """
    base, candidate = proof(base_runs), proof(candidate_runs)
    found = []
    for one in thresholds:
        key = KEYS[one.metric.name]
        if base.get(key) is not None and candidate.get(key) is not None:
            found.append(change(one, base, candidate, confidence))
        elif not one.default:
            side = "the base" if base.get(key) is None else "the candidate"
            raise UsageError(
                f"{side} has no {one.name}: it was not proven",
                hint="llmopt quantize proves; leave --quality out for a URL",
            )
    if found and [base.get(name) for name in TEXT] != [candidate.get(name) for name in TEXT]:
        raise UsageError(
            "the two sides were proven on different texts, or on different lengths of them",
            hint="prove both alike: llmopt quality DIR --text FILE --tokens N",
        )
    return tuple(found)


def proof(readings: Sequence[Reading]) -> Mapping[str, Any]:
    return next((r.quality for r in readings if r.quality), {})


def change(
    threshold: Threshold, base: Mapping[str, Any], candidate: Mapping[str, Any], confidence: float
) -> QualityChange:
    key, name = KEYS[threshold.metric.name], threshold.metric.name
    before, now = float(base[key]), float(candidate[key])
    halves = [half(side, name, float(side[key]), logarithmic=not threshold.absolute) for side in (base, candidate)]
    # The stored intervals are of 95 %; the gate's are of what was asked, and wrong to each side as often as 1 − confidence.
    wider = quantile(1 - confidence, NORMAL) / Z_95
    doubt = 0.0 if before == now else math.hypot(*halves) * wider
    if threshold.absolute:
        worse = now - before if threshold.metric.better == "lower" else before - now
        tolerate, block = threshold.tolerate, threshold.block
    else:
        worse = threshold.worsening(before, now)
        tolerate, block = threshold.as_log(threshold.tolerate), threshold.as_log(threshold.block)
    low, high = worse - doubt, worse + doubt
    outcome: Outcome = "pass" if high < tolerate else "inconclusive"
    if low > tolerate and worse > block:
        outcome = "regression"
    if name not in INTERVALS:  # one figure of a tail, with nothing to say how sure it is
        outcome = "pass" if worse <= 0 else "inconclusive"
    return QualityChange(
        threshold=threshold, base=before, candidate=now, worse=worse, low=low, high=high, outcome=outcome
    )


def half(side: Mapping[str, Any], name: str, value: float, *, logarithmic: bool) -> float:
    """Half the width of a side's interval, the longer half; 0 for a measure that has none (kl_p99)."""
    interval = side.get(INTERVALS.get(name, ""))
    if not interval:
        return 0.0
    low, high = (math.log(v) if logarithmic else v for v in map(float, interval))
    middle = math.log(value) if logarithmic else value
    return max(high - middle, middle - low, 0.0)
