"""Constraints first, then the Pareto front, then the rank; every line with its reasons in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llmopt.core.domain import Goal, Limit, Recommendation
from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.units import show
from llmopt.recommend import baseline as baselines
from llmopt.recommend.candidates import INTERVALS, Candidate
from llmopt.recommend.choosing import choose
from llmopt.recommend.constraints import broken, check_filters, filtered, holds
from llmopt.recommend.cost import Api, monthly
from llmopt.recommend.diagnosis import diagnose
from llmopt.recommend.front import AGAINST, Axis, axes, dominators, knee, memory_axis
from llmopt.recommend.points import EVIDENCE
from llmopt.recommend.relaxation import apart_only, relaxation
from llmopt.recommend.ties import FEWEST_RUNS, SURE, beats, beats_by_interval

__all__ = ["Ranking", "memory_axis", "recommend", "unknown_licence"]

HEADLINE = (
    *INTERVALS,
    "requests_per_s",
    "tpot_p50",
    "error_rate",
    "slo_attainment",
    "goodput_rps",
    "kl",
    "top1",
    "cost",
)


def unknown_licence(artifact: dict[str, Any]) -> str | None:
    """What the record itself says."""
    found = artifact.get("licence") or artifact.get("license")
    return str(found).lower() if found else None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """``ranked`` best first and ``rejected`` by name, each up to ``top``; how many there are in all; what would have to give."""

    ranked: tuple[Recommendation, ...] = ()
    rejected: tuple[Recommendation, ...] = ()
    ranked_in_all: int = 0
    rejected_in_all: int = 0
    rejected_by: dict[str, int] = field(default_factory=dict)
    relaxation: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Beats:
    """P(one is better than the next), and over what that was found; ``None`` where only the figures are known."""

    probability: float
    over: str | None

    @property
    def sure(self) -> bool:
        return self.probability >= SURE


def recommend(
    candidates: Sequence[Candidate],
    goal: Goal,
    *,
    top: int | None = None,
    baseline: str | None = None,
    api: Api | None = None,
    licence: Callable[[dict[str, Any]], str | None] = unknown_licence,
) -> Ranking:
    """Every candidate at its point; who keeps all limits is ranked. Raises UsageError for a filter or a baseline that is nobody.

    Who is behind the Pareto front says so.  An estimate stands below every measurement.
    """
    check_filters(candidates, goal)
    placed = [choose(c, goal) for c in candidates]
    compared = baselines.named(placed, baseline) if baseline is not None else None
    bases = baselines.bases(placed) if compared is None else []

    def against(c: Candidate) -> Candidate | None:
        return compared or baselines.default_baseline(c, bases)

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
    lines = []
    for candidate, because in sorted(rejected, key=lambda pair: (pair[0].label, pair[0].key))[:top]:
        lines.append(line(candidate, goal, against(candidate), api, because=because))
    return Ranking(
        ranked=rank(kept, goal, against, api, top),
        rejected=tuple(lines),
        ranked_in_all=len(kept),
        rejected_in_all=len(rejected),
        rejected_by=by,
        relaxation=relaxation(passed_filters, goal) if candidates and not kept else None,
    )


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
    everyone = {name: min(map(a.cost, order)) for name, a in axis.items()}
    members: dict[int | None, list[Candidate]] = {}
    for c in order:
        members.setdefault(groups[c.key], []).append(c)
    found = []
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
            behind[candidate.key],
            against(candidate),
            alone=len(order) == 1,
        )
        if bend is candidate:
            words = (*words, f"the knee of the front: beyond it, more {wanted[0].word} costs most {other.word}")
        found.append(
            line(
                candidate, goal, against(candidate), api, reasons=words, rank=place,
                tie_group=groups[candidate.key], on_front=behind[candidate.key] is None, knee=bend is candidate,
                beats_next=None if following is None else beats_next(candidate, following, wanted[0]),
            )
        )  # fmt: skip
    return tuple(found)


def in_order(
    candidates: Sequence[Candidate], wanted: Sequence[Axis], last: Callable[[Candidate], tuple[Any, ...]]
) -> list[Candidate]:
    """By the first objective; those that tie in it by the second, and so on. Measurements before estimates."""
    axis, *rest = wanted
    order = sorted(candidates, key=lambda c: (EVIDENCE.index(c.evidence), axis.cost(c), *last(c)))
    if not rest:
        return order
    groups = tie_groups(order, axis)
    found: list[Candidate] = []
    for number in dict.fromkeys(groups[c.key] for c in order):
        found += in_order([c for c in order if groups[c.key] == number], rest, last)
    return found


def tie_groups(candidates: Sequence[Candidate], axis: Axis) -> dict[str, int | None]:
    """Best first, those that the leader of their group does not surely beat are one group: the data does not tell them apart.

    A candidate whose objective is unknown ties with nobody: its group is ``None``; nor does an estimate with a measurement.
    """
    groups: dict[str, int | None] = {}
    leader: Candidate | None = None
    number = 0
    for c in sorted(candidates, key=lambda c: (EVIDENCE.index(c.evidence), axis.cost(c), c.label, c.key)):
        if not math.isfinite(axis.cost(c)):
            groups[c.key] = None
            continue
        if leader is None or leader.evidence != c.evidence or probability(leader, c, axis).sure:
            leader, number = c, number + 1
        groups[c.key] = number
    return groups


def probability(one: Candidate, other: Candidate, axis: Axis) -> Beats:
    """P(one is better): over runs where both have three, else from the intervals within them, else by the figures alone."""
    lower = axis.lower_is_better
    if METRICS[axis.metric].source != "quality":
        values = [c.point.values(axis.metric, axis.statistic) for c in (one, other)]
        if min(map(len, values)) >= FEWEST_RUNS:
            return Beats(probability=beats(*values, lower_is_better=lower), over="runs")
    figures = [c.value(axis.metric, axis.statistic) for c in (one, other)]
    bounds = [interval_of(c, axis) for c in (one, other)]
    if figures[0] is not None and figures[1] is not None and bounds[0] and bounds[1]:
        p = beats_by_interval(
            figures[0],
            (bounds[0]["low"], bounds[0]["high"]),
            figures[1],
            (bounds[1]["low"], bounds[1]["high"]),
            lower_is_better=lower,
        )
        over = " and ".join(sorted({b["over"] for b in bounds if b}))
        return Beats(probability=p, over=f"{over} within the run" if over == "blocks" else over)
    costs = axis.cost(one), axis.cost(other)
    return Beats(probability=0.5 if costs[0] == costs[1] else float(costs[0] < costs[1]), over=None)


def interval_of(c: Candidate, axis: Axis) -> dict[str, Any] | None:
    if axis.metric != "task_score":
        return c.interval(axis.name)
    value, error = c.task_scores.get(axis.statistic or "", (None, None))
    if value is None or error is None:
        return None
    return {"low": value - 1.96 * error, "high": value + 1.96 * error, "over": "questions"}


def beats_next(one: Candidate, other: Candidate, axis: Axis) -> dict[str, Any] | None:
    if not math.isfinite(axis.cost(one)) or not math.isfinite(axis.cost(other)) or one.evidence != other.evidence:
        return None
    found = probability(one, other, axis)
    return {
        "label": other.label,
        "in": axis.name,
        "probability": found.probability if found.over else None,
        "over": found.over,
    }


# --- the words --------------------------------------------------------------------------------------------------


def reasons(
    candidate: Candidate, goal: Goal, axis: dict[str, Axis], best_of: dict[str, float], ties: Sequence[Candidate],
    dominated_by: Candidate | None, base: Candidate | None, *, alone: bool,
) -> tuple[str, ...]:  # fmt: skip
    wanted = axis[goal.objectives[0]]
    found = [headline(candidate, wanted, base), f"at {candidate.why}"]
    if ties:
        ahead, after = sorted((candidate, ties[0]), key=lambda c: (wanted.cost(c), c.label))
        p = probability(ahead, after, wanted)
        how = f"P(better) {p.probability:.2f} over {p.over}" if p.over else "their figures are equal"
        names = ", ".join(c.label for c in ties[:5]) + (f" and {len(ties) - 5} more" if len(ties) > 5 else "")
        found.append(f"ties in {wanted.word} with {names}: {how}")
    best = [a.word for n, a in axis.items() if math.isfinite(own := a.cost(candidate)) and own == best_of[n]]
    if best and not alone:
        found.append(f"best of all in {' and '.join(dict.fromkeys(best))}")
    if dominated_by is not None:
        found.append(f"behind the front: {dominated_by.label} is at least as good in everything")
    known = [x for x in goal.limits if candidate.value(x.metric, x.statistic) is not None]
    if known:
        found.append("keeps " + ", ".join(kept_words(candidate, x) for x in known))
    return (*found, *about_quality(candidate), *doubts(candidate))


def about_quality(candidate: Candidate) -> list[str]:
    if quality := candidate.quality:
        low, high = quality["kl_mean_interval"]
        return [
            f"KL to the base {quality['kl_mean']:.4f} [{low:.4f}, {high:.4f}], "
            f"{quality['top1_agreement']:.1%} of top tokens unchanged"
        ]
    if candidate.value("kl") is None:
        return ["doubt: its quality was not measured, so nothing says that its answers are any good"]
    return []


def doubts(candidate: Candidate) -> list[str]:
    found = [f"note: {note}"] if (note := candidate.case["backend"].get("note")) else []
    if candidate.evidence != "measured":
        found.append(f"doubt: its figures are {candidate.evidence}, not measured: llmopt bench")
    if candidate.identity.get("context"):
        found.append("doubt: forced beside runs of another machine, loop, workload or model")
    return found + [f"doubt: {d.message} ({d.remedy})" for d in candidate.verdict.reasons]


def kept_words(candidate: Candidate, limit: Limit) -> str:
    return f"{limit.text} ({show(candidate.value(limit.metric, limit.statistic), METRICS[limit.metric].unit)})"


def headline(candidate: Candidate, objective: Axis, base: Candidate | None) -> str:
    """The objective with its interval, and its ratio to the baseline where that is known."""
    if not math.isfinite(objective.cost(candidate)):
        return f"{objective.word} not known"
    text = f"{objective.word} {objective.show(candidate)}"
    bounds = interval_of(candidate, objective)
    if bounds is not None:
        unit = METRICS[objective.metric].unit
        text += f" [{show(bounds['low'], unit)}, {show(bounds['high'], unit)}]"
    own, other = (c.value(objective.metric, objective.statistic) if c else None for c in (candidate, base))
    if base is not None and base.key != candidate.key and own and other:
        text += f", {own / other:.2f}× {base.label}"
    return text


# --- one line of the document -----------------------------------------------------------------------------------


def line(
    candidate: Candidate, goal: Goal, base: Candidate | None, api: Api | None, *, reasons: tuple[str, ...] = (),
    because: tuple[str, ...] = (), rank: int | None = None, tie_group: int | None = None, on_front: bool = False,
    knee: bool = False, beats_next: dict[str, Any] | None = None,
) -> Recommendation:  # fmt: skip
    verdict: dict[str, Any] = asdict(candidate.verdict)
    return Recommendation(
        rank=rank, tie_group=tie_group, on_front=on_front, knee=knee, beats_next=beats_next,
        label=candidate.label, key=candidate.key, case=candidate.case, metrics=candidate.metrics,
        intervals=candidate.intervals, quality=candidate.quality, verdict=verdict, evidence=candidate.evidence,
        runs=candidate.runs, reasons=reasons, because=because,
        point={"load": candidate.point.load, "level": candidate.point.level, "why": candidate.why, "number": candidate.at},
        curve=tuple(curve_point(candidate, place) for place in range(len(candidate.points))),
        numbers=numbers(candidate, goal), memory=candidate.point.record.memory,
        cost=cost(candidate, goal, api),
        against_baseline=None if base is None or base.key == candidate.key else baselines.against(base, candidate),
        diagnosis=diagnose(candidate),
    )  # fmt: skip


def curve_point(candidate: Candidate, place: int) -> dict[str, Any]:
    """One load of the curve, with its figures and how sure they are."""
    point = candidate.points[place]
    return {
        "level": point.level, "load": point.load, "runs": point.runs, "evidence": point.evidence,
        "status": point.verdict.status, "saturated": point.saturated, "chosen": place == candidate.at,
        "run_ids": [candidate.curves.table.run_ids[row].decode() for row in point.rows[-20:]],
        "metrics": point.metrics,
    }  # fmt: skip


def numbers(candidate: Candidate, goal: Goal) -> dict[str, Any]:
    """The headline figures and those that the goal speaks of, each with its interval, its evidence and where it was taken."""
    found: dict[str, Any] = {}
    names = [*HEADLINE, *(n for n in goal.objectives if n in METRICS or "_" in n)]
    pairs = [(name, *parse_metric(name)) for name in names]
    pairs += [
        (f"{x.metric}_{x.statistic}" if x.statistic else x.metric, METRICS[x.metric], x.statistic) for x in goal.limits
    ]
    for name, metric, statistic in pairs:
        value = candidate.value(metric.name, statistic)
        if value is None or name in found:
            continue
        bounds = interval_of(candidate, Axis(word=name, metric=metric.name, statistic=statistic))
        found[name] = {
            "value": value, "unit": metric.unit, "low": bounds["low"] if bounds else None,
            "high": bounds["high"] if bounds else None, "over": bounds["over"] if bounds else None,
            "evidence": candidate.evidence if metric.source != "quality" else "measured",
            "at": None if metric.source == "quality" else candidate.point.load,
        }  # fmt: skip
    return found


def cost(candidate: Candidate, goal: Goal, api: Api | None) -> dict[str, Any] | None:
    """What a million tokens cost at the chosen load, three ways; and a month of them, here and from an API."""
    if goal.price_per_hour is None:
        return None
    bounds = candidate.interval("cost")
    output, total = candidate.value("output_tps"), candidate.value("total_tps")
    return {
        "price_per_hour": goal.price_per_hour,
        "per_1m_output_tokens": candidate.value("cost"),
        "per_1m_input_tokens": candidate.value("cost_input"),
        "per_1m_tokens_blended": candidate.value("cost_blended"),
        "interval_output": bounds,
        "at": candidate.point.load,
        "evidence": candidate.evidence,
        "monthly": monthly(output, total, goal.price_per_hour, api) if api is not None else None,
    }
