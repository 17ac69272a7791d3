"""Constraints first, then the Pareto front, then the rank; every line with its reasons in plain words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmopt.core.domain import Goal, Recommendation
from llmopt.core.licences import said_licence
from llmopt.recommend import baseline as baselines
from llmopt.recommend.candidates import Candidate
from llmopt.recommend.choosing import choose
from llmopt.recommend.comparing import beats_next, by_figures_alone, in_order, surely_behind, tie_groups
from llmopt.recommend.constraints import broken, check_filters, filtered, holds
from llmopt.recommend.cost import Api
from llmopt.recommend.curves import Curves
from llmopt.recommend.front import AGAINST, Axis, axes, dominators, knee, memory_axis
from llmopt.recommend.relaxation import apart_only, relaxation
from llmopt.recommend.rows import line, reasons

__all__ = ["Ranking", "memory_axis", "recommend"]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """``ranked`` best first and ``rejected`` by name, each up to ``top``; how many there are in all; what would have to give."""

    ranked: tuple[Recommendation, ...] = ()
    rejected: tuple[Recommendation, ...] = ()
    ranked_in_all: int = 0
    rejected_in_all: int = 0
    rejected_by: dict[str, int] = field(default_factory=dict)
    relaxation: dict[str, Any] | None = None


def recommend(
    candidates: Sequence[Candidate],
    goal: Goal,
    *,
    top: int | None = None,
    baseline: str | None = None,
    api: Api | None = None,
    licence: Callable[[dict[str, Any]], str | None] = said_licence,
) -> Ranking:
    """Every candidate at its point; who keeps all limits is ranked. Raises UsageError for a filter or a baseline that is nobody.

    Who is behind the Pareto front says so.  An estimate stands below every measurement.
    """
    check_filters(candidates, goal)
    placed = [choose(c, goal) for c in candidates]
    compared = baselines.named(placed, baseline) if baseline is not None else None
    bases = baselines.bases(placed) if compared is None else []

    found_bases = dict[str, Candidate | None]()

    def against(c: Candidate) -> Candidate | None:
        if compared is None and c.key not in found_bases:
            found_bases[c.key] = baselines.default_baseline(c, bases)
        return compared or found_bases[c.key]

    kept, rejected = list[Candidate](), list[tuple[Candidate, tuple[str, ...]]]()
    by, passed_filters = dict[str, int](), list[Candidate]()
    for candidate in placed:
        out = filtered(candidate, goal, licence)
        if not out:
            passed_filters.append(candidate)
        because = (*out, *objections(candidate, goal)) if out else objections(candidate, goal)
        if because:
            rejected.append((candidate, because))
            count_reasons(by, candidate, goal, filtered=bool(out))
        else:
            kept.append(candidate)
    lines, out_of_it = [], sorted(rejected, key=lambda pair: (pair[0].label, pair[0].key))[:top]
    cut_columns([c for c, _ in out_of_it], top)
    for candidate, because in out_of_it:
        lines.append(line(candidate, goal, against(candidate), api, because=because))
    return Ranking(
        ranked=rank(kept, goal, against, api, top),
        rejected=tuple(lines),
        ranked_in_all=len(kept),
        rejected_in_all=len(rejected),
        rejected_by=by,
        relaxation=relaxation(passed_filters, goal) if candidates and not kept else None,
    )


def cut_columns(shown: Sequence[Candidate], top: int | None) -> None:
    """For the lines that follow; not where all are shown, which would take the memory of the whole table once more."""
    points: dict[Curves, list[int]] = defaultdict(list)
    for c in shown if top is not None else ():
        points[c.curves] += [p.number for p in c.points]
    for curves, numbers in points.items():
        curves.cut(numbers)


def count_reasons(by: dict[str, int], candidate: Candidate, goal: Goal, *, filtered: bool) -> None:
    """How many each limit rejects alone, for it holds at none of their loads: the largest number is the limit that binds."""
    words = ["filters"] if filtered else []
    places = [n for n, point in enumerate(candidate.points) if not point.invalid]
    if not places:
        words.append("invalid runs")
    else:
        never = [x.text for x in goal.limits if not any(holds(candidate, n, x) for n in places)]
        words += never or ([] if filtered else ["all together"])
    for word in words:
        by[word] = by.get(word, 0) + 1


def objections(candidate: Candidate, goal: Goal) -> tuple[str, ...]:
    """Why a candidate is out; empty when it keeps every limit."""
    if candidate.invalid:
        return tuple(f"its run is invalid: {d.message}" for d in candidate.verdict.reasons if d.severity == "invalid")
    found = [reason for x in goal.limits if (reason := broken(candidate, candidate.at, x)) is not None]
    if candidate.why.startswith("no load keeps"):
        if candidate.point.saturated:
            found.append(f"{candidate.point.load}: past saturation, so that its latencies depend on how long it lasted")
        together = apart_only(candidate, goal.limits)
        found += [together] if together else []
        found += [candidate.why] if len(candidate.points) > 1 or not found else []
    return tuple(found)


# --- the order --------------------------------------------------------------------------------------------------


def rank(
    kept: Sequence[Candidate],
    goal: Goal,
    against: Callable[[Candidate], Candidate | None],
    api: Api | None,
    top: int | None,
) -> tuple[Recommendation, ...]:
    if not kept:
        return ()
    axis = axes(kept, goal)
    wanted = [axis[name] for name in goal.objectives]
    behind = dominators(kept, list(axis.values()))
    kl = Axis(word="closeness to the base", metric="kl", statistic=None)

    def last(c: Candidate) -> tuple[Any, ...]:
        return behind[c.key] is not None, kl.cost(c), c.label, c.key

    order = in_order(kept, wanted, last)
    groups = tie_groups(order, wanted[0])
    first = goal.objectives[0]
    front = [c for c in order if behind[c.key] is None]
    other = axis[AGAINST.get(first, "throughput" if first != "output_tps" else "latency")]
    bend = knee(front, wanted[0], other)
    beaten = surely_behind(order[:top], list(axis.values()))
    everyone = {name: min(map(a.cost, order)) for name, a in axis.items()}
    members: dict[int | None, list[Candidate]] = {}
    for c in order:
        members.setdefault(groups[c.key], []).append(c)
    found = []
    cut_columns(order[:top], top)
    for place, candidate in enumerate(order[:top], 1):
        others = (
            [c for c in members[groups[candidate.key]] if c is not candidate]
            if groups[candidate.key] is not None
            else []
        )
        following = order[place] if place < len(order) else None
        words = reasons(
            candidate,
            goal,
            axis,
            everyone,
            others,
            beaten.get(candidate.key),
            against(candidate),
            alone=len(order) == 1,
        )
        if (ahead := behind[candidate.key]) is not None and candidate.key not in beaten:
            words = (*words, f"not told apart from the front: {ahead.label} is ahead of it in nothing surely")
        if alone := by_figures_alone(candidate, following, wanted[0]):
            words = (*words, alone)
        if bend is candidate:
            words = (*words, f"the knee of the front: beyond it, more {wanted[0].word} costs most {other.word}")
        found.append(
            line(
                candidate, goal, against(candidate), api, reasons=words, rank=place,
                tie_group=groups[candidate.key], on_front=candidate.key not in beaten, knee=bend is candidate,
                beats_next=beats_next(candidate, following, wanted[0]),
            )
        )  # fmt: skip
    return tuple(found)
