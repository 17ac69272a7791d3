"""A gate's verdicts as one document: what is printed, written for CI, and kept; numbers with the words that go with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmopt.core.machine import this_machine
from llmopt.gate.counts import Counted
from llmopt.gate.decide import MOST_BLOCKS, Change
from llmopt.gate.judge import EXIT_STATUS, Status
from llmopt.gate.quality import QualityChange
from llmopt.pipeline.gate_question import Question, Verdict

SCHEMA = 1
ORDER: tuple[Status, ...] = ("regression", "inconclusive", "pass")
NOT_PAIRED = "stored runs were not paired: what differs between their sessions cannot be told from the change"
NOISE = {
    "assumed": "assumed to be 5 % (llmopt gate calibrate measures it)",
    "calibrated": "that of llmopt gate calibrate",
    "days": "what its own days are apart",
}
STARTS = (
    "a server behind a URL is not started anew: what its one start decided (memory, clocks, neighbours) counts as its own,"
    " and the confidence holds for these two starts; a recipe or an artifact is started anew for every run"
)
NO_LOSS = math.log(2)  # found only when twice as slow, or half as much: that is none found
UNSTEADY = 0.05  # spread of a block's difference above which a clock is no good witness


def document(verdicts: Sequence[Verdict], question: Question, *, inconclusive_passes: bool) -> dict[str, Any]:
    """The worst of all cases is the verdict of the whole."""
    cases = [case(v, question) for v in verdicts]
    status = next(s for s in ORDER if any(c["status"] == s for c in cases))
    worst = next(c for c in cases if c["status"] == status)
    words = worst["words"] + (f" ({worst['candidate']})" if len(cases) > 1 else "")
    passes = status == "inconclusive" and inconclusive_passes
    return {
        "kind": "gate",
        "schema": SCHEMA,
        "status": status,
        "words": f"{status.upper()}: {words}" + ("; --on-inconclusive pass lets it through" if passes else ""),
        "exit_status": 0 if passes else EXIT_STATUS[status],
        "confidence": question.confidence,
        "machine": asdict(this_machine()),
        "cases": cases,
    }


def case(verdict: Verdict, question: Question) -> dict[str, Any]:
    found = verdict.judgement
    metrics = [metric_row(change) for change in found.changes]
    design = verdict.design
    return {
        "base": verdict.base,
        "candidate": verdict.candidate,
        "status": found.status,
        "words": words(verdict, metrics),
        "reasons": list(found.reasons),
        "paired": design is not None,
        "metrics": metrics,
        "counts": [asdict(row) for row in found.counted],
        "quality": [quality_row(row) for row in found.quality],
        "differences": [asdict(d) | {"allowed": d.name in question.allow} for d in verdict.differences],
        "causes": causes(found.changes, found.counted),
        "notes": notes(verdict),
        "left_out": list(found.left_out),
        "blocks": found.blocks,
        "planned_blocks": design.blocks if design else None,
        "looks": list(design.looks) if design else [],
        "error": found.error,
        "seed": design.seed if design else None,
        "seconds": round(verdict.seconds, 3),
        "runs": {"base": list(verdict.runs[0]), "candidate": list(verdict.runs[1])},
    }


def metric_row(change: Change) -> dict[str, Any]:
    """Changes are candidate / base − 1 in the metric's own direction; ``loss`` is how much worse, whatever the direction."""
    threshold = change.threshold
    ends = sorted(threshold.change(bound) for bound in (change.low, change.high))
    return {
        "name": threshold.name,
        "unit": threshold.metric.unit,
        "better": threshold.metric.better,
        "base": change.base,
        "candidate": change.candidate,
        "change": threshold.change(change.loss),
        "low": ends[0],
        "high": ends[1],
        "loss": loss(change, change.loss),
        "loss_low": loss(change, change.low),
        "loss_high": loss(change, change.high),
        "tolerate": threshold.tolerate,
        "block": threshold.block,
        "status": change.decision,
        "withheld": change.withheld,
        "spread": change.spread,
        "detectable": loss(change, change.detectable),
        "blocks_needed": change.more_blocks,
        "by_block": [threshold.change(one) for one in change.by_block],
    }


def loss(change: Change, worsening: float) -> float:
    moved = change.threshold.change(worsening)
    return moved if change.threshold.metric.better == "lower" else -moved


def quality_row(row: QualityChange) -> dict[str, Any]:
    return {
        "name": row.name,
        "unit": row.threshold.metric.unit,
        "base": row.base,
        "candidate": row.candidate,
        "worse": row.worse,
        "low": row.low,
        "high": row.high,
        "tolerate": row.threshold.tolerate,
        "block": row.threshold.block,
        "status": row.outcome,
    }


def words(verdict: Verdict, metrics: Sequence[dict[str, Any]]) -> str:
    """The first line: what decided, with its figures."""
    found = verdict.judgement
    if found.status == "regression":
        worse = [
            f"{m['name']} {m['loss']:.1%} worse [{m['loss_low']:.1%}, {m['loss_high']:.1%}]"
            for m in metrics
            if m["status"] == "regression"
        ]
        worse += [f"{c.name}: {c.words}" for c in found.counted if c.outcome == "regression"]
        worse += [f"{q.name} {q.base:.4g} → {q.candidate:.4g}" for q in found.quality if q.outcome == "regression"]
        return "; ".join(worse)
    if found.status == "pass":
        shown = [f"{m['name']} {m['change']:+.1%}" for m in metrics]
        shown += [f"{q.name} {q.base:.4g} → {q.candidate:.4g}" for q in found.quality]
        return "nothing is worse by more than is tolerated" + (f" ({', '.join(shown)})" if shown else "")
    unsure = [m for m in metrics if m["status"] == "inconclusive"]
    if not unsure:
        return "; ".join([*found.reasons, *found.invalid[:1]])
    worst = max(unsure, key=lambda m: m["loss_high"])
    text = f"{worst['name']} may be {between(worst)}, and {worst['tolerate']:.1%} is tolerated"
    return text + more(verdict, worst)


def between(row: dict[str, Any]) -> str:
    low, high = row["loss_low"], row["loss_high"]
    return f"{low:.1%} to {high:.1%} worse" if low > 0 else f"up to {high:.1%} worse"


def more(verdict: Verdict, row: dict[str, Any]) -> str:
    found, design, blocks = verdict.judgement, verdict.design, row["blocks_needed"]
    if row["withheld"]:
        lacking = "the base lacks the figure in some of its runs, which may be its bad ones"
        return f"; {lacking}: without as many of the candidate's worst no loss is sure"
    if design is None:
        return "; a gate that measures both sides in turn can tell: name a recipe or a URL"
    if blocks is None and row["tolerate"] < row["loss"] <= row["block"]:
        return "; more blocks would not decide it: it lies between what is tolerated and what blocks"
    if blocks is None:
        return (
            f"; with this noise more than {MOST_BLOCKS} blocks would be needed: a wider threshold, or a quieter machine"
        )
    if blocks <= found.blocks:
        return "; some more blocks may decide"
    minutes = blocks * verdict.seconds / max(1, found.blocks) / 60
    return f"; some {blocks} blocks ({minutes:.0f} min) would decide: --rounds {blocks}"


def causes(changes: Sequence[Change], counted: Sequence[Counted]) -> list[str]:
    """In plain words, where the pattern of what moved and what did not says it."""
    moved = {c.threshold.metric.name for c in changes if c.decision == "regression"}
    still = {c.threshold.metric.name for c in changes if c.passed}
    found = []
    if "tpot" in moved and "ttft" in still:
        found.append("decoding became slower: each token takes longer, the first one comes as soon as before")
    if "ttft" in moved and "tpot" in still:
        found.append(
            "prefill or the queue became slower: the first token comes later, the others follow as fast as before"
        )
    if {"tpot", "ttft"} <= moved:
        found.append(
            "both the first and the following tokens are slower: less of the machine, or a slower engine as a whole"
        )
    if "output_tps" in moved and {"tpot", "ttft"} <= still:
        found.append(
            "single requests are as fast as before, and fewer run at once: look at slots, batch size and preemptions"
        )
    if moved & {"peak_vram_bytes", "peak_rss_bytes"}:
        found.append("the server's process tree holds more memory at its peak")
    if any(row.outcome == "regression" and row.unit == "tokens" for row in counted):
        found.append(
            "prompts or answers are of another length: a tokenizer, a chat template, or a limit of output differs"
        )
    return found


def confounded(sources: Sequence[str]) -> list[str]:
    """What stands in the change beside the candidate, and where the noise of each side is from."""
    if sources == ("starts",):
        return [STARTS]
    if not any(source in NOISE for source in sources):
        return []
    sides = zip(("base", "candidate"), sources, strict=True)
    if len(set(sources)) == 1:
        return [f"{NOT_PAIRED}; the noise of each side is {NOISE[sources[0]]}"]
    return [f"{NOT_PAIRED}; the noise is " + ", ".join(f"{NOISE[s]} ({side})" for side, s in sides if s in NOISE)]


def notes(verdict: Verdict) -> list[str]:
    found = verdict.judgement
    notes = list(found.notes)
    for one in found.changes:
        if one.decision == "inconclusive" and verdict.design:
            least = f"find a loss of {loss(one, one.detectable):.1%} in four of five gates"
            if one.detectable > NO_LOSS:
                least = "would hardly find any loss: they are too few"
            notes.append(f"{one.threshold.name}: as many blocks with this noise {least}")
    notes += confounded(verdict.confounded)
    if verdict.unmeant:
        names = " ".join(f"--allow {name}" for name in verdict.unmeant)
        notes.append(f"differences that nobody allowed stand in the way of a pass: {names}, if they are what you test")
    if found.left_out:
        notes.append(f"not judged, for want of figures: {', '.join(found.left_out)}")
    if found.invalid:
        notes.append(f"runs that do not count: {'; '.join(found.invalid[:3])}")
    unsteady = [
        c.threshold.name for c in found.changes if verdict.design and c.spread > UNSTEADY and c.threshold.needs_a_clock
    ]
    if unsteady:
        notes.append(
            f"this machine is unsteady ({', '.join(unsteady)}): prefer what needs no clock, --metric peak_rss_bytes:5%, --quality kl:0.01"
        )
    return notes
