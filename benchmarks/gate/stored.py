"""Stored runs: all of the base measured first, then all of the candidate, by somebody who planned no experiment.

What a comparator of files gets to see in practice: each side has its own session, and time has passed between them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from outcomes import Row
from peers import Peers
from scenarios import COUNTS, NAMES, Noise, experiment, values, wandered

from llmopt.gate.blocks import Reading
from llmopt.gate.design import make_design
from llmopt.gate.judge import judge_stored
from llmopt.gate.noise import LEAST_SESSION, noise_of
from llmopt.gate.thresholds import Threshold
from llmopt.gate.unpaired import ASSUMED, ASSUMED_FREEDOM, ENOUGH, SessionNoise

LOSS = 0.05
CALIBRATED_BLOCKS = 8


@dataclass(frozen=True)
class Apart:
    """``runs`` of each side, all in one session of their own, or each in one (``sessions`` = ``runs``)."""

    noise: Noise
    runs: int
    sessions: int = 1
    calibrated: bool = False

    @property
    def words(self) -> str:
        known = "their own" if self.sessions >= ENOUGH else "calibrated" if self.calibrated else "assumed"
        starts = "1 session" if self.sessions == 1 else f"{self.sessions} sessions of as many days"
        return f"{self.noise.words}; {self.runs} runs a side in {starts}; noise of sessions {known}"


OFFSET = Noise("one offset of 5 % per side", run=0.01, session=0.05)
QUIET = Noise("offset of 1 % per session", run=0.01, session=0.01)
ROWS = (
    Apart(OFFSET, runs=5),
    Apart(OFFSET, runs=40),
    Apart(OFFSET, runs=40, calibrated=True),
    Apart(Noise("5 % of every run, nothing between sessions", run=0.05), runs=3, sessions=3, calibrated=True),
    Apart(Noise("linear drift of 6 % over both", run=0.01, drift=0.06), runs=40),
    Apart(Noise("shared drift of 5 %, 1 % beside it", run=0.01, shared=0.05), runs=40),
    Apart(QUIET, runs=10, sessions=10),
)


def sides(scenario: Apart, slower: dict[str, float], draw: random.Random) -> tuple[list[Reading], list[Reading]]:
    """The base's runs, then the candidate's."""
    noise, wander = scenario.noise, 0.0
    found: tuple[list[Reading], list[Reading]] = ([], [])
    each = scenario.runs // scenario.sessions
    for number, side in enumerate(found):
        for place in range(scenario.runs):
            if place % each == 0:
                offset = draw.gauss(0, noise.session)
            wander = wandered(wander, noise, draw)
            at = (number * scenario.runs + place) / (2 * scenario.runs - 1)
            slow = offset + wander + noise.drift * at
            metrics = values(noise, slow, slower if number else {}, draw)
            session = f"{number}-{place // each}"
            day = f"2026-0{number + 1}-{place // each + 1:02}"  # each session has a day of its own
            side.append(
                Reading(run_id=f"{number}-{place}", metrics=metrics, counts=COUNTS, session=session, started_at=day)
            )
    return found


def known_noise(scenario: Apart, draw: random.Random) -> Callable[[Threshold], SessionNoise]:
    """What a gate knows of the noise between sessions: its assumption, or what ``llmopt gate calibrate`` finds."""
    if not scenario.calibrated:
        return lambda _: SessionNoise(spread=ASSUMED, freedom=ASSUMED_FREEDOM, source="assumed")
    design = make_design(CALIBRATED_BLOCKS, 0.99, draw.randrange(1 << 30))
    blocks = experiment(scenario.noise, {}, design, draw)

    def calibrated(threshold: Threshold) -> SessionNoise:
        found = noise_of(blocks, threshold)
        spread = math.hypot(found.session or 0.0, found.run or 0.0)
        return SessionNoise(spread=max(spread, LEAST_SESSION), freedom=found.sessions - 1, source="calibrated")

    return calibrated


def row(scenario: Apart, what: str, slower: dict[str, float], gates: int, peers: Peers | None) -> Row:
    thresholds = scenario.noise.thresholds
    statuses, theirs = [], []
    for seed in range(gates):
        draw = random.Random(seed)
        base, candidate = sides(scenario, slower, draw)
        noise = known_noise(scenario, draw)
        found = judge_stored(base, candidate, thresholds, (), noise=noise, confidence=0.99)
        statuses.append(found.status)
        if peers and seed < peers.gates:
            theirs.append(peers.all(base, candidate, scenario.noise.metrics))
    return Row.of(scenario.words, what, statuses, theirs)


def rows(gates: int, peers: Peers | None) -> Iterator[Row]:
    for scenario in ROWS:
        yield row(scenario, "no change", {}, gates, peers)
    slower = dict.fromkeys(NAMES, math.log1p(LOSS))
    for scenario in (ROWS[1], ROWS[-1]):
        yield row(scenario, f"everything {LOSS:.0%} worse", slower, gates, peers)
