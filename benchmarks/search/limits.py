"""What a hard cap of 45 % leaves to be had on the `uniform` matrix by anybody: simple policies that know the noise exactly.

    python benchmarks/search/limits.py [--seeds 40000]

Nothing of llmopt is in it.  Each of the 24 is run once; the 8 runs that are left are spent one by one, or by pairs and threes,
and the best mean wins.  No round is shifted, every run has the same normal noise, and all of that is known: a race that has to
learn it cannot be expected to do better.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ARMS, LEFT, WITHIN = 24, 8, 0.02
Numbers = NDArray[np.float64]


class Games:
    """``seeds`` searches side by side: sums and counts of runs of each arm, arrays of (seeds, 24)."""

    def __init__(self, noise: float, seeds: int) -> None:
        self.draw, self.noise, self.every = np.random.default_rng(1), noise, np.arange(seeds)
        self.truth = self.draw.uniform(-0.7, 0, (seeds, ARMS))
        self.sums = self.truth + self.draw.normal(0, noise, self.truth.shape)
        self.counts = np.ones_like(self.sums)

    @property
    def means(self) -> Numbers:
        return np.asarray(self.sums / self.counts)

    def run(self, arms: NDArray[np.int64]) -> None:
        """One more run of one arm in each game."""
        at = self.every, arms
        self.sums[at] += self.truth[at] + self.draw.normal(0, self.noise, len(arms))
        self.counts[at] += 1

    def standard_errors_behind(self) -> tuple[NDArray[np.int64], Numbers]:
        """Who leads, and how far the others are behind it by the error of the difference; the leader infinitely far."""
        means, lead = self.means, self.means.argmax(axis=1)
        at = self.every, lead
        behind = (means[at][:, None] - means) / np.sqrt(1 / self.counts + 1 / self.counts[at][:, None])
        behind[at] = np.inf
        return lead, behind

    def right(self) -> float:
        found = self.truth[self.every, self.means.argmax(axis=1)]
        return float((1 - np.exp(found - self.truth.max(axis=1)) <= WITHIN).mean())


def pairs(games: Games) -> None:
    """The leader and its nearest, four times."""
    for _ in range(LEFT // 2):
        lead, behind = games.standard_errors_behind()
        games.run(lead)
        games.run(behind.argmin(axis=1))


def threes(games: Games) -> None:
    for size in (3, 3, 2):
        best = np.argsort(-games.means, axis=1)
        for place in range(size):
            games.run(best[:, place])


def less_known(games: Games) -> None:
    """Of the leader and its nearest the one with fewer runs (top-two sampling without the luck)."""
    for _ in range(LEFT):
        lead, behind = games.standard_errors_behind()
        nearest = behind.argmin(axis=1)
        fewer = games.counts[games.every, lead] <= games.counts[games.every, nearest]
        games.run(np.where(fewer, lead, nearest))


def likeliest_to_change(games: Games) -> None:
    """The arm whose next run has the best chance to change the choice (a knowledge gradient for being right)."""
    for _ in range(LEFT):
        means = games.means
        ordered = np.sort(means, axis=1)
        best, second = ordered[:, -1:], ordered[:, -2:-1]
        other = np.where(means == best, second, best)
        moved = np.sqrt(1 / games.counts - 1 / (games.counts + 1))
        games.run((np.abs(means - other) / moved).argmin(axis=1))


POLICIES: tuple[Callable[[Games], None], ...] = (pairs, threes, less_known, likeliest_to_change)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40_000)
    seeds = parser.parse_args().seeds
    for between, within in ((0.03, 0.01), (0.05, 0.02)):
        for policy in POLICIES:
            games = Games(float(np.hypot(between, within)), seeds)
            policy(games)
            print(f"{between:.0%} {policy.__name__}: {games.right():.3f}", flush=True)


if __name__ == "__main__":
    main()
