"""What ``llmopt gate`` is asked, and what it answers for one pair of cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llmopt.gate.design import DEFAULT_BLOCKS, Design
from llmopt.gate.differences import Difference
from llmopt.gate.judge import Judgement
from llmopt.gate.thresholds import Threshold


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is gated and how hard: the options of ``llmopt gate`` that are not about measuring."""

    thresholds: tuple[Threshold, ...]
    quality: tuple[Threshold, ...]
    rounds: int | None = None
    budget_s: float | None = None
    confidence: float = 0.99
    allow: tuple[str, ...] = ()
    seed: int | None = None
    workers: int = 1

    @property
    def blocks(self) -> int:
        return self.rounds or DEFAULT_BLOCKS

    def shared_by(self, cases: int) -> Question:
        """The error of the whole gate divided by its cases (Bonferroni): twenty of them raise no more false alarms than one."""
        return replace(self, confidence=1 - (1 - self.confidence) / cases)

    @property
    def asked(self) -> list[Any]:
        """What makes it another gate: one with other thresholds or another end does not go on with these blocks."""
        bounds = [[t.name, t.tolerate, t.block] for t in (*self.thresholds, *self.quality)]
        return [bounds, self.rounds, self.budget_s, self.confidence]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One pair of cases, judged. ``design`` is ``None`` for stored runs, of which none was planned here.

    ``confounded``: where the noise between sessions is from, of stored runs for each side; ``unmeant``: differences that
    nobody allowed.
    """

    base: str
    candidate: str
    judgement: Judgement
    differences: tuple[Difference, ...]
    design: Design | None
    seconds: float
    runs: tuple[tuple[str, ...], tuple[str, ...]]
    confounded: tuple[str, ...] = ()
    unmeant: tuple[str, ...] = ()
