"""How often the gate is wrong, on data whose truth is known: false alarms, losses found, passes given; peers beside it.

    python benchmarks/gate/simulate.py [--gates 2000] [--peers] [--write]

Every gate is one experiment as ``llmopt gate`` carries it out: blocks in random order, looks as planned, the same code that
judges.  What is simulated is the runs: three metrics (four where the scenario says so), log-normal, with the noise that the
scenario names.  ``--peers``: inference-doctor and llmtest-perf, installed beside us, judge the same runs as files.
Writes simulate.md.
"""

from __future__ import annotations

import argparse
import datetime
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmopt.gate.blocks import Block, Reading
from llmopt.gate.counts import Counts
from llmopt.gate.design import DEFAULT_BLOCKS, Design, make_design
from llmopt.gate.judge import Status, judge
from llmopt.gate.thresholds import DEFAULT_BLOCK, DEFAULT_TOLERATE, Threshold, threshold

TABLE = Path(__file__).with_name("simulate.md")
NAMES = ("output_tps", "tpot_p50", "ttft_p50")
FOUR = (*NAMES, "e2e_p50")
LOSS = 0.05
RUNS_OF_A_BLOCK = 4
TRUTH = {"output_tps": 400.0, "tpot_p50": 0.01, "ttft_p50": 0.05, "e2e_p50": 0.5}


@dataclass(frozen=True)
class Noise:
    """Standard deviations on the logarithmic scale.

    ``run``: of every run by itself, one draw for each metric; ``session``: of each start of a server, one draw for all
    metrics (three starts in a block ABBA: the two runs in the middle share one); ``drift``: how much the machine slows
    down from the first to the last planned block, in a line; ``shared``: of the machine's own speed, which wanders from
    run to run (autoregressive, 0.9), both sides alike.
    """

    words: str
    run: float = 0.0
    session: float = 0.0
    drift: float = 0.0
    shared: float = 0.0
    metrics: tuple[str, ...] = NAMES
    blocks: int = DEFAULT_BLOCKS


ALARMS = (
    Noise("independent noise, 1 %", run=0.01),
    Noise("independent noise, 2 %", run=0.02),
    Noise("independent noise, 5 %", run=0.05),
    Noise("each start of a server, 5 %", run=0.01, session=0.05),
    Noise("linear drift of 6 %", run=0.01, drift=0.06),
    Noise("shared drift of 5 %, 1 % beside it", run=0.01, shared=0.05),
    Noise("four metrics, 2 %", run=0.02, metrics=FOUR),
    Noise("2 %, 36 blocks and 6 looks", run=0.02, blocks=36),
)
LOSSES = (
    Noise("noise of 2 % between runs", run=0.02),
    Noise("2 %, and linear drift of 6 %", run=0.02, drift=0.06),
    Noise("shared drift of 5 %, 1 % beside it", run=0.01, shared=0.05),
)


def experiment(noise: Noise, slower: dict[str, float], design: Design, draw: random.Random) -> list[Block]:
    """All blocks that the design plans; ``slower`` are the candidate's true losses by metric."""
    wander, blocks = 0.0, []
    runs = design.blocks * RUNS_OF_A_BLOCK
    for number, order in enumerate(design.orders):
        readings: dict[str, list[Reading]] = {"base": [], "candidate": []}
        session, before = 0.0, None
        for place, side in enumerate(order):
            if side != before:
                session, before = draw.gauss(0, noise.session), side
            wander = 0.9 * wander + draw.gauss(0, noise.shared * math.sqrt(1 - 0.9**2))
            at = (number * RUNS_OF_A_BLOCK + place) / max(1, runs - 1)
            slow = session + wander + noise.drift * at
            metrics = {}
            for name in noise.metrics:
                loss = slow + draw.gauss(0, noise.run) + (slower.get(name, 0.0) if side == "candidate" else 0.0)
                metrics |= written(name, TRUTH[name] * math.exp(-loss if name == "output_tps" else loss))
            counts = Counts(planned=60, prompt_tokens=1920, output_tokens=960, requested_tokens=960)
            readings[side].append(Reading(run_id=f"{number}-{place}", metrics=metrics, counts=counts))
        blocks.append(Block(number=number, base=tuple(readings["base"]), candidate=tuple(readings["candidate"])))
    return blocks


def written(name: str, value: float) -> dict[str, object]:
    one = threshold(name, DEFAULT_TOLERATE, DEFAULT_BLOCK)
    return {one.metric.key: {one.statistic: value} if one.statistic else value}


def gate(noise: Noise, slower: dict[str, float], seed: int) -> tuple[Status, int]:
    """One gate from its first block to its end: the verdict, and how many blocks it took."""
    design = make_design(noise.blocks, 0.99, seed)
    thresholds: list[Threshold] = [
        threshold(name, DEFAULT_TOLERATE, DEFAULT_BLOCK, default=True) for name in noise.metrics
    ]
    blocks = experiment(noise, slower, design, random.Random(seed))
    for look in design.looks:
        found = judge(blocks[:look], design, thresholds, ended=look == design.blocks)
        if found is not None and found.decided:
            return found.status, look
    raise AssertionError("the last look decides")


@dataclass(frozen=True)
class Row:
    words: str
    what: str
    gates: int
    regression: float
    passed: float
    blocks: float


def rates(noise: Noise, what: str, slower: dict[str, float], gates: int) -> Row:
    found = [gate(noise, slower, seed) for seed in range(gates)]
    return Row(
        words=noise.words,
        what=what,
        gates=gates,
        regression=sum(status == "regression" for status, _ in found) / gates,
        passed=sum(status == "pass" for status, _ in found) / gates,
        blocks=sum(count for _, count in found) / gates,
    )


def losses() -> Sequence[tuple[str, dict[str, float]]]:
    return [
        (f"{name} {LOSS:.0%} worse", {name: -math.log(1 - LOSS) if name == "output_tps" else math.log1p(LOSS)})
        for name in NAMES
    ]


def table(rows: Sequence[Row], seconds: float) -> str:
    lines = [
        "# Simulated gates",
        "",
        f"{datetime.date.today()}, {rows[0].gates} gates a row, {seconds:.0f} s; default thresholds"
        f" (tolerated {DEFAULT_TOLERATE:.0%}, blocks from {DEFAULT_BLOCK:.0%}), confidence 99 %, at most {DEFAULT_BLOCKS} blocks of four runs."
        " Written by `simulate.py --write`.",
        "",
        "| noise | truth | regression | pass | inconclusive | blocks, mean |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        unsure = 1 - row.regression - row.passed
        lines.append(
            f"| {row.words} | {row.what} | {row.regression:.2%} | {row.passed:.1%} | {unsure:.1%} | {row.blocks:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=2000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    started, rows = time.monotonic(), []
    for noise in ALARMS:
        rows.append(rates(noise, "no change", {}, options.gates))
        print(rows[-1], flush=True)
    for noise in LOSSES:
        for what, slower in losses():
            rows.append(rates(noise, what, slower, options.gates))
            print(rows[-1], flush=True)
    text = table(rows, time.monotonic() - started)
    print(text)
    if options.write:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
