"""How often the gate is wrong, on data whose truth is known: false alarms, losses found, passes given; peers beside it.

    python benchmarks/gate/simulate.py [--gates 2000] [--peers DIR] [--peer-gates 500] [--write]

Every gate is one experiment as ``llmopt gate`` carries it out: blocks in random order, looks as planned, the same code that
judges.  What is simulated is the runs (scenarios.py): three metrics (four where the scenario says so), log-normal, with the
noise that the scenario names.  Stored runs, which nobody interleaved, are judged by the gate for stored runs (stored.py).

``--peers DIR``: inference-doctor and llmtest-perf, in an environment in DIR (made where it is missing), judge the same runs
(peers.py); of a gate that stopped early they get all the runs that it had planned.  They judge the first ``--peer-gates``
of each row: one gate costs them more than us.  ``--write`` writes simulate.md.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import stored
from outcomes import Row, print_row, tables
from peers import Peers, install
from scenarios import ALARMS, LOSSES, NAMES, OWN_TRUTHS, Noise, experiment
from statements import statements

from llmopt.gate.design import make_design
from llmopt.gate.judge import Status, judge

TABLE = Path(__file__).with_name("simulate.md")
LOSS = 0.05


def gate(noise: Noise, slower: dict[str, float], seed: int, peers: Peers | None) -> tuple[Status, int, tuple[str, ...]]:
    """One gate from its first block to its end: the verdict, how many blocks it took, and what the peers say."""
    design = make_design(noise.blocks, 0.99, seed)
    blocks = experiment(noise, slower, design, random.Random(seed))
    base, candidate = [r for b in blocks for r in b.base], [r for b in blocks for r in b.candidate]
    theirs = peers.all(base, candidate, noise.metrics) if peers else ()
    for look in design.looks:
        found = judge(blocks[:look], design, noise.thresholds, ended=look == design.blocks)
        if found is not None and found.decided:
            return found.status, look, theirs
    raise AssertionError("the last look decides")


def rates(noise: Noise, what: str, slower: dict[str, float], gates: int, peers: Peers | None) -> Row:
    found = [gate(noise, slower, seed, peers if peers and seed < peers.gates else None) for seed in range(gates)]
    blocks = sum(count for _, count, _ in found) / gates
    return Row.of(noise.words, what, [s for s, _, _ in found], [t for _, _, t in found], blocks=blocks)


def interleaved(gates: int, peers: Peers | None) -> Iterator[Row]:
    for noise in ALARMS:
        yield rates(noise, "no change", {}, gates, peers)
    for noise in LOSSES:
        for name in NAMES:
            loss = -math.log(1 - LOSS) if name == "output_tps" else math.log1p(LOSS)
            yield rates(noise, f"{name} {LOSS:.0%} worse", {name: loss}, gates, peers)


def own(gates: int) -> Iterator[Row]:
    for noise, what, slower in OWN_TRUTHS:
        yield rates(noise, what, slower, gates, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=2000)
    parser.add_argument("--peers", type=Path, metavar="DIR")
    parser.add_argument("--peer-gates", type=int, default=500)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with Peers(install(options.peers), options.peer_gates) if options.peers else contextlib.nullcontext() as peers:
        parts = [
            [print_row(row) for row in rows]
            for rows in (
                interleaved(options.gates, peers),
                stored.rows(options.gates, peers),
                own(options.gates),
            )
        ]
        tried = statements(peers) if peers else []
    text = tables(*parts, tried, time.monotonic() - started, options.peer_gates)
    print(text)
    if options.write:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
