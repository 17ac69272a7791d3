"""Simulated runs whose truth is known: log-normal metrics with the noise that a scenario names."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.gate.blocks import Block, Reading
from llmopt.gate.counts import Counts
from llmopt.gate.design import DEFAULT_BLOCKS, Design
from llmopt.gate.thresholds import DEFAULT_BLOCK, DEFAULT_TOLERATE, Threshold, parse_thresholds, threshold

NAMES = ("output_tps", "tpot_p50", "ttft_p50")
FOUR = (*NAMES, "e2e_p50")
RUNS_OF_A_BLOCK = 4
REQUESTS, INPUT_TOKENS, OUTPUT_TOKENS = 60, 32, 16  # of a run
TRUTH = {"output_tps": 400.0, "tpot_p50": 0.01, "ttft_p50": 0.05, "e2e_p50": 0.5}
COUNTS = Counts(
    planned=REQUESTS,
    prompt_tokens=REQUESTS * INPUT_TOKENS,
    output_tokens=REQUESTS * OUTPUT_TOKENS,
    requested_tokens=REQUESTS * OUTPUT_TOKENS,
)


@dataclass(frozen=True)
class Noise:
    """Standard deviations on the logarithmic scale.

    ``run``: of every run by itself, one draw for each metric; ``session``: of each start of a server, one draw for all
    metrics (three starts in a block ABBA: the two runs in the middle share one); ``drift``: how much the machine slows
    down from the first to the last planned run, in a line; ``shared``: of the machine's own speed, which wanders from
    run to run (autoregressive, 0.9), both sides alike.  ``bursts``: the share of runs that lose a fifth of their requests,
    whichever side they are of.  ``asked``: thresholds as ``--metric`` takes them; default: ours.
    """

    words: str
    run: float = 0.0
    session: float = 0.0
    drift: float = 0.0
    shared: float = 0.0
    bursts: float = 0.0
    metrics: tuple[str, ...] = NAMES
    blocks: int = DEFAULT_BLOCKS
    asked: tuple[str, ...] = ()

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        if self.asked:
            return parse_thresholds(self.asked)
        return tuple(threshold(name, DEFAULT_TOLERATE, DEFAULT_BLOCK, default=True) for name in self.metrics)


ALARMS = (
    Noise("independent noise, 1 %", run=0.01),
    Noise("independent noise, 2 %", run=0.02),
    Noise("independent noise, 5 %", run=0.05),
    Noise("each start of a server, 5 %", run=0.01, session=0.05),
    Noise("linear drift of 6 %", run=0.01, drift=0.06),
    Noise("shared drift of 5 %, 1 % beside it", run=0.01, shared=0.05),
    Noise("four metrics, 2 %", run=0.02, metrics=FOUR),
    Noise("2 %, 36 blocks and 6 looks", run=0.02, blocks=36),
    Noise("1 %, and failures in bursts: a fifth of a run, in one run of ten", run=0.01, bursts=0.1),
)
LOSSES = (
    Noise("noise of 2 % between runs", run=0.02),
    Noise("2 %, and linear drift of 6 %", run=0.02, drift=0.06),
    Noise("shared drift of 5 %, 1 % beside it", run=0.01, shared=0.05),
)
# Thresholds of somebody's own: as rarely wrong where it is hardest, at a true loss of exactly what is tolerated.
OWN = Noise("2 %, tpot_p50:5%:8% and ttft_p50:10%", run=0.02, asked=("tpot_p50:5%:8%", "ttft_p50:10%"))
TIGHT = Noise("0.5 %, tpot_p50:1%:2%", run=0.005, asked=("tpot_p50:1%:2%",))
OWN_TRUTHS: tuple[tuple[Noise, str, dict[str, float]], ...] = (
    (OWN, "no change", {}),
    (OWN, "tpot 5 % worse: what is tolerated", {"tpot_p50": math.log1p(0.05)}),
    (OWN, "tpot 12 % worse", {"tpot_p50": math.log1p(0.12)}),
    (OWN, "ttft 15 % worse", {"ttft_p50": math.log1p(0.15)}),
    (TIGHT, "no change", {}),
    (TIGHT, "tpot 1 % worse: what is tolerated", {"tpot_p50": math.log1p(0.01)}),
    (TIGHT, "tpot 3 % worse", {"tpot_p50": math.log1p(0.03)}),
)


def experiment(noise: Noise, slower: Mapping[str, float], design: Design, draw: random.Random) -> list[Block]:
    """All blocks that the design plans; ``slower`` are the candidate's true losses by metric."""
    wander, blocks = 0.0, []
    runs = design.blocks * RUNS_OF_A_BLOCK
    for number, order in enumerate(design.orders):
        readings: dict[str, list[Reading]] = {"base": [], "candidate": []}
        session, before, start = 0.0, None, 0
        for place, side in enumerate(order):
            if side != before:
                session, before, start = draw.gauss(0, noise.session), side, start + 1
            wander = wandered(wander, noise, draw)
            at = (number * RUNS_OF_A_BLOCK + place) / max(1, runs - 1)
            slow = session + wander + noise.drift * at
            metrics = values(noise, slow, slower if side == "candidate" else {}, draw)
            found = counts(noise, draw)
            readings[side].append(
                Reading(run_id=f"{number}-{place}", session=f"{number}-{start}", metrics=metrics, counts=found)
            )
        blocks.append(Block(number=number, base=tuple(readings["base"]), candidate=tuple(readings["candidate"])))
    return blocks


def counts(noise: Noise, draw: random.Random) -> Counts:
    if not noise.bursts or draw.random() >= noise.bursts:
        return COUNTS
    lost = REQUESTS // 5
    return Counts(
        planned=REQUESTS,
        failed=lost,
        errors={"http": lost},
        prompt_tokens=(REQUESTS - lost) * INPUT_TOKENS,
        output_tokens=(REQUESTS - lost) * OUTPUT_TOKENS,
        requested_tokens=(REQUESTS - lost) * OUTPUT_TOKENS,
    )


def wandered(before: float, noise: Noise, draw: random.Random) -> float:
    """The machine's own speed, a run later."""
    return 0.9 * before + draw.gauss(0, noise.shared * math.sqrt(1 - 0.9**2))


def values(noise: Noise, slow: float, slower: Mapping[str, float], draw: random.Random) -> dict[str, Any]:
    """One run's metrics. ``slow``: of the machine, on the logarithmic scale."""
    metrics: dict[str, Any] = {}
    for name in noise.metrics:
        loss = slow + draw.gauss(0, noise.run) + slower.get(name, 0.0)
        metrics |= written(name, TRUTH[name] * math.exp(-loss if name == "output_tps" else loss))
    return metrics


def written(name: str, value: float) -> dict[str, Any]:
    one = threshold(name, DEFAULT_TOLERATE, DEFAULT_BLOCK)
    return {one.metric.key: {one.statistic: value} if one.statistic else value}
