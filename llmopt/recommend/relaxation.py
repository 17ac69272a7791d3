"""A wish that nothing meets: which limit binds, and the least that must give, with what it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.domain import Goal, Limit
from llmopt.core.metrics import METRICS
from llmopt.core.units import show
from llmopt.recommend.candidates import Candidate
from llmopt.recommend.constraints import excess, holds, of_the_load


@dataclass(frozen=True, kw_only=True)
class Place:
    """A candidate at one of its loads, and by how much each limit is broken there."""

    candidate: Candidate
    at: int
    excesses: tuple[float, ...]

    @property
    def sort_key(self) -> tuple[str, int]:
        return self.candidate.label, self.at

    @property
    def words(self) -> str:
        load = f" at {self.candidate.points[self.at].load}" if len(self.candidate.points) > 1 else ""
        return f"{self.candidate.label}{load}"


def relaxation(candidates: Sequence[Candidate], goal: Goal) -> dict[str, Any]:
    """JSON-ready. ``candidates`` are those that no filter takes out.

    ``binding``: limits without which, one alone dropped, something would pass.  ``each``: for one limit alone, the bound
    from which something passes while all others hold.  ``joint``: the configuration and load at which the sum of the
    relative excesses is smallest, with every bound that must move.  Empty where no figure is known to move a bound to.
    """
    slos = any(map(of_the_load, goal.limits))
    places = [
        Place(candidate=c, at=at, excesses=excesses_at(c, at, goal.limits))
        for c in candidates
        for at, point in enumerate(c.points)
        if not point.invalid and not (slos and point.saturated)
    ]
    each = [alone(places, goal.limits, n) for n in range(len(goal.limits))]
    together = min(places, key=lambda p: (sum(p.excesses), p.sort_key), default=None)
    if together is None or not math.isfinite(sum(together.excesses)):
        return {"binding": [], "each": [], "joint": None, "never_known": never_known(places, goal.limits)}
    moved = [n for n, more in enumerate(together.excesses) if more > 0]
    return {
        "binding": [limit.text for limit, found in zip(goal.limits, each, strict=True) if found is not None],
        "each": [found for found in each if found is not None],
        "joint": {
            "label": together.candidate.label,
            "load": together.candidate.points[together.at].load,
            "changes": [change(together, goal.limits[n]) for n in moved],
            "excess": sum(together.excesses),
            "output_tps": together.candidate.value_at(together.at, "output_tps"),
            "words": f"{' and '.join(change(together, goal.limits[n])['words'] for n in moved)} would let {together.words} through"
            f"{throughput(together)}",
        },
        "never_known": never_known(places, goal.limits),
    }


def excesses_at(candidate: Candidate, at: int, limits: Sequence[Limit]) -> tuple[float, ...]:
    return tuple(excess(candidate.value_at(at, x.metric, x.statistic), x) for x in limits)


def alone(places: Sequence[Place], limits: Sequence[Limit], number: int) -> dict[str, Any] | None:
    """The least by which one limit must give while all others hold; ``None`` where that is not enough, or not known."""
    enough = [
        p
        for p in places
        if math.isfinite(p.excesses[number]) and not sum(p.excesses[:number]) and not sum(p.excesses[number + 1 :])
    ]
    if not enough:
        return None
    best = min(enough, key=lambda p: (p.excesses[number], -(p.candidate.value_at(p.at, "output_tps") or 0), p.sort_key))
    moved = change(best, limits[number])
    return moved | {
        "label": best.candidate.label,
        "load": best.candidate.points[best.at].load,
        "output_tps": best.candidate.value_at(best.at, "output_tps"),
        "words": f"{moved['words']} alone would let {best.words} through{throughput(best)}",
    }


def change(place: Place, limit: Limit) -> dict[str, Any]:
    """From the bound to the value that was measured."""
    value, unit = place.candidate.value_at(place.at, limit.metric, limit.statistic), METRICS[limit.metric].unit
    assert value is not None
    relative = excess(value, limit)
    more = f"{relative:.0%} {'more' if limit.comparison[0] == '<' else 'less'}" if limit.bound else "instead of 0"
    return {
        "limit": limit.text,
        "metric": limit.metric,
        "statistic": limit.statistic,
        "from": limit.bound,
        "to": value,
        "relative": relative,
        "words": f"{limit.text} relaxed to {show(value, unit)} ({more})",
    }


def throughput(place: Place) -> str:
    rate = place.candidate.value_at(place.at, "output_tps")
    return "" if rate is None else f", with {show(rate, 'tps')}"


def never_known(places: Sequence[Place], limits: Sequence[Limit]) -> list[str]:
    """Limits on something that no run here tells."""
    return [x.text for n, x in enumerate(limits) if places and all(math.isinf(p.excesses[n]) for p in places)]


def apart_only(candidate: Candidate, limits: Sequence[Limit]) -> str | None:
    """The sentence about limits that each hold at some load and at none together."""
    if len(candidate.points) < 2:
        return None
    where = {x.text: [i for i in range(len(candidate.points)) if holds(candidate, i, x)] for x in limits}
    if not all(where.values()) or set.intersection(*(set(found) for found in where.values())):
        return None
    partly = {text: found for text, found in where.items() if len(found) < len(candidate.points)}
    parts = [f"{text} at {', '.join(candidate.points[i].load for i in found)}" for text, found in partly.items()]
    return f"each limit holds at some load, but at no load do all: {'; '.join(parts)}"
