"""From blocks to a verdict: pass, regression or inconclusive, with every row that led there.

A regression of any row is a regression of the whole; a pass needs every row to pass.  Nothing passes by accident: no
metric in common, no whole block and no requests are no pass but an error, or inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmopt.core.errors import Inconclusive, LlmoptError, UsageError
from llmopt.gate import unpaired
from llmopt.gate.blocks import Block, Reading, geometric_mean, sides_of
from llmopt.gate.counts import Counted, Outcome, compare, total
from llmopt.gate.decide import Change, Sample, sample_of
from llmopt.gate.design import Design
from llmopt.gate.gaps import (
    HINT,
    chosen,
    gap_notes,
    given_up,
    knowing,
    nothing_to_compare,
    require_knowable,
    too_little,
)
from llmopt.gate.quality import KEYS, QualityChange, compare_quality, known_in, proofs
from llmopt.gate.thresholds import Threshold
from llmopt.gate.trimming import best, best_blocks, decide_surely, kept_share
from llmopt.gate.unpaired import SessionNoise

Status = Literal["pass", "regression", "inconclusive"]
MIN_BLOCKS = 2  # one says nothing of its own noise
MIN_RUNS = 2  # of each stored side, likewise
COUNTS_SHARE = 0.1  # of the error is the counts'; the metrics have the rest
EXIT_STATUS: dict[Status, int] = {"pass": 0, "regression": 3, "inconclusive": 4}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """``reasons`` are the rows that decided, in words; ``decided`` whether no further block would change it by design."""

    status: Status
    reasons: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    counted: tuple[Counted, ...] = ()
    quality: tuple[QualityChange, ...] = ()
    left_out: tuple[str, ...] = ()
    blocks: int = 0
    invalid: tuple[str, ...] = ()
    error: float | None = None
    decided: bool = False
    notes: tuple[str, ...] = ()


def judge(
    blocks: Sequence[Block],
    design: Design,
    thresholds: Sequence[Threshold],
    quality: Sequence[Threshold] = (),
    *,
    ended: bool,
) -> Judgement | None:
    """The verdict of what is there; ``None`` where no look was planned now. ``ended``: no further block comes.

    Raises UsageError for a metric that somebody named and no run can know, where nothing else is worse; LlmoptError where
    nothing was measured.
    """
    whole = [b for b in blocks if b.whole]
    good = sides_of(whole)
    wanted = chosen(*good, thresholds)
    knowing_blocks = {t.name: [b for b in whole if b.knows(t)] for t in wanted}
    kept = [t for t in wanted if len(knowing_blocks[t.name]) >= max(1, min(MIN_BLOCKS, len(whole)))]
    left_out = [t for t in wanted if t not in kept]
    error = design.error_at(len(whole), ended=ended)
    if error is None and not ended:
        return None
    readings = sides_of(blocks)
    require_something(*readings)
    changes: tuple[Change, ...] = ()
    if error and kept and len(whole) >= MIN_BLOCKS:
        samples = {t.name: sample_of([b.worsening(t) for b in knowing_blocks[t.name]]) for t in kept}
        least = {t.name: least_of_blocks(whole, t) for t in kept if kept_share(*good, t) < 1}
        values = shown({name: sides_of(there) for name, there in knowing_blocks.items()}, kept)
        changes = decide_surely(samples, least, values, kept, error * (1 - COUNTS_SHARE))
    counts = [b.counts() for b in blocks]
    judgement = conclude(
        changes,
        compare([c for c, _ in counts], [c for _, c in counts], (error or 1 - design.confidence) * COUNTS_SHARE),
        compare_quality(*readings, quality, confidence=design.confidence),
        without=f"{len(whole) or 'no'} whole block" if len(whole) < MIN_BLOCKS else "no metric that both sides have",
    )
    if judgement.status != "regression":
        require_knowable(*good, wanted)
    against = (
        *given_up(*good, wanted),
        *nothing_to_compare(*good, wanted),
        *too_little(*good, left_out, f"{MIN_BLOCKS} blocks"),
    )
    if len(whole) < MIN_BLOCKS and thresholds:
        against = (f"{len(whole)} whole blocks of {len(blocks)}", *against)
    judgement = without_pass(judgement, (*against, *quality_given_up(*readings, quality), *not_counted(*readings)))
    lost = {t.name: [b.number + 1 for b in whole if not b.knows(t)] for t in kept}
    return replace(
        judgement, left_out=names(left_out), blocks=len(whole), invalid=doubts(*readings), error=error,
        decided=ended or judgement.status != "inconclusive",
        notes=(*gap_notes(*good, kept, lost), *unproven_base(*readings, quality)),
    )  # fmt: skip


def judge_stored(
    base: Sequence[Reading],
    candidate: Sequence[Reading],
    thresholds: Sequence[Threshold],
    quality: Sequence[Threshold],
    *,
    noise: Callable[[Threshold], SessionNoise],
    confidence: float,
) -> Judgement:
    """The verdict of runs that nobody paired; ``noise`` is that between sessions.

    Raises UsageError where the base has no run with a metric that somebody named and nothing else is worse; Inconclusive
    for fewer than two runs of a side that count.
    """
    require_something(base, candidate)
    counts = [[total(r.counts for r in group) for group in unpaired.sessions(side)] for side in (base, candidate)]
    counted = compare(counts[0], counts[1], (1 - confidence) * COUNTS_SHARE)
    good = [r for r in base if not r.invalid], [r for r in candidate if not r.invalid]
    for word, side in zip(("base", "candidate"), good, strict=True):
        if len(side) < MIN_RUNS:
            if any(row.outcome == "regression" for row in counted):
                return replace(conclude((), counted, (), without=""), invalid=doubts(base, candidate), decided=True)
            raise Inconclusive(
                f"the {word} has {len(side)} run(s) that count: one alone says nothing of its own noise"
                + "".join(f"; {reason}" for reason in doubts(base if word == "base" else candidate)[:2]),
                hint="measure it again: llmopt bench; or gate what can be measured: a recipe or a URL",
            )
    wanted = chosen(*good, thresholds)
    runs = {t.name: (knowing(good[0], t), knowing(good[1], t)) for t in wanted}
    kept = [t for t in wanted if min(map(len, runs[t.name])) >= MIN_RUNS]
    left_out = [t for t in wanted if t not in kept]
    samples = {t.name: unpaired.sample(*runs[t.name], t, noise(t)) for t in kept}
    least = {t.name: least_of_runs(*good, t, noise(t)) for t in kept if kept_share(*good, t) < 1}
    values = shown(runs, kept)
    error = (1 - confidence) * (1 - COUNTS_SHARE)
    changes = decide_surely(samples, least, values, kept, error) if kept else ()
    judgement = conclude(
        changes,
        counted,
        compare_quality(base, candidate, quality, confidence=confidence),
        without="no metric that both sides have",
    )
    if judgement.status != "regression" and (missing := nothing_to_compare(*good, wanted)):
        raise UsageError(missing[0], hint=HINT)
    against = (
        *given_up(*good, wanted),
        *too_little(*good, left_out, f"{MIN_RUNS} runs of a side"),
        *quality_given_up(base, candidate, quality),
    )
    judgement = without_pass(judgement, (*against, *not_counted(base, candidate)))
    return replace(
        judgement, left_out=names(left_out), blocks=0, invalid=doubts(base, candidate), error=1 - confidence, decided=True,
        notes=(*gap_notes(*good, kept, {}), *unproven_base(base, candidate, quality)),
    )  # fmt: skip


def least_of_blocks(blocks: Sequence[Block], one: Threshold) -> Sample | None:
    found = [b.worsening(one) for b in best_blocks(blocks, one)]
    return sample_of(found) if len(found) >= MIN_BLOCKS else None


def least_of_runs(
    base: Sequence[Reading], candidate: Sequence[Reading], one: Threshold, noise: SessionNoise
) -> Sample | None:
    found = best(knowing(candidate, one), one, kept_share(base, candidate, one))
    return unpaired.sample(knowing(base, one), found, one, noise) if len(found) >= MIN_RUNS else None


def conclude(
    changes: Sequence[Change], counted: Sequence[Counted], quality: Sequence[QualityChange], *, without: str
) -> Judgement:
    """A regression of any row is one; a pass needs every row to pass, and one row that compares more than counts."""
    outcomes: list[tuple[Outcome, str]] = [(outcome_of(c), c.threshold.name) for c in changes]
    outcomes += [(row.outcome, row.name) for row in counted] + [(one.outcome, one.name) for one in quality]
    rows = {"changes": tuple(changes), "counted": tuple(counted), "quality": tuple(quality)}
    for status in ("regression", "inconclusive"):
        if found := tuple(name for outcome, name in outcomes if outcome == status):
            return Judgement(status=status, reasons=found, **rows)  # type: ignore[arg-type]
    if not changes and not quality:
        return Judgement(status="inconclusive", reasons=(without,), **rows)  # type: ignore[arg-type]
    return Judgement(status="pass", reasons=(), **rows)  # type: ignore[arg-type]


def quality_given_up(
    base: Sequence[Reading], candidate: Sequence[Reading], thresholds: Sequence[Threshold]
) -> tuple[str, ...]:
    """Measures that the base was proven in and the candidate was not."""
    return tuple(
        f"{t.name} is known of the base alone"
        for t in thresholds
        for ours, theirs in [proofs(base, candidate, t)]
        if known_in(ours, t) and not known_in(theirs, t)
    )


def unproven_base(
    base: Sequence[Reading], candidate: Sequence[Reading], thresholds: Sequence[Threshold]
) -> tuple[str, ...]:
    """Measures of the candidate that nothing is there to compare with."""
    return tuple(
        f"{t.name} is known of the candidate alone ({theirs[KEYS[t.metric.name]]:.4g}): it is not gated"
        for t in thresholds
        for ours, theirs in [proofs(base, candidate, t)]
        if known_in(theirs, t) and not known_in(ours, t)
    )


def not_counted(base: Sequence[Reading], candidate: Sequence[Reading]) -> tuple[str, ...]:
    """Runs of the candidate that do not count: what made them so may be what became worse, whatever the base's suffered."""
    ours, theirs = (sum(bool(r.invalid) for r in side) for side in (base, candidate))
    if not theirs:
        return ()
    return (f"{theirs} of the candidate's {len(candidate)} runs do not count, {ours} of the base's {len(base)}",)


def without_pass(judgement: Judgement, reasons: tuple[str, ...]) -> Judgement:
    """As it is, but no pass where there are reasons against one."""
    if not reasons or judgement.status != "pass":
        return judgement
    return replace(judgement, status="inconclusive", reasons=reasons)


def doubts(*sides: Sequence[Reading]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason for side in sides for r in side for reason in r.invalid))


def shown(
    runs: Mapping[str, tuple[Sequence[Reading], Sequence[Reading]]], thresholds: Sequence[Threshold]
) -> dict[str, tuple[float, float]]:
    """Both sides of each metric as people read them: geometric means over the runs that know it."""
    return {t.name: (geometric_mean(runs[t.name][0], t), geometric_mean(runs[t.name][1], t)) for t in thresholds}


def names(thresholds: Sequence[Threshold]) -> tuple[str, ...]:
    return tuple(one.name for one in thresholds)


def require_something(base: Sequence[Reading], candidate: Sequence[Reading]) -> None:
    """Raise LlmoptError where not one request was answered on either side: that is no comparison at all."""
    counts = [r.counts for r in (*base, *candidate)]
    if not any(c.ok for c in counts):
        kinds = sorted({kind for c in counts for kind in c.errors})
        raise LlmoptError(
            f"nothing was measured: every request failed on both sides ({', '.join(kinds) or 'no answer'})",
            hint="try one of the two alone first: llmopt bench --url URL --model NAME",
        )


def outcome_of(change: Change) -> Outcome:
    if change.decision == "regression":
        return "regression"
    return "pass" if change.passed else "inconclusive"
