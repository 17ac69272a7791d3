"""The time of ``llmopt tune``, and how many visits fit into what is left of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

LATEST = 6


@dataclass(kw_only=True)
class Budget:
    """Seconds for everything, and what a visit took so far."""

    seconds: float
    started: float = field(default_factory=time.monotonic)
    visits: list[float] = field(default_factory=list)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    @property
    def each(self) -> float | None:
        """Of the last visits: those of later rounds are shorter."""
        latest = self.visits[-LATEST:]
        return sum(latest) / len(latest) if latest else None

    def affords(self, more: int = 1) -> bool:
        """Whether so many visits fit into what is left; the first is always tried while there is time at all."""
        return self.left > (self.each or 0.0) * more

    @property
    def runs(self) -> int | None:
        return None if self.each is None else max(0, int(self.left / self.each))
