"""How often a search over configurations ends within 2 % of the best one, and after how many runs.

    python benchmarks/search/search.py [--seeds 2000] [--kinds factorial,drift] [--write]

Searches: **exhaustive** (three interleaved rounds of all, the best mean), **random** (as many configurations as 45 % of
those runs allow, three runs each), **plain halving** (single look: 24 runs, the best 6, the best 2, judged by the last pass
alone), **told the two** (45 %, and it knows which two are in front: the most that a hard cap leaves to be had), **racing**
(``llmopt.recommend.racing``, with at most 45 % of the exhaustive runs), **racing, settled** (the same until the race itself
says that it is over, or has taken 75 % of the runs of the exhaustive search), **settled, noise known** (of a machine on which
as many other configurations were searched exhaustively before), and racing with predictions: right but for an error of 17 %
(at most 35 %, or until it is settled, or that with the noise known), and misleading ones (at most 45 %): shuffled over the
configurations, reversed, half of them 40 % too low.  Predictions always claim an error of 17 %.
Every race knows which arms share a quantization, an engine and a setting; in a matrix that was not made of these it is
told the same, and it means nothing.  Runs cost the same; noise is drawn anew for every run and every seed.
``--write`` puts the table into table.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matrices import KINDS, Machine

from llmopt.pipeline.repeats import Start, learnt
from llmopt.recommend.beliefs import USUAL_NOISE, Noise, Prior
from llmopt.recommend.racing import Race

TABLE, RESULTS = Path(__file__).with_name("table.md"), Path(__file__).with_name("results.json")
NOISES = ((0.03, 0.01), (0.05, 0.02))
ROUNDS = 3
PRIOR_ERROR = 0.17
WITHIN = 0.02
LONG_AGO, ANOTHER = datetime.datetime(2026, 1, 1), 10_000_000
SHARE, SHARE_WITH_PRIOR, LONGEST = 0.45, 0.35, 0.75
Search = Callable[[Machine, int], int]


def exhaustive(machine: Machine, seed: int) -> int:
    total = np.zeros(len(machine.truth))
    for _ in range(ROUNDS):
        machine.new_pass()
        for arm in machine.draw.permutation(len(total)):
            total[arm] += machine.run(int(arm))
    return int(total.argmax())


def random(machine: Machine, seed: int) -> int:
    chosen = machine.draw.permutation(len(machine.truth))[: int(SHARE * len(machine.truth))]
    total = np.zeros(len(chosen))
    for _ in range(ROUNDS):
        machine.new_pass()
        total += [machine.run(int(arm)) for arm in chosen]
    return int(chosen[total.argmax()])


def plain_halving(machine: Machine, seed: int) -> int:
    left = list(range(len(machine.truth)))
    for keep in (len(left) // 4, len(left) // 12, 1):
        machine.new_pass()
        values = {arm: machine.run(arm) for arm in left}
        left = sorted(left, key=lambda arm: -values[arm])[:keep]
    return left[0]


def told(machine: Machine, seed: int) -> int:
    """No search that looks at each configuration once does better with so many runs every time: the two that are truly in
    front are given away, and all that is left is spent on telling them apart.
    """
    first, second = (int(arm) for arm in machine.truth.argsort()[::-1][:2])
    machine.runs = len(machine.truth) - 2
    left = int(SHARE * ROUNDS * len(machine.truth)) - machine.runs
    gap = 0.0
    for _ in range(left // 2):
        machine.new_pass()
        gap += machine.run(first) - machine.run(second)
    return first if gap > 0 else second


def earlier(machine: Machine, seed: int) -> Noise:
    """What is known of the machine's noise after an exhaustive search over as many other configurations."""
    before = Machine(machine.kind, machine.between, machine.within, seed + ANOTHER)
    starts = []
    for round in range(1, ROUNDS + 1):
        before.new_pass()
        for arm in range(len(before.truth)):
            starts.append(Start(case=(str(arm),), at=LONG_AGO, value=before.run(arm), round=round))
    return learnt([starts])


def racing(
    most: float | None, predicted: Callable[[Machine], Sequence[float]] | None = None, *, known: bool = False
) -> Search:
    """``most``: share of the exhaustive runs; ``None``: until it is settled, or has cost three quarters of those.

    ``known``: an earlier search on the same machine told its noise.
    """

    def search(machine: Machine, seed: int) -> int:
        count = len(machine.truth)
        predictions = predicted(machine) if predicted else None
        prior = predictions is not None and {
            str(arm): Prior(value=math.exp(p), error=PRIOR_ERROR) for arm, p in enumerate(predictions)
        }
        noise = earlier(machine, seed) if known else USUAL_NOISE
        race = Race(
            [str(arm) for arm in range(count)], prior=prior or None, traits=machine.traits(), noise=noise, seed=seed
        )
        allowed = int((LONGEST if most is None else most) * ROUNDS * count)
        while arms := race.next_round(None if most is None else allowed - machine.runs):
            if machine.runs >= allowed:
                break
            machine.new_pass()
            for arm in arms:
                race.record(race.round, arm, math.exp(machine.run(int(arm))))
        return int(race.standing().leader or 0)

    return search


def good(machine: Machine) -> Sequence[float]:
    return list(machine.truth + machine.draw.normal(0, PRIOR_ERROR, len(machine.truth)))


def shuffled(machine: Machine) -> Sequence[float]:
    return list(machine.draw.permutation(machine.truth))


def reversed_(machine: Machine) -> Sequence[float]:
    return list(-machine.truth)


def half_low(machine: Machine) -> Sequence[float]:
    return list(np.asarray(good(machine)) + math.log(0.6) * (machine.draw.random(len(machine.truth)) < 0.5))


SEARCHES: dict[str, Search] = {
    "exhaustive": exhaustive,
    "random": random,
    "plain halving": plain_halving,
    "told the two": told,
    "racing": racing(SHARE),
    "racing, settled": racing(None),
    "settled, noise known": racing(None, known=True),
    "with estimates": racing(SHARE_WITH_PRIOR, good),
    "estimates, settled": racing(None, good),
    "estimates, noise known": racing(None, good, known=True),
    "estimates shuffled": racing(SHARE, shuffled),
    "estimates reversed": racing(SHARE, reversed_),
    "estimates half low": racing(SHARE, half_low),
}


def cell(kind: str, noise: tuple[float, float], search: Search, seeds: int) -> str:
    """``.981 at 39 %``: how often within 2 % of the best, and mean runs as a share of the exhaustive ones."""
    hits = runs = 0
    for seed in range(seeds):
        machine = Machine(KINDS[kind], *noise, seed)
        hits += machine.loss(search(machine, seed)) <= WITHIN
        runs += machine.runs
    return f"{hits / seeds:.3f} at {runs / seeds / ROUNDS / len(machine.truth):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--searches", default=";".join(SEARCHES), help="with semicolons between them")
    parser.add_argument(
        "--write", action="store_true", help=f"keep the cells in {RESULTS.name}, and write {TABLE.name}"
    )
    asked = parser.parse_args()
    cells: dict[str, str] = json.loads(RESULTS.read_text()) if asked.write and RESULTS.exists() else {}
    searches = asked.searches.split(";")
    for noise in NOISES:
        for kind in asked.kinds.split(","):
            for name in searches:
                cells[key_of(noise, kind, name)] = found = cell(kind, noise, SEARCHES[name], asked.seeds)
                print(f"{noise[0]:.0%} {kind}: {name} {found}", flush=True)
    if asked.write:
        RESULTS.write_text(json.dumps(cells, indent=1) + "\n")
        TABLE.write_text(table(cells, asked.seeds))


def key_of(noise: tuple[float, float], kind: str, name: str) -> str:
    return f"{noise[0]:.0%} {noise[1]:.0%}: {kind}: {name}"


def table(cells: dict[str, str], seeds: int) -> str:
    lines = [
        f"Written by search.py on {datetime.date.today()}: {seeds:,} seeds a cell.",
        "Chance to end within 2 % of the best, and mean runs as a share of the exhaustive ones.",
        "",
        *(f"- **{name}**: {kind.title}" for name, kind in KINDS.items()),
    ]
    for noise in NOISES:
        lines += [f"\nNoise of a run: {noise[0]:.0%} from run to run, {noise[1]:.0%} within a run.\n"]
        lines += ["| matrix | " + " | ".join(SEARCHES) + " |", "|---|" + "---:|" * len(SEARCHES)]
        for kind in KINDS:
            row = (cells.get(key_of(noise, kind, name), "–") for name in SEARCHES)
            lines.append(f"| {kind} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
