"""``llmopt gate calibrate`` and ``plan``: one thing against itself, and what its noise allows to be found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmopt.core.errors import Inconclusive, UsageError
from llmopt.core.machine import this_machine
from llmopt.gate.blocks import Block
from llmopt.gate.design import make_design
from llmopt.gate.noise import Kept, Noise, blocks_to_find, keep, kept_noise, noise_of, share_of_error
from llmopt.gate.thresholds import Threshold, parse_thresholds
from llmopt.gate.thresholds import loss as parse_loss
from llmopt.pipeline.experiment import Experiment, gate_key, open_state, save_state, stored_runs
from llmopt.pipeline.measuring import now
from llmopt.pipeline.sides import Stored, Ways, side_of

FOUND_BEYOND = 5 / 3  # of what blocks: a loss that is no borderline case
SHOWN = (
    "ttft_p50",
    "ttft_p95",
    "tpot_p50",
    "e2e_p50",
    "output_tps",
    "output_tps_whole",
    "requests_per_s",
    "peak_vram_bytes",
    "peak_rss_bytes",
)


def calibrate(text: str, ways: Ways, rounds: int, seed: int | None) -> dict[str, Any]:
    """Blocks whose two sides are one thing; what they differ by is noise. Kept for its case on this machine."""
    side = side_of(text, ways)
    if isinstance(side, Stored):
        raise UsageError("stored runs cannot be measured again", hint="a URL, a recipe or an artifact")
    rows = []
    for one in side:
        state = open_state(
            ways.results, gate_key(one, one, ["calibrate", rounds]), seed, ways.report.say, lasting=one.restarts
        )
        work = Experiment(base=one, candidate=one, results=ways.results, report=ways.report, state=state)
        design, blocks = make_design(rounds, 0.99, state.seed), work.taken_up()
        while len(blocks) < rounds:
            blocks.append(work.next_block(design))
        state.finished = True
        save_state(ways.results, state)
        whole = [b for b in blocks if b.whole]
        if len(whole) < 2:
            raise Inconclusive(
                f"{len(whole)} of {rounds} blocks count: that says nothing of noise",
                hint="the reasons are above; more --rounds",
            )
        first = stored_runs(ways.results, whole[:1])[0]
        kept = Kept(
            case_key=first.case_key, label=one.label, machine=this_machine().fingerprint, measured_at=now(),
            block_s=sum(state.seconds) / len(state.seconds), noise=noises(whole),
        )  # fmt: skip
        rows.append({"file": str(keep(ways.results, kept))} | document(kept))
    return {"cases": rows}


def noises(blocks: Sequence[Block]) -> list[Noise]:
    """Of every metric that all runs have."""
    readings = [r for b in blocks for r in b.readings]
    wanted = [t for t in parse_thresholds([f"{name}:5%" for name in SHOWN]) if all(r.value(t) for r in readings)]
    return [noise_of(blocks, one) for one in wanted]


def document(kept: Kept) -> dict[str, Any]:
    return {
        "case_key": kept.case_key, "label": kept.label, "machine": kept.machine, "measured_at": kept.measured_at,
        "block_s": kept.block_s, "noise": [asdict(n) for n in kept.noise],
    }  # fmt: skip


def plan(results: Path, thresholds: Sequence[Threshold], loss: str, confidence: float) -> dict[str, Any]:
    """For each case that was calibrated here, what its noise asks of each threshold.

    Raises UsageError for a confidence that is none, Inconclusive where nothing was calibrated.
    """
    make_design(2, confidence, 0)  # says what is wrong with the confidence
    there = kept_noise(results, this_machine().fingerprint)
    if not there:
        raise Inconclusive(
            f"no noise of this machine is known in {results}",
            hint="llmopt gate calibrate URL|RECIPE|ARTIFACT measures it",
        )
    asked = parse_loss(loss, loss) if loss else None
    cases = []
    for kept in there:
        known = {n.metric: n for n in kept.noise}
        judged = [t for t in thresholds if t.name in known]  # as in a gate: what no run has is left out
        rows = [
            row(known[t.name], t, asked, (1 - confidence) * share_of_error(place, len(judged)), kept.block_s)
            for place, t in enumerate(judged)
        ]
        cases.append(
            {"label": kept.label, "measured_at": kept.measured_at, "block_s": kept.block_s, "thresholds": rows}
        )
    if not any(c["thresholds"] for c in cases):
        raise UsageError(
            f"none of {', '.join(t.name for t in thresholds)} was calibrated",
            hint=f"calibrated are {', '.join(sorted({n.metric for k in there for n in k.noise}))}",
        )
    return {"confidence": confidence, "cases": cases}


def row(noise: Noise, threshold: Threshold, asked: float | None, error: float, block_s: float) -> dict[str, Any]:
    real = asked or threshold.block * FOUND_BEYOND
    blocks = blocks_to_find(real, threshold, noise.block, error)
    return {
        "metric": threshold.name,
        "tolerate": threshold.tolerate,
        "block": threshold.block,
        "loss": real,
        "noise": noise.block,
        "blocks": blocks,
        "minutes": None if blocks is None else round(blocks * block_s / 60, 1),
    }
