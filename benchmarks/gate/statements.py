"""What issue 7 says of the peers, each tried with the peer's own code."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from peers import PERCENT_10, Peers, Setting
from scenarios import COUNTS, NAMES, Noise, values

from llmopt.gate.blocks import Reading
from llmopt.gate.counts import Counts

Sides = tuple[list[Reading], list[Reading]]
DOCTOR = Setting("inference-doctor", "default", {})
PERF = Setting("llmtest-perf", "template", PERCENT_10)


@dataclass(frozen=True)
class Tried:
    said: str
    how: str
    found: str


def side(count: int, slow: Callable[[int], float], draw: random.Random, run: float = 0.01) -> list[Reading]:
    """``slow``: of the machine at each run, on the logarithmic scale."""
    noise = Noise("", run=run)
    return [Reading(run_id=str(n), metrics=values(noise, slow(n), {}, draw), counts=COUNTS) for n in range(count)]


def offset_pair(runs: int, draw: random.Random) -> Sides:
    """Each side with an offset of its own, standard deviation 5 %."""
    offsets = draw.gauss(0, 0.05), draw.gauss(0, 0.05)
    return side(runs, lambda _: offsets[0], draw), side(runs, lambda _: offsets[1], draw)


def drift_pair(runs: int, draw: random.Random) -> Sides:
    """The machine slows down by 6 % from the first run of the base to the last of the candidate."""
    step = 0.06 / (2 * runs - 1)
    return side(runs, lambda n: n * step, draw), side(runs, lambda n: (runs + n) * step, draw)


def lost_pair(runs: int, draw: random.Random) -> Sides:
    return side(runs, lambda _: 0.0, draw, 0.02), side(runs, lambda _: math.log1p(0.05), draw, 0.02)


def failed_share(
    peers: Peers, make: Callable[[int, random.Random], Sides], runs: int, gates: int, metrics: Sequence[str] = NAMES[:1],
    thresholds: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    setting = replace(DOCTOR, thresholds=dict(thresholds or {}))
    found = Counter(peers.judge(setting, *make(runs, random.Random(seed)), metrics)["status"] for seed in range(gates))
    return f"{found['FAIL'] / gates:.1%}"


def statements(peers: Peers) -> list[Tried]:
    return [
        *shares(peers, peers.gates),
        *single_cases(peers),
        Tried(
            "llmtest-perf passes when every request fails on both sides",
            "60 requests a side, all with HTTP 500; the template's thresholds",
            peers.judge(PERF, dead(), dead(), NAMES)["status"],
        ),
    ]


def shares(peers: Peers, gates: int) -> list[Tried]:
    def by(name: str, make: Callable[[int, random.Random], Sides], settings: Sequence[tuple[int, float]]) -> Tried:
        results = [
            f"{runs} runs, {percent:g} %: {failed_share(peers, make, runs, gates, thresholds={'regression_percent': percent})}"
            for runs, percent in settings
        ]
        return Tried(
            name, f"{gates} A/A pairs each, throughput alone, confidence 90 %", "failed of " + "; ".join(results)
        )

    return [
        by(
            "inference-doctor fails 19 % of A/A pairs with a session offset of 5 %, however many runs there are",
            offset_pair, [(5, 10), (40, 10), (5, 5), (40, 5), (40, 2)],
        ),
        by(
            "… and 63 % with a linear drift of 6 %, all of A first, then all of B",
            drift_pair, [(5, 10), (40, 10), (5, 2), (10, 2), (40, 2)],
        ),
        Tried(
            "a loss of 5 % is never failed at its default threshold",
            f"{gates} pairs that differ by 5 %, noise of 2 %, 5 and 40 runs a side",
            f"failed {failed_share(peers, lost_pair, 5, gates)} and {failed_share(peers, lost_pair, 40, gates)}",
        ),
    ]  # fmt: skip


def single_cases(peers: Peers) -> list[Tried]:
    """Pairs that are no comparison, with the default thresholds."""
    draw = random.Random(0)
    good = side(5, lambda _: 0.0, draw)
    again = side(5, lambda _: 0.0, draw)
    slow = side(1, lambda _: math.log1p(0.15), draw)
    long = [replace(r, counts=replace(r.counts, prompt_tokens=4 * (r.counts.prompt_tokens or 0))) for r in again]
    half = [replace(r, counts=replace(r.counts, planned=r.counts.planned // 2)) for r in again]
    cut = [replace(r, counts=replace(r.counts, output_tokens=(r.counts.output_tokens or 0) // 2)) for r in again]

    def said(base: Sequence[Reading], candidate: Sequence[Reading]) -> str:
        answer = peers.judge(DOCTOR, base, candidate, NAMES)
        return answer["status"] + (f": {answer['words'].split(';')[0]}" if answer["status"] != "PASS" else "")

    return [
        Tried("one file copied five times gives a confident verdict", "one run of each side, five times, 15 % apart",
              said(good[:1] * 5, slow * 5)),
        Tried("", "one run of each side, five times, nothing changed", said(good[:1] * 5, again[:1] * 5)),
        Tried("", "one and the same run on both sides, five times", said(good[:1] * 5, good[:1] * 5)),
        Tried("four times the input tokens pass unnoticed", "`total_input_tokens` × 4, same figures", said(good, long)),
        Tried("half the requests missing pass unnoticed", "`num_prompts` and `completed` halved", said(good, half)),
        Tried("", "`completed` halved alone, `failed` 0", said(good, [unanswered(r) for r in again])),
        Tried("", "half the output tokens, same figures", said(good, cut)),
        Tried("a year-old baseline passes unnoticed", "its records carry a `date` a year back, as vLLM writes it",
              said([replace(r, started_at="20251122-000000") for r in good], again)),
        Tried("", "every request failed on both sides", said(dead(5), dead(5))),
    ]  # fmt: skip


def unanswered(reading: Reading) -> Reading:
    """Asked for as many, answered half, and nothing said of the rest."""
    return replace(reading, metrics={**reading.metrics, "unanswered": reading.counts.planned // 2})


def dead(count: int = 1) -> list[Reading]:
    lost = Counts(planned=60, failed=60, errors={"http": 60}, prompt_tokens=0, output_tokens=0)
    return [Reading(run_id=str(n), metrics={}, counts=lost) for n in range(count)]
