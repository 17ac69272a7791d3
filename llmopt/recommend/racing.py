"""Which configuration to measure next, and which needs no more: interleaved successive halving (it decides, it never measures).

Rounds go over the survivors in shuffled order, those that share a server together.  A round is a block: what shifts a whole
round (a machine that warms up) is estimated with the configurations and cancels.  Values are compared on their logarithms,
since the noise of a rate or a latency is a share of it.  After each round the chance that a configuration is better than
the leader is a Student tail on what both were measured at; the least likely are dropped while these chances together stay
within ``1 - confidence``, so that the error of all looks at the data is bounded by what the last one spends.  Nothing
is dropped for good: should later rounds show more noise than was thought, whoever is no longer excluded comes back.

Where configurations have traits in common, a run of one says something of the other (``structure.py``).

Ideas: successive halving (Karnin, Koren and Somekh 2013), F-Race's rounds as blocks (Birattari et al. 2002), and the
indifference zone (Bechhofer 1954): nobody is asked to tell apart what is within ``tolerance``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmopt.core.statistics import t_95
from llmopt.recommend.beliefs import USUAL_NOISE, Belief, Known, Line, Noise, Prior, fit, student_tail
from llmopt.recommend.structure import LEAST, borrowed

# A round takes at most this part of the runs that are left, so that the last are spent on who is in front by then; a larger one
# where predictions, which may mislead, chose whom to look at first.
PART_OF_BUDGET, PART_WITH_PRIOR = 1 / 4, 1 / 3
# In a round beside the leader, once all that may be the best were looked at: what the others would tell is worth less than the
# next round's choice, and so is a second whose chance is less than this part of the first one's.
CHALLENGERS, WORTH_A_RUN = 2, 1 / 2
ALONE, SURE = "one is left", "the leader is sure enough"
UNLIKELY = 1e-3  # chances below it are added up instead of drawn
EXCLUDED_BLIND = 0.2  # of the error that may be spent, on what was never measured


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One arm as it stands; ``low`` and ``high`` are its 95 % interval."""

    arm: str
    value: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """``survivors`` best first, the leader among them; ``dropped``: arm → why; ``unmeasured``: not yet, and not excluded.

    ``chances``: of each that is not dropped, to be better than the leader by more than the tolerance.  ``settled`` says why
    the race is over; ``noise`` is the standard deviation of a run, as a share.
    """

    leader: str | None
    survivors: tuple[Estimate, ...]
    unmeasured: tuple[str, ...]
    dropped: dict[str, str]
    settled: str | None
    noise: float
    chances: dict[str, float] = field(default_factory=dict)


class Race:
    """The decisions of one race; the caller measures what ``next_round`` names and records every outcome.

    ``groups``: arm → the server that it runs on.  ``traits``: arm → what it has in common with others (its quantization, its
    engine, each setting): they then tell of each other (``structure.py``).  ``noise``: what earlier repeats on this machine
    told of it; the race's own runs correct it.  Raises ValueError for arms that come twice or none.
    """

    def __init__(
        self,
        arms: Sequence[str],
        *,
        better: Literal["higher", "lower"] = "higher",
        tolerance: float = 0.02,
        confidence: float = 0.95,
        prior: Mapping[str, Prior] | None = None,
        groups: Mapping[str, str] | None = None,
        traits: Mapping[str, Sequence[str]] | None = None,
        noise: Noise = USUAL_NOISE,
        seed: int = 0,
    ) -> None:
        if not arms or len(set(arms)) < len(arms):
            raise ValueError("a race needs arms, each once")
        self.arms = tuple(arms)
        self.sign = 1 if better == "higher" else -1
        self.margin = math.log1p(tolerance)
        self.tolerance, self.confidence, self.noise = tolerance, confidence, noise
        self.prior = dict(prior or {})
        self.groups = dict(groups or {})
        self.traits = dict(traits or {})
        self.random = random.Random(seed)
        self.values: dict[str, dict[int, float]] = {}  # arm → round → logarithm, higher is better
        self.failed: dict[str, str] = {}
        self.confirmed = set[str]()  # leaders that were asked for a second run
        self.round = 0

    # --- what the caller does ---------------------------------------------------------------------------------------

    def next_round(self, at_most: int | None = None) -> list[str]:
        """The arms to measure now, in order; empty when the race is over.

        ``at_most``: the runs that the budget still has.  Less than two compare nobody.
        """
        if at_most is not None and at_most < min(2, len(self.arms)):
            return []
        alive = [arm for arm in self.arms if arm not in self.failed]
        if not any(arm in self.values for arm in alive):
            wanted = self.first_look(alive)
        else:
            standing = self.standing()
            wanted = self.unproven() if standing.settled else self.contenders(standing, at_most)
        if not wanted:
            return []
        self.round += 1
        return self.shuffled(wanted[:at_most])

    def add(self, arm: str, traits: Sequence[str] = ()) -> None:
        """One more, from the next round on; nothing changes where it is there already."""
        if arm not in self.arms:
            self.arms = (*self.arms, arm)
            self.traits[arm] = traits

    def last_round(self) -> list[str]:
        """The leader and whoever of those that were measured is the likeliest to be better; nobody where there is no choice."""
        standing = self.standing()
        others = [e.arm for e in standing.survivors if e.arm != standing.leader]
        if standing.leader is None or not others:
            return []
        self.round += 1
        return self.shuffled([standing.leader, max(others, key=lambda arm: standing.chances.get(arm, 0.0))])

    def whole_round(self) -> list[str]:
        """Everybody who has not failed, in order, for a search that spares nobody."""
        self.round += 1
        return self.shuffled([arm for arm in self.arms if arm not in self.failed])

    def record(self, round: int, arm: str, value: float | None = None, *, failure: str = "") -> None:
        """One outcome: the value of the objective, or why there is none. Raises ValueError for a value that is no quantity.

        Outcomes of an earlier start are recorded in the same way, before the first ``next_round``.
        """
        self.round = max(self.round, round)
        if failure or value is None:
            self.failed[arm] = failure or "not measured"
            return
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{arm}: {value} is no positive quantity")
        self.values.setdefault(arm, {})[round] = self.sign * math.log(value)

    def sure(self, standing: Standing) -> float:
        """The chance that the leader is within the tolerance of the best; 0 while somebody may be anything."""
        known = self.beliefs()
        if standing.leader is None or any(chance >= 1 for chance in standing.chances.values()):
            return 0.0
        return self.together(known, standing.leader, self.chances(known, standing.leader))

    def standing(self) -> Standing:
        """Who may still be the best, with what certainty, and who may not, with the reason."""
        known = self.beliefs()
        beliefs, noise = known.of, known.noise
        measured = [arm for arm in beliefs if beliefs[arm].runs]
        if not measured:
            waiting = tuple(arm for arm in self.arms if arm not in self.failed)
            nobody = None if waiting else "no configuration could be measured"
            return Standing(
                leader=None, survivors=(), unmeasured=waiting, dropped=dict(self.failed), settled=nobody, noise=noise
            )
        leader = max(measured, key=lambda arm: beliefs[arm].mean)
        chances = self.chances(known, leader)
        if not known.trusted:  # a prediction that was shown wrong excludes nobody
            chances |= {arm: 1.0 for arm, belief in beliefs.items() if not belief.runs}
        chances |= {arm: 1.0 for arm in self.arms if arm not in beliefs and arm not in self.failed}
        excluded = least_likely(chances, 1 - self.confidence)
        unmeasured = tuple(arm for arm in self.arms if arm in chances and arm not in measured and arm not in excluded)
        behind = {
            arm for arm in excluded if beliefs[leader].mean - beliefs[arm].mean > self.margin or arm not in measured
        }
        survivors = sorted((arm for arm in measured if arm not in behind), key=lambda arm: -beliefs[arm].mean)
        dropped = {arm: self.because(arm, leader, known) for arm in behind}
        over = len(excluded) == len(chances) or (
            max(chances.values()) <= 1 - self.confidence and self.together(known, leader, chances) >= self.confidence
        )
        return Standing(
            leader=leader,
            survivors=tuple(self.estimate(arm, beliefs[arm]) for arm in survivors),
            unmeasured=unmeasured,
            dropped=dropped | self.failed,
            settled=(ALONE if len(survivors) == 1 and not unmeasured else SURE) if over else None,
            noise=noise,
            chances={arm: chance for arm, chance in chances.items() if arm not in excluded},
        )

    def together(self, known: Known, leader: str, chances: Mapping[str, float]) -> float:
        """The chance that nobody is better than the leader by more than the tolerance, nobody being wholly unknown."""
        likely = [arm for arm, chance in chances.items() if chance > UNLIKELY]
        others = math.fsum(chance for chance in chances.values() if chance <= UNLIKELY)
        return max(0.0, known.chance_of_none(likely, leader, self.margin) - others)

    # --- which come next ----------------------------------------------------------------------------------------------

    def first_look(self, alive: list[str]) -> list[str]:
        """All arms; with a prior the third that it puts in front, and a few of the others that tell how good it is."""
        if not alive or any(arm not in self.prior for arm in alive):
            return alive
        known = Known(of={arm: self.predicted(arm) for arm in alive}, noise=self.noise.share)
        order = sorted(alive, key=lambda arm: -known.of[arm].mean)
        excluded = least_likely(self.chances(known, order[0]), (1 - self.confidence) * EXCLUDED_BLIND)
        likely = [arm for arm in order if arm not in excluded]
        front = likely[: max(4, len(likely) // 3)]
        rest = [arm for arm in order if arm not in front]
        thirds = [rest[len(rest) * i // 3 : len(rest) * (i + 1) // 3] for i in range(3)]
        return front + [self.random.choice(third) for third in thirds if third]

    def contenders(self, standing: Standing, at_most: int | None) -> list[str]:
        """The leader, then by the chance to beat it; what no prediction speaks of, or a wrong one, goes first."""
        chance = standing.chances
        others = sorted((arm for arm in chance if arm != standing.leader), key=lambda arm: -chance[arm])
        first = [standing.leader] if standing.leader else []
        blind = sum(chance[arm] >= 1 for arm in others)
        challengers = len(others)  # of a prediction that may mislead, nobody is left out who is likely
        if not self.prior or all(arm in self.values for arm in others):
            challengers = sum(chance[arm] >= chance[others[0]] * WORTH_A_RUN for arm in others[:CHALLENGERS])
        if at_most is not None:
            part = PART_WITH_PRIOR if self.prior else PART_OF_BUDGET
            challengers = min(challengers, math.ceil(at_most * part) - len(first))
        return first + others[: max(1, challengers, blind)]

    def unproven(self) -> list[str]:
        """The leader and its nearest: nobody wins by one run, or a busy machine would choose.

        Once for each leader: where the run is disturbed again, or fails, it leaves no value and would be asked for for ever.
        """
        means = {arm: belief.mean for arm, belief in self.beliefs().of.items() if belief.runs}
        nearest = sorted(means, key=lambda arm: -means[arm])[:2]
        if len(nearest) < 2 or len(self.values[nearest[0]]) > 1 or nearest[0] in self.confirmed:
            return []
        self.confirmed.add(nearest[0])
        return nearest

    def shuffled(self, arms: Sequence[str]) -> list[str]:
        """In random order, those of one server in a row: a boot costs time."""
        by_group: dict[str, list[str]] = {}
        for arm in arms:
            by_group.setdefault(self.groups.get(arm, arm), []).append(arm)
        groups = list(by_group.values())
        self.random.shuffle(groups)
        for group in groups:
            self.random.shuffle(group)
        return [arm for group in groups for arm in group]

    # --- what the numbers say -----------------------------------------------------------------------------------------

    def beliefs(self) -> Known:
        """What is known of each arm that has not failed."""
        here = {arm: rounds for arm, rounds in self.values.items() if arm not in self.failed}
        means, noise, freedom = fit(here, self.round + 1, self.noise)
        errors = {arm: noise / math.sqrt(len(here[arm])) for arm in here}
        pairs: dict[tuple[str, str], float] = {}
        if self.traits and len(here) >= LEAST:
            means, pairs = borrowed(means, errors, self.traits)
            errors = {arm: math.sqrt(max(pairs[arm, arm], 0.0)) for arm in here}
        found = {arm: Belief(mean=means[arm], error=errors[arm], freedom=freedom, runs=len(here[arm])) for arm in here}
        waiting = [arm for arm in self.prior if arm in self.arms and arm not in found and arm not in self.failed]
        if found and (points := [(self.logarithm(arm), found[arm].mean) for arm in found if arm in self.prior]):
            line = Line.through(points, max(prior.error for prior in self.prior.values()))
            predicted = {arm: line.at(self.logarithm(arm)) for arm in waiting}
            return Known(of=found | predicted, noise=noise, trusted=line.holds or not waiting, pairs=pairs)
        predicted = {} if found else {arm: self.predicted(arm) for arm in waiting}
        return Known(of=found | predicted, noise=noise, pairs=pairs)

    def logarithm(self, arm: str) -> float:
        return self.sign * math.log(self.prior[arm].value)

    def predicted(self, arm: str) -> Belief:
        return Belief(mean=self.logarithm(arm), error=self.prior[arm].error, freedom=30, runs=0)

    def chances(self, known: Known, leader: str) -> dict[str, float]:
        """For each other arm the chance that it is better than the leader by more than the tolerance."""
        best = known.of[leader].mean + self.margin
        return {
            arm: student_tail((best - b.mean) / known.error_between(arm, leader), b.freedom)
            for arm, b in known.of.items()
            if arm != leader
        }

    def estimate(self, arm: str, belief: Belief) -> Estimate:
        half = t_95(belief.freedom) * belief.error
        ends = sorted(math.exp(self.sign * (belief.mean + side)) for side in (-half, 0.0, half))
        return Estimate(arm=arm, low=ends[0], value=ends[1], high=ends[2], runs=belief.runs)

    def because(self, arm: str, leader: str, known: Known) -> str:
        belief = known.of[arm]
        gap = known.of[leader].mean - belief.mean
        half = t_95(belief.freedom) * known.error_between(arm, leader)
        behind = f"{share(gap):.0%} behind {leader} [{share(gap - half):.0%}, {share(gap + half):.0%}]"
        if not belief.runs:
            return f"predicted {behind}, never measured"
        return f"{behind} after {belief.runs} round{'s' if belief.runs > 1 else ''}"


def least_likely(chances: Mapping[str, float], error: float) -> set[str]:
    """As many arms as can be left out while their chances together stay within ``error``."""
    spent, left_out = 0.0, set[str]()
    for arm in sorted(chances, key=lambda arm: chances[arm]):
        spent += chances[arm]
        if spent > error:
            break
        left_out.add(arm)
    return left_out


def share(gap: float) -> float:
    """A difference of logarithms as a share of the leader's value."""
    return 1 - math.exp(-gap)
