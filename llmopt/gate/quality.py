"""Quality of the two sides: proven once for each artifact, so its doubt is that of the text and not of the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.core.run_row import served_as
from llmopt.core.statistics import Z_95
from llmopt.core.student import quantile
from llmopt.gate.blocks import Reading
from llmopt.gate.counts import Outcome
from llmopt.gate.thresholds import Threshold

KEYS = {"kl": "kl_mean", "kl_p99": "kl_p99", "top1": "top1_agreement", "perplexity": "perplexity"}
INTERVALS = {"kl": "kl_mean_interval", "top1": "top1_interval", "perplexity": "perplexity_interval"}
TEXT = ("text_sha256", "tokens")
NORMAL = 1e6  # degrees of freedom
# An unquantized model is its own reference, proven or not.
REFERENCE = {
    "kl_mean": 0.0,
    "kl_mean_interval": [0.0, 0.0],
    "kl_p99": 0.0,
    "top1_agreement": 1.0,
    "top1_interval": [1.0, 1.0],
}


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
    found = []
    for one in thresholds:
        base, candidate = proofs(base_runs, candidate_runs, one)
        if known_in(base, one) and known_in(candidate, one):
            if [base.get(name) for name in TEXT] != [candidate.get(name) for name in TEXT]:
                raise UsageError(
                    "the two sides were proven on different texts, or on different lengths of them",
                    hint="prove both alike: llmopt quality DIR --text FILE --tokens N",
                )
            found.append(change(one, base, candidate, confidence))
        elif not one.default:
            side = "the base" if not known_in(base, one) else "the candidate"
            raise UsageError(
                f"{side} has no {one.name}: it was not proven",
                hint="llmopt quantize proves; leave --quality out for a URL",
            )
    return tuple(found)


def known_in(proof: Mapping[str, Any], threshold: Threshold) -> bool:
    return proof.get(KEYS[threshold.metric.name]) is not None


def proofs(
    base: Sequence[Reading], candidate: Sequence[Reading], threshold: Threshold
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What is known of the quality of both sides. Where proofs of a side differ, the best of the base, the worst of the candidate."""
    worst = max if threshold.metric.better == "lower" else min
    best = min if threshold.metric.better == "lower" else max
    sides = []
    for side, pick in ((base, best), (candidate, worst)):
        there = [r for r in side if r.quality and known_in(r.quality, threshold)]
        known = [r.quality for r in there if r.quality and not r.invalid] or [r.quality for r in there if r.quality]
        sides.append(pick(known, key=lambda q: q[KEYS[threshold.metric.name]]) if known else {})
    ours, theirs = sides
    if not ours and theirs and is_reference(base, candidate) and known_in(REFERENCE, threshold):
        ours = REFERENCE | {name: theirs.get(name) for name in TEXT}
    if not theirs and ours and is_reference(candidate, base) and known_in(REFERENCE, threshold):
        theirs = REFERENCE | {name: ours.get(name) for name in TEXT}
    return ours, theirs


def unquantized(method: str | None, serve: Mapping[str, Any]) -> bool:
    """Whether a model of this quantization method gives, served so, what the unquantized weights give.

    A smaller KV cache changes it, and adapters and some extra arguments do (``served_as``): unproven then.
    """
    return method == "none" and served_as(serve) == "auto"


def is_reference(side: Sequence[Reading], other: Sequence[Reading]) -> bool:
    """Whether all runs of a side are of the unquantized model that the other side comes from."""
    there = [r for r in side if r.run_id]
    models = {r.model for r in (*there, *other) if r.run_id}
    return bool(there) and len(models) == 1 and None not in models and all(r.unquantized for r in there)


def change(
    threshold: Threshold, base: Mapping[str, Any], candidate: Mapping[str, Any], confidence: float
) -> QualityChange:
    key, name = KEYS[threshold.metric.name], threshold.metric.name
    before, now = float(base[key]), float(candidate[key])
    if not threshold.absolute:
        for word, side in (("base", base), ("candidate", candidate)):
            require_ratio(word, name, float(side[key]), side.get(INTERVALS.get(name, "")))
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


def require_ratio(word: str, name: str, value: float, interval: Sequence[float] | None) -> None:
    """Raise UsageError for figures that have no logarithm."""
    if not all(0 < v < math.inf for v in (value, *(interval or ()))):
        raise UsageError(
            f"the {word}'s {name} is {value:g}{f' {list(interval)}' if interval else ''}: there is no ratio",
            hint="prove it again: llmopt quality DIR; or --quality kl:0.01",
        )


def half(side: Mapping[str, Any], name: str, value: float, *, logarithmic: bool) -> float:
    """Half the width of a side's interval, the longer half; 0 for a measure that has none (kl_p99)."""
    interval = side.get(INTERVALS.get(name, ""))
    if not interval:
        return 0.0
    low, high = (math.log(v) if logarithmic else v for v in map(float, interval))
    middle = math.log(value) if logarithmic else value
    return max(high - middle, middle - low, 0.0)
