"""Blocks made by hand: what a gate would have measured."""

from __future__ import annotations

from typing import Any

from llmopt.gate.blocks import Block, Reading
from llmopt.gate.counts import Counts

GOOD = Counts(planned=60, prompt_tokens=1920, output_tokens=960, requested_tokens=960)


def reading(tps: float = 400.0, tpot: float = 0.01, ttft: float = 0.05, counts: Counts = GOOD, **rest: Any) -> Reading:
    metrics = {"output_tps": tps, "tpot_s": {"p50": tpot}, "ttft_s": {"p50": ttft}}
    return Reading(**{"run_id": f"run-{tps}-{tpot}", "metrics": metrics, "counts": counts} | rest)


def block(number: int, base: Reading, candidate: Reading) -> Block:
    return Block(number=number, base=(base, base), candidate=(candidate, candidate))


def blocks(count: int, slower: float = 0.0, noise: float = 0.002) -> list[Block]:
    """``slower``: the candidate's loss in tpot and throughput; neighbours differ by the noise."""
    found = []
    for number in range(count):
        wobble = 1 + noise * (-1) ** number
        candidate = reading(tps=400 / (1 + slower) * wobble, tpot=0.01 * (1 + slower) * wobble, ttft=0.05 * wobble)
        found.append(block(number, reading(), candidate))
    return found
