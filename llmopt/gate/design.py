"""The experiment before it is carried out: blocks in random order, and looks with the error that each may spend.

A block has two runs of each side, ABBA or BAAB by the toss of a seeded coin: what drifts evenly over a block hits both
sides alike and cancels to the first order, and nobody can lie in wait for the order.  Looks are fixed beforehand;
each has its share of the error, so that stopping early when things are clear costs what it costs and no more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmopt.core.errors import UsageError

Side = Literal["base", "candidate"]
ORDERS: tuple[tuple[Side, ...], ...] = (
    ("base", "candidate", "candidate", "base"),
    ("candidate", "base", "base", "candidate"),
)
DEFAULT_BLOCKS = 20
FEWEST = 5  # below, Student's t asks for differences that no one would call small
LOOKS = (5, 8, 12, 16, 20, 28, 40, 56, 80)
# Kim and DeMets 1987: the error spent when a share t of all blocks is there is α·t^ρ.
POWER = 2.0


@dataclass(frozen=True, kw_only=True)
class Design:
    """``orders`` one for each block; ``looks`` at how many blocks a decision may be made; ``spent`` the error of each look."""

    orders: tuple[tuple[Side, ...], ...]
    looks: tuple[int, ...]
    spent: tuple[float, ...]
    confidence: float
    seed: int

    @property
    def blocks(self) -> int:
        return len(self.orders)

    def error_at(self, blocks: int, *, ended: bool) -> float | None:
        """What may be spent with so many whole blocks; ``None`` where no look was planned.

        Where the experiment has ``ended`` with fewer blocks than planned (some were disturbed, or a limit of time came)
        the last look is now, and has what is left: that was decided without a glance at the figures.
        """
        if blocks in self.looks:
            place = self.looks.index(blocks)
            return sum(self.spent[place:]) if ended else self.spent[place]
        return sum(s for n, s in zip(self.looks, self.spent, strict=True) if n > blocks) if ended else None


def make_design(blocks: int, confidence: float, seed: int) -> Design:
    """Raises UsageError for fewer than two blocks, and for a confidence that is none."""
    if blocks < 2:
        raise UsageError(
            "--rounds must be 2 or more", hint=f"{FEWEST} or more: one block says nothing of its own noise"
        )
    if not 0.5 < confidence < 1:
        raise UsageError(f"--confidence {confidence:g} is none", hint="between 0.5 and 1: --confidence 0.99")
    coin = random.Random(seed)
    orders: list[tuple[Side, ...]] = []
    for _ in range(
        0, blocks, 2
    ):  # of each two blocks one each way: the orders are never out of balance by more than one
        orders += coin.sample(ORDERS, 2)
    looks = looks_of(blocks)
    return Design(
        orders=tuple(orders[:blocks]), looks=looks, spent=spend(1 - confidence, looks), confidence=confidence, seed=seed
    )


def looks_of(blocks: int) -> tuple[int, ...]:
    """At five blocks, then at half as many more each time, and at the end."""
    return (*(n for n in LOOKS if n < blocks), blocks)


def spend(error: float, looks: Sequence[int]) -> tuple[float, ...]:
    """The error of each look; they add up to ``error``, so that their union keeps it whatever the looks have in common."""
    until = [error * (n / looks[-1]) ** POWER for n in looks]
    return tuple(now - before for before, now in zip([0.0, *until], until, strict=False))
