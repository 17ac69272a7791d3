"""Matrices of configurations whose true speed is known, and what one run of each would read: the ground that races run on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT = 24
RECORDED = Path(__file__).with_name("recorded.json")
Truth = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """``truth`` draws the logarithms of the true speeds; ``tail``: Student's degrees of freedom of a run's noise, ``None``:
    normal; ``drift``: standard deviation of what shifts a whole pass, and a tenth of it from one run to the next;
    ``recorded``: the arms are those of recorded.json; ``own_noise``: so are their runs, whatever noise is asked for.
    """

    title: str
    truth: Callable[[np.random.Generator], Truth]
    tail: int | None = None
    drift: float = 0.0
    recorded: bool = False
    own_noise: bool = False


def factorial(draw: np.random.Generator) -> Truth:
    """4 quantizations × 2 engines × 3 settings, with an interaction of 4 %."""
    quantization, engine, knob = draw.normal(0, 0.25, 4), draw.normal(0, 0.3, 2), draw.normal(0, 0.12, 3)
    main = quantization[:, None, None] + engine[None, :, None] + knob[None, None, :]
    return np.asarray((main + draw.normal(0, 0.04, (4, 2, 3))).ravel())


def rows() -> list[dict[str, Any]]:
    """Of the recorded matrix: the traits of each configuration, and what its runs read."""
    return list(json.loads(RECORDED.read_text())["configurations"])


def recorded(draw: np.random.Generator) -> Truth:
    return np.log([float(np.median(row["values"])) for row in rows()])


KINDS = {
    "separated": Kind(title="6 % from one to the next", truth=lambda d: d.permutation(-np.linspace(0, 1.4, COUNT)) + d.normal(0, 0.01, COUNT)),
    "spread": Kind(title="normal, 30 %", truth=lambda d: d.normal(0, 0.3, COUNT)),
    "factorial": Kind(title="quantization × engine × setting", truth=factorial),
    "uniform": Kind(title="even within a factor of 2: 3 % from one to the next", truth=lambda d: d.uniform(-0.7, 0, COUNT)),
    "near ties": Kind(
        title="eight within 1.5 % of the best",
        truth=lambda d: d.permutation(np.concatenate([d.uniform(-0.015, 0, 8), d.uniform(-0.8, -0.05, COUNT - 8)])),
    ),
    "one best": Kind(
        title="the best 12 % ahead", truth=lambda d: d.permutation(np.concatenate([[0.0], d.uniform(-0.6, -0.12, COUNT - 1)]))
    ),
    "heavy tails": Kind(title="factorial, noise with Student's t of 3", truth=factorial, tail=3),
    "drift": Kind(title="factorial, passes shifted by 10 %", truth=factorial, drift=0.1),
}  # fmt: skip
if RECORDED.exists():
    KINDS["recorded"] = Kind(title="medians of real runs of one machine (recorded.json)", truth=recorded, recorded=True)
    KINDS["recorded runs"] = Kind(
        title="the same, and a run reads one of the five that were recorded: on a busy machine, up to a factor of 3 apart",
        truth=recorded, recorded=True, own_noise=True,
    )  # fmt: skip


class Machine:
    """Gives one run of a configuration as this kind of matrix and this noise would have it."""

    def __init__(self, kind: Kind, between: float, within: float, seed: int) -> None:
        self.kind, self.between, self.within = kind, between, within
        self.draw = np.random.default_rng(seed)
        truth = kind.truth(self.draw)
        order = np.random.default_rng(seed + 1_000_000).permutation(len(truth))
        self.truth = truth[order]
        self.places = [int(place) for place in order]
        self.rows = rows() if kind.recorded else []
        self.shift, self.runs = 0.0, 0

    def traits(self) -> dict[str, tuple[str, ...]]:
        """By the number of the arm; of a matrix without structure the traits say nothing about the speed."""
        if self.rows:
            return {str(arm): tuple(self.rows[place]["traits"]) for arm, place in enumerate(self.places)}
        return {
            str(arm): (f"quantization {place // 6}", f"engine {place // 3 % 2}", f"setting {place % 3}")
            for arm, place in enumerate(self.places)
        }

    def new_pass(self) -> None:
        self.shift = float(self.draw.normal(0, self.kind.drift)) if self.kind.drift else 0.0

    def run(self, arm: int) -> float:
        """The logarithm that a run reads."""
        self.runs += 1
        if self.kind.own_noise:
            return math.log(self.draw.choice(self.rows[self.places[arm]]["values"]))
        self.shift += float(self.draw.normal(0, self.kind.drift / 10)) if self.kind.drift else 0.0
        between = self.draw.normal(0, 1)
        if self.kind.tail is not None:  # scaled to the same standard deviation
            between = self.draw.standard_t(self.kind.tail) / math.sqrt(self.kind.tail / (self.kind.tail - 2))
        return float(self.truth[arm] + self.shift + self.between * between + self.draw.normal(0, self.within))

    def loss(self, arm: int) -> float:
        """By what share the arm is slower than the best."""
        return 1 - math.exp(float(self.truth[arm] - self.truth.max()))
