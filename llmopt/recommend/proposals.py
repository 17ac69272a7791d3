"""Numeric settings that are searched instead of listed: Optuna proposes values, the race decides what they are worth.

Four knobs of five values each are a thousand configurations; a tree of Parzen estimators (Bergstra et al. 2011) looks where
the good ones were.  Only first impressions are told to it: what is proposed next need not be certain, what is chosen must.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmopt.core.errors import MissingEnvironment

SPREADS_WIDE = 10  # from this ratio of the ends on, values are drawn on their logarithms
AT_FIRST, LATER, OF_EACH = 8, 4, 10  # proposals of the first round, of each later one, and in all for each knob
TRIES = 20  # to find one that was not proposed before


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values from ``low`` to ``high``, both among them."""

    low: float
    high: float
    whole: bool

    @property
    def logarithmic(self) -> bool:
        return self.low > 0 and self.high / self.low >= SPREADS_WIDE


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """``base``: the configuration whose knobs are set to these values."""

    base: str
    values: tuple[tuple[str, int | float], ...]


def require_optuna() -> None:
    """Raise MissingEnvironment where it is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingEnvironment(
            "ranges of knobs are searched by Optuna, which is not installed here",
            hint="pip install 'llmopt[optuna]', or list the values: --knob threads=1,2",
        )


class Proposals:
    """Ask for the next ones, tell what each gave. Raises MissingEnvironment where Optuna is not installed.

    ``knobs``: base → those of the ranges that its engine has.
    """

    def __init__(
        self,
        knobs: Mapping[str, Sequence[str]],
        ranges: Mapping[str, Range],
        better: Literal["higher", "lower"],
        seed: int,
    ) -> None:
        require_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.knobs, self.ranges = {base: tuple(names) for base, names in knobs.items() if names}, ranges
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_FIRST)
        self.study = optuna.create_study(direction="maximize" if better == "higher" else "minimize", sampler=sampler)
        self.asked: dict[Proposal, Any] = {}
        self.told: set[Proposal] = set()

    @property
    def most(self) -> int:
        return OF_EACH * len(self.ranges)

    def ask(self) -> list[Proposal]:
        """The next ones, none of which came before; none when enough have."""
        wanted = min(LATER if self.asked else AT_FIRST, self.most - len(self.asked)) if self.knobs else 0
        found: list[Proposal] = []
        for _ in range(TRIES * wanted):
            if len(found) == wanted:
                break
            trial = self.study.ask()
            proposal = self.drawn(trial)
            if proposal in self.asked:
                self.study.tell(trial, state=failed())
                continue
            self.asked[proposal] = trial
            found.append(proposal)
        return found

    def drawn(self, trial: Any) -> Proposal:
        base = trial.suggest_categorical("base", list(self.knobs))
        return Proposal(base=base, values=tuple((name, self.value(trial, name)) for name in self.knobs[base]))

    def value(self, trial: Any, name: str) -> float:
        found = self.ranges[name]
        if found.whole:
            return int(trial.suggest_int(name, int(found.low), int(found.high), log=found.logarithmic))
        return float(trial.suggest_float(name, found.low, found.high, log=found.logarithmic))

    def take_up(self, proposal: Proposal) -> None:
        """One of an earlier start, so that it counts and is not proposed again."""
        self.study.enqueue_trial({"base": proposal.base, **dict(proposal.values)})
        trial = self.study.ask()
        self.asked[self.drawn(trial)] = trial

    def tell(self, proposal: Proposal, value: float | None) -> None:
        """What it gave when it was first measured; ``None`` where it failed."""
        if proposal not in self.asked or proposal in self.told:
            return
        self.told.add(proposal)
        if value is None or not math.isfinite(value):
            self.study.tell(self.asked[proposal], state=failed())
        else:
            self.study.tell(self.asked[proposal], value)


def failed() -> Any:
    import optuna

    return optuna.trial.TrialState.FAIL
