"""Limits, filters and goals from the words on the command line, and whether a candidate keeps them at one load."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from llmopt.core.domain import Goal, Limit
from llmopt.core.errors import UsageError, nearest
from llmopt.core.limits import meets, parse_limit
from llmopt.core.metric_table import OF_A_TASK
from llmopt.core.metrics import METRICS, metric_names, parse_metric
from llmopt.core.run_record import QUALITY
from llmopt.core.statistics import MIN_SAMPLES
from llmopt.core.units import parse_quantity, show_beside
from llmopt.recommend.candidates import Candidate
from llmopt.recommend.cost import COSTS, check_price

OBJECTIVES = ("throughput", "latency", "memory", "quality", "cost")
DEFAULT_MAX_KL = 0.1
MEMORY_LIMIT = "memory<="
OF_THE_LOAD = ("request", "run", "server")  # where a metric comes from that a higher load makes worse


def make_goal(
    slos: list[str],
    *,
    max_memory: str | None = None,
    max_kl: float | None = None,
    min_top1: float | None = None,
    min_scores: Sequence[str] = (),
    max_cost: float | None = None,
    optimize: str = "throughput",
    price_per_hour: float | None = None,
    backends: Sequence[str] = (),
    quantizations: Sequence[str] = (),
    exclude: Sequence[str] = (),
    licences: Sequence[str] = (),
) -> Goal:
    """All limits in one goal; without ``max_kl`` the default of this page holds, and the report says so. Raises UsageError."""
    check_price(price_per_hour)
    for name in optimize.split(","):
        check_objective(name.strip())
    check_directions(slos)
    limits = [parse_limit(text) for text in slos]
    if max_memory is not None:
        limits.append(replace(parse_limit(f"peak_rss_bytes<={max_memory}"), text=f"{MEMORY_LIMIT}{max_memory}"))
    if max_kl is not None and max_kl < 0:
        raise UsageError("--max-kl must not be negative", hint="--max-kl 0.05")
    if max_kl is not None:
        limits.append(parse_limit(f"kl<={max_kl}"))
    elif not any(limit.metric == "kl" for limit in limits):
        limits.append(replace(parse_limit(f"kl<={DEFAULT_MAX_KL}"), default=True))
    if min_top1 is not None:
        limits.append(parse_limit(f"top1>={min_top1}"))
    limits += [score_limit(text) for text in min_scores]
    if max_cost is not None:
        limits.append(parse_limit(f"cost<={max_cost}"))
    priced = [x.text for x in limits if x.metric in COSTS] + [o for o in optimize.split(",") if o.strip() in COSTS]
    if priced and price_per_hour is None:
        raise UsageError(f"{priced[0].strip()!r} needs the price of the machine", hint="--price-per-hour 2.5")
    check_possible(limits)
    goal = Goal(
        limits=tuple(limits), optimize=optimize, price_per_hour=price_per_hour, backends=tuple(backends),
        quantizations=tuple(quantizations), exclude=tuple(exclude), licences=tuple(x.lower() for x in licences),
    )  # fmt: skip
    for flag, wanted in (("--backends", goal.backends), ("--quants", goal.quantizations)):
        if wanted and all(matches(name, goal.exclude) for name in wanted):
            raise UsageError(f"{flag} and --exclude contradict each other: nothing is left", hint="drop one of them")
    return goal


def check_objective(name: str) -> None:
    """Raise UsageError for what is neither one of the five words nor a metric."""
    if name in OBJECTIVES:
        return
    try:
        parse_metric(name)
    except UsageError as error:
        if error.message.startswith("unknown metric"):
            known = nearest(name, [*OBJECTIVES, *metric_names()])
            close = f": {known}" if known.startswith("did") else ""
            raise UsageError(
                f"unknown objective {name!r}", hint=f"{', '.join(OBJECTIVES)}, or a metric{close}"
            ) from None
        raise


def score_limit(text: str) -> Limit:
    """``mmlu>=0.6``: the score of a task. Raises UsageError."""
    task, sign, bound = text.partition(">=") if ">=" in text else text.partition(">")
    try:
        value = float(bound)
    except ValueError:
        value = math.nan
    if not task.strip() or not sign or not math.isfinite(value):
        raise UsageError(f"{text!r} is no score to keep", hint="--min-score 'mmlu>=0.6'")
    comparison: Any = sign
    return Limit(
        metric="task_score", statistic=task.strip(), comparison=comparison, bound=value, text=text.replace(" ", "")
    )


def check_directions(slos: Sequence[str]) -> None:
    """Raise UsageError for two limits on one figure that leave nothing between them."""
    bounds: dict[str, dict[str, tuple[float, str]]] = {}
    for text in slos:
        match = re.fullmatch(r"\s*(\w+)\s*([<>])=?\s*(\S.*?)\s*", text)
        if match is None:
            continue  # parse_limit says what is wrong with it
        metric, _ = parse_metric(match[1])
        bounds.setdefault(match[1], {})[match[2]] = parse_quantity(match[3], metric.unit), text
        both = bounds[match[1]]
        if len(both) == 2 and both["<"][0] <= both[">"][0]:
            raise UsageError(
                f"{both['<'][1]!r} and {both['>'][1]!r} contradict each other: nothing is both", hint="drop one"
            )


def check_possible(limits: Sequence[Limit]) -> None:
    """Raise UsageError for limits that nothing at all can keep."""
    for limit in limits:
        metric = METRICS[limit.metric]
        most = 1.0 if metric.unit == "share" else math.inf
        below = metric.better == "lower" and not meets(limit, 0.0)
        above = metric.better == "higher" and not meets(limit, most)
        if below or above:
            raise UsageError(
                f"{limit.text!r} contradicts itself: {metric.name} is never {'below 0' if below else f'above {most:g}'}",
                hint=f"for example {metric.name if limit.statistic is None else f'{metric.name}_{limit.statistic}'}"
                + ("<=0" if below else f">={most:g}"),
            )


def on_memory(goal: Goal, metric: str) -> Goal:
    """The goal with its memory limit on that metric: GPU memory where the candidates have any, else the process tree's."""
    limits = (replace(x, metric=metric) if x.text.startswith(MEMORY_LIMIT) else x for x in goal.limits)
    return replace(goal, limits=tuple(limits))


# --- filters ----------------------------------------------------------------------------------------------------


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.lower(), p.lower()) for p in patterns)


def names_of(candidate: Candidate) -> tuple[str, ...]:
    artifact = candidate.artifact
    return tuple(str(n) for n in (artifact.get("label"), artifact.get("quantization")) if n)


def check_scores(candidates: Sequence[Candidate], goal: Goal) -> None:
    """Raise UsageError for the score of a task that has several or that nobody was given, and for a least score that would
    keep the worse ones.
    """
    wanted = [(x.statistic or "", True) for x in goal.limits if x.metric == "task_score"]
    wanted += [(x.removeprefix(OF_A_TASK), False) for x in goal.objectives if x.startswith(OF_A_TASK)]
    for name, at_least in wanted:
        known = {n: score.higher_is_better for c in candidates for n, score in c.task_scores.items()}
        several = sorted(n for n in known if n.startswith(f"{name}/"))
        if name not in known and several:
            raise UsageError(f"{name!r} has {len(several)} scores", hint=f"say which: {', '.join(several)}")
        if name not in known and not at_least:
            hint = nearest(name, sorted(known)) if known else "llmopt quality --tasks gives scores"
            raise UsageError(f"no run here has a score of {name!r}", hint=hint)
        if at_least and known.get(name) is False:
            higher = sorted(n for n, up in known.items() if up)
            raise UsageError(
                f"{name!r} is better when lower, and a least score would keep the worse ones",
                hint=f"one of {', '.join(higher)}" if higher else "--optimize quality, or --max-kl",
            )


def check_filters(candidates: Sequence[Candidate], goal: Goal) -> None:
    """Raise UsageError for a filter that knows nothing of what was measured: it is mistyped; and for a score likewise."""
    check_scores(candidates, goal)
    backends = sorted({c.backend for c in candidates})
    quantizations = sorted({n for c in candidates for n in names_of(c)})
    for flag, wanted, there in (
        ("--backends", goal.backends, backends),
        ("--quants", goal.quantizations, quantizations),
        ("--exclude", goal.exclude, [*backends, *quantizations]),
    ):
        for word in wanted:
            if not any(matches(name, [word]) for name in there):
                raise UsageError(f"{flag} {word}: no run here is of that", hint=nearest(word, there))


def filtered(candidate: Candidate, goal: Goal, licence: Callable[[dict[str, Any]], str | None]) -> list[str]:
    """Why a filter takes a candidate out, whatever it measured."""
    names, found = names_of(candidate), []
    if goal.backends and not matches(candidate.backend, goal.backends):
        found.append(f"{candidate.backend} is not among --backends {','.join(goal.backends)}")
    if goal.quantizations and not any(matches(n, goal.quantizations) for n in names):
        found.append(f"{names[0]} is not among --quants {','.join(goal.quantizations)}")
    if goal.exclude and any(matches(n, goal.exclude) for n in (candidate.backend, *names)):
        found.append(f"left out by --exclude {','.join(goal.exclude)}")
    if goal.licences:
        own = licence(candidate.artifact)
        if own is None:
            found.append(f"its licence is not known, and --licence {','.join(goal.licences)} is asked for")
        elif not matches(own, goal.licences):
            found.append(f"its licence is {own}, not {' or '.join(goal.licences)}")
    return found


# --- limits -----------------------------------------------------------------------------------------------------


def of_the_load(limit: Limit) -> bool:
    return METRICS[limit.metric].source in OF_THE_LOAD


def holds(candidate: Candidate, place: int, limit: Limit) -> bool:
    """What was not measured never passes, a limit of ours (``default``) apart."""
    value = candidate.value_at(place, limit.metric, limit.statistic)
    return not breaks(value, limit)


def excess(value: float | None, limit: Limit) -> float:
    """By how much a value breaks a limit, relative to its bound; infinite where it is unknown.

    A strict limit can be broken by nothing: whether it is, ``breaks`` tells.
    """
    if value is None:
        return 0.0 if limit.default else math.inf
    if meets(limit, value):
        return 0.0
    return abs(value - limit.bound) / abs(limit.bound) if limit.bound else abs(value)


def breaks(value: float | None, limit: Limit) -> bool:
    return not (limit.default if value is None else meets(limit, value))


def excess_at(candidate: Candidate, place: int, limits: Sequence[Limit]) -> float:
    return sum(excess(candidate.value_at(place, x.metric, x.statistic), x) for x in limits)


def broken(candidate: Candidate, place: int, limit: Limit) -> str | None:
    """The sentence about a limit that is not kept."""
    value = candidate.value_at(place, limit.metric, limit.statistic)
    at = f" at {candidate.points[place].load}" if len(candidate.points) > 1 and of_the_load(limit) else ""
    if value is None:
        return None if limit.default else f"{limit.text}: not known{at} ({why_unknown(candidate, place, limit)})"
    if meets(limit, value):
        return None
    return f"{limit.text}: {candidate.evidence} {show_beside(value, limit.bound, METRICS[limit.metric].unit)}{at}"


def why_unknown(candidate: Candidate, place: int, limit: Limit) -> str:
    metric = METRICS[limit.metric]
    if metric.kind == "distribution" and (counts := candidate.points[place].values(limit.metric, "n")):
        needed = MIN_SAMPLES.get(int(limit.statistic[1:])) if limit.statistic and limit.statistic[0] == "p" else None
        if needed and min(counts) < needed:
            one = " in one of its runs" if max(counts) >= needed else ""
            return f"{min(counts):.0f} samples{one}, {limit.statistic} needs {needed}"
        if any(candidate.points[place].values(limit.metric, "missing")):
            return "too many requests failed"
        if len(counts) < candidate.points[place].runs:
            return "one of its runs does not tell"
    if metric.name == "task_score":
        return f"it was not given the task: llmopt quality --tasks {limit.statistic}"
    if metric.name in QUALITY:
        return "its quality was not measured"
    if metric.name in ("goodput_rps", "goodput_rps_whole", "slo_attainment"):
        return "the run counted no SLO, or another: llmopt bench --slo"
    if metric.name in ("output_tps", "total_tps", "requests_per_s") or metric.source == "price":
        return "no steady window"
    return "this server or machine does not tell"
