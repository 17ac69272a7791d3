"""How long prompts and answers are: one number, or a distribution, drawn from a seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

from llmopt.core.errors import UsageError

HINT = "32, uniform:16:64, or lognormal:MEAN:DEVIATION[:MAX] in tokens"
LOGNORMAL_TAIL = 8  # a lognormal has no largest value: cut at this multiple of its mean unless MAX says otherwise


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Token counts. ``mean`` and ``longest`` are known before anything is drawn."""

    kind: Literal["fixed", "uniform", "lognormal"]
    mean: int
    longest: int
    low: int = 1
    deviation: float = 0.0

    @property
    def least(self) -> int:
        """The shortest that can be drawn."""
        return {"fixed": self.mean, "uniform": self.low, "lognormal": 1}[self.kind]

    def draw(self, generator: random.Random) -> int:
        if self.kind == "fixed":
            return self.mean
        if self.kind == "uniform":
            return generator.randint(self.low, self.longest)
        spread = math.log1p((self.deviation / self.mean) ** 2)  # of the logarithm, for this mean and deviation
        value = generator.lognormvariate(math.log(self.mean) - spread / 2, math.sqrt(spread))
        return min(self.longest, max(1, round(value)))


def parse_lengths(text: str, flag: str) -> Lengths:
    """``"32"``, ``"uniform:16:64"``, ``"lognormal:64:32"`` → Lengths; raises UsageError that names the flag."""
    kind, *numbers = text.strip().split(":") if ":" in text else ["fixed", text.strip()]
    try:
        values = [int(n) for n in numbers]
    except ValueError:
        raise UsageError(f"{flag} {text!r} is no length", hint=f"{flag} {HINT}") from None
    if any(v < 1 for v in values):
        raise UsageError(f"{flag} must be 1 or more, got {text}", hint=f"{flag} 32")
    match kind, values:
        case "fixed", [n]:
            return Lengths(kind="fixed", mean=n, longest=n)
        case "uniform", [low, high] if low <= high:
            return Lengths(kind="uniform", mean=(low + high) // 2, longest=high, low=low)
        case "lognormal", [mean, deviation]:
            return Lengths(kind="lognormal", mean=mean, deviation=deviation, longest=mean * LOGNORMAL_TAIL)
        case "lognormal", [mean, deviation, longest] if longest >= mean:
            return Lengths(kind="lognormal", mean=mean, deviation=deviation, longest=longest)
    raise UsageError(f"{flag} {text!r} is no length", hint=f"{flag} {HINT}")
