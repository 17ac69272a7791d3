"""A wish that nothing meets: which limit binds, and the least that must give, with what it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.domain import Goal, Limit
from llmopt.core.metrics import METRICS
from llmopt.core.units import bound_that_holds, show
from llmopt.recommend.candidates import Candidate
from llmopt.recommend.constraints import breaks, excess, holds, of_the_load


@dataclass(frozen=True, kw_only=True)
class Place:
    """A candidate at one of its loads, which limits are broken there, and by how much: by nothing where it is the bound itself."""

    candidate: Candidate
    at: int
    excesses: tuple[float, ...]
    broken: tuple[bool, ...]

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
        place_at(c, at, goal.limits)
        for c in candidates
        for at, point in enumerate(c.points)
        if not point.invalid and not (slos and point.saturated)
    ]
    each = [alone(places, goal.limits, n) for n in range(len(goal.limits))]
    together = min(places, key=lambda p: (sum(p.excesses), p.sort_key), default=None)
    if together is None or not math.isfinite(sum(together.excesses)):
        return {"binding": [], "each": [], "joint": None, "never_known": never_known(places, goal.limits)}
    moved = [n for n, more in enumerate(together.broken) if more]
    return {
        "binding": [limit.text for limit, found in zip(goal.limits, each, strict=True) if found is not None],
        "each": [found for found in each if found is not None],
        "joint": {
            "label": together.candidate.label,
            "load": together.candidate.points[together.at].load,
            "changes": [change(together, goal.limits[n]) for n in moved],
            "excess": sum(together.excesses),
            **gives(together),
            "words": f"{' and '.join(change(together, goal.limits[n])['words'] for n in moved)} would let {together.words} through"
            f"{gives_words(together)}",
        },
        "never_known": never_known(places, goal.limits),
    }


def place_at(candidate: Candidate, at: int, limits: Sequence[Limit]) -> Place:
    values = [(candidate.value_at(at, x.metric, x.statistic), x) for x in limits]
    return Place(
        candidate=candidate,
        at=at,
        excesses=tuple(excess(value, x) for value, x in values),
        broken=tuple(breaks(value, x) for value, x in values),
    )


def alone(places: Sequence[Place], limits: Sequence[Limit], number: int) -> dict[str, Any] | None:
    """The least by which one limit must give while all others hold; ``None`` where that is not enough, or not known."""
    enough = [
        p
        for p in places
        if math.isfinite(p.excesses[number]) and not any(p.broken[:number]) and not any(p.broken[number + 1 :])
    ]
    if not enough:
        return None
    best = min(enough, key=lambda p: (p.excesses[number], -(p.candidate.value_at(p.at, "output_tps") or 0), p.sort_key))
    moved = change(best, limits[number])
    return moved | {
        "label": best.candidate.label,
        "load": best.candidate.points[best.at].load,
        **gives(best),
        "words": f"{moved['words']} alone would let {best.words} through{gives_words(best)}",
    }


def change(place: Place, limit: Limit) -> dict[str, Any]:
    """From the bound to the value that was measured; ``limit_that_holds`` is written as the option takes it."""
    value, unit = place.candidate.value_at(place.at, limit.metric, limit.statistic), METRICS[limit.metric].unit
    assert value is not None
    relative = excess(value, limit)
    at_most = limit.comparison[0] == "<"
    more = f"{percent(relative)} {'more' if at_most else 'less'}" if limit.bound else "instead of 0"
    name = limit.text.partition(limit.comparison)[0]
    held = f"{name}{limit.comparison[0]}={bound_that_holds(value, unit, at_most=at_most)}"
    return {
        "limit": limit.text,
        "metric": limit.metric,
        "statistic": limit.statistic,
        "from": limit.bound,
        "to": value,
        "relative": relative,
        "limit_that_holds": held,
        "words": f"{limit.text} relaxed to {held}" + (f" ({more})" if relative else ""),
    }


def percent(share: float) -> str:
    return f"{share * 100:.3g}%" if share < 10 else f"{share * 100:,.0f}%"


def gives(place: Place) -> dict[str, float | None]:
    """What the one that is let through gives and costs at its load; money only where a price is known."""
    return {name: place.candidate.value_at(place.at, name) for name in ("output_tps", "cost")}


def gives_words(place: Place) -> str:
    found = gives(place)
    parts = [show(found["output_tps"], "tps")] if found["output_tps"] is not None else []
    parts += [f"{show(found['cost'], 'price')} per 1M output tokens"] if found["cost"] is not None else []
    return f", with {' and '.join(parts)}" if parts else ""


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
