"""One row of the ranking's document: its reasons in plain words, its numbers with their evidence, its curve, its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmopt.core.domain import Goal, Limit, Recommendation
from llmopt.core.metric_table import name_of
from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.units import show
from llmopt.recommend import baseline as baselines
from llmopt.recommend.candidates import INTERVALS, Candidate
from llmopt.recommend.comparing import interval_of, probability
from llmopt.recommend.cost import Api, monthly
from llmopt.recommend.diagnosis import diagnose
from llmopt.recommend.front import Axis

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


def reasons(
    candidate: Candidate, goal: Goal, axis: dict[str, Axis], best_of: dict[str, float], ties: Sequence[Candidate],
    dominated_by: Candidate | None, base: Candidate | None, *, alone: bool,
) -> tuple[str, ...]:  # fmt: skip
    wanted = axis[goal.objectives[0]]
    found = [headline(candidate, wanted, base), f"at {candidate.why}"]
    if ties:
        ahead, after = sorted((candidate, ties[0]), key=lambda c: (wanted.cost(c), c.label))
        p = probability(ahead, after, wanted)
        names = ", ".join(c.label for c in ties[:5]) + (f" and {len(ties) - 5} more" if len(ties) > 5 else "")
        found.append(f"ties in {wanted.word} with {names}: {p.words}")
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
    kl, top1 = candidate.value("kl"), candidate.value("top1")
    if kl is None:
        return ["doubt: its quality was not measured, so nothing says that its answers are any good"]
    if candidate.quality is None:  # the base itself
        return []
    bounds = candidate.interval("kl")
    words = f"KL to the base {kl:.4f}" + (f" [{bounds['low']:.4f}, {bounds['high']:.4f}]" if bounds else "")
    return [words + ("" if top1 is None else f", {top1:.1%} of top tokens unchanged")]


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
    return text + (
        baselines.ratio_words(base, candidate, objective.metric, objective.statistic) if base is not None else ""
    )


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
        "metrics": point.metrics | candidate.of_the_artifact,
    }  # fmt: skip


def numbers(candidate: Candidate, goal: Goal) -> dict[str, Any]:
    """The headline figures and those that the goal speaks of, each with its interval, its evidence and where it was taken."""
    found: dict[str, Any] = {}
    names = [*HEADLINE, *(n for n in goal.objectives if n in METRICS or "_" in n)]
    pairs = [(name, *parse_metric(name)) for name in names]
    pairs += [(name_of(x.metric, x.statistic), METRICS[x.metric], x.statistic) for x in goal.limits]
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
