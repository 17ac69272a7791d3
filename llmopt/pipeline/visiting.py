"""One visit of a configuration in a round of ``llmopt tune``: its server started once, its load curve measured and judged.

A curve rises until two loads in a row are past saturation or miss a limit of the load: more makes neither better, and one
alone may be noise.  Later rounds go to the load at which the configuration was judged, and to its neighbours.  Every load
is a run of its own, saved as it ends with the round that it belongs to; what an earlier start measured in that round is
taken as it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmopt.bench.sweep import falls_behind
from llmopt.core.domain import Case, Goal, Limit, Measurement, Workload
from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.statistics import MIN_SAMPLES
from llmopt.pipeline.measuring import RunOptions, measure_and_save, serving_case
from llmopt.pipeline.reporter import Reporter
from llmopt.recommend.candidates import Candidate, comparable
from llmopt.recommend.choosing import choose
from llmopt.recommend.constraints import broken, of_the_load

WORTH_MORE_LOAD = 1.05  # of the best throughput so far: a closed loop that gives less than that more is saturated
IN_A_ROW = 2
LONGEST_START_S = 180.0  # below it the time left is shorter than what a server is given
SPARE = 5  # requests above what a percentile needs
REQUESTS, REQUESTS_PER_USER = 64, 4  # 64 suffice for a 95th percentile; four of each user for a steady window
# What was not the server's doing: such a run says little about the configuration.
DISTURBANCES = {"client_saturated", "throttled", "shared_gpu", "other_traffic"}
ZERO = 1e-9  # stands for a divergence of nothing: the race compares logarithms
AXES = {
    "throughput": ("output_tps", None),
    "cost": ("output_tps", None),  # at one price an hour the cheapest token is that of the highest throughput
    "latency": ("e2e", "p50"),
    "quality": ("kl", None),
}


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A configuration as it is measured, at rising loads; ``quality`` is its artifact's, for the records.

    ``traits``: what it has in common with others.
    """

    label: str
    case: Case
    workloads: tuple[Workload, ...]
    quality: dict[str, Any] | None = None
    traits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a visit says of a configuration: the objective at the load where it is judged, or why it is out.

    ``load`` in words; ``place``: which of the visit's runs it is.
    """

    value: float | None
    failure: str = ""
    load: str = ""
    place: int = 0


def at_level(workload: Workload, level: float, requests: int | None, limits: Sequence[Limit]) -> Workload:
    """The workload at one level of its load; without ``requests``, with as many as the limits' percentiles need."""
    users = 0 if workload.open_loop else int(level)
    load = {"rate": level} if workload.open_loop else {"concurrency": users}
    return replace(workload, requests=requests or requests_for(users, limits), **load)


def requests_for(users: int, limits: Sequence[Limit]) -> int:
    tails = [MIN_SAMPLES[int(x.statistic[1:])] for x in limits if x.statistic in ("p90", "p95", "p99")]
    return max(REQUESTS, REQUESTS_PER_USER * users, *(n + SPARE for n in tails), 0)


def visit(
    contestant: Contestant,
    workloads: Sequence[Workload],
    goal: Goal,
    options: RunOptions,
    report: Reporter,
    *,
    there: Sequence[Measurement] = (),
    saved: Callable[[Measurement], None] = lambda run: None,
    time_left_s: Callable[[], float] = lambda: math.inf,
) -> list[Measurement]:
    """The runs of one round, by rising load. ``there``: those of this round that an earlier start left.

    No load is begun, and no start of a server awaited, longer than there is time left.
    Raises ServerError and the like for a server that does not start, dies or answers nothing; Interrupted.
    """
    runs = list[Measurement]()
    with contextlib.ExitStack() as stack:
        subject = None
        for workload in workloads:
            if runs and (enough(runs, goal) or time_left_s() <= 0):
                break
            case = replace(contestant.case, workload=workload)
            known = next((run for run in there if run.case_key == case.key), None)
            if known is None:
                warm = subject is not None
                if subject is None:
                    patience = time_left_s() if time_left_s() < LONGEST_START_S else None
                    serving = serving_case(contestant.case, report, results=options.results, ready_timeout_s=patience)
                    subject = replace(stack.enter_context(serving), quality=contestant.quality)
                known = measure_and_save(
                    subject, workload, options, report, warm=warm, word=f"{contestant.label}, {workload.shape}",
                    stop_when=falls_behind(workload.rate or 0.0, alone_s(runs[0])) if runs and workload.load == "open" else None,
                )  # fmt: skip
                saved(known)
            runs.append(known)
    return runs


def alone_s(run: Measurement) -> float:
    """Seconds of a request at the lowest load."""
    return float((run.metrics.get("e2e_s") or {}).get("p50") or 1.0)


def around(workloads: Sequence[Workload], place: int) -> tuple[Workload, ...]:
    """A load and its neighbours."""
    return tuple(workloads[max(0, place - 1) : place + 2])


def enough(runs: Sequence[Measurement], goal: Goal) -> bool:
    """Whether a higher load needs not be asked for: two in a row are of no use."""
    return len(runs) >= IN_A_ROW and all(
        useless(runs[:end], goal) for end in range(len(runs), len(runs) - IN_A_ROW, -1)
    )


def useless(runs: Sequence[Measurement], goal: Goal) -> bool:
    """Whether the last load, of rising ones, is past saturation, misses a limit or gave no valid run."""
    if runs[-1].verdict.status == "invalid":
        return True
    curve = candidate_of(runs, goal)
    last = len(curve.points) - 1
    if curve.points[last].saturated or any(broken(curve, last, x) for x in goal.limits if of_the_load(x)):
        return True
    rates = [rate for run in runs if (rate := throughput(run)) is not None]
    closed = curve.points[last].workload["load"] == "closed"
    return closed and len(rates) > 1 and rates[-1] < WORTH_MORE_LOAD * max(rates[:-1])


def disturbed(run: Measurement) -> bool:
    return any(doubt.code in DISTURBANCES for doubt in run.verdict.reasons)


def throughput(run: Measurement) -> float | None:
    found: float | None = run.metrics.get("output_tps") or run.metrics.get("output_tps_whole")
    return found


def judged(runs: Sequence[Measurement], goal: Goal) -> Outcome:
    """The objective at the load at which the configuration is judged, or the limits that no load keeps."""
    if all(run.verdict.status == "invalid" for run in runs):
        first = next(doubt for doubt in runs[0].verdict.reasons if doubt.severity == "invalid")
        return Outcome(value=None, failure=f"no valid run: {first.message}")
    chosen = choose(candidate_of(runs, goal), goal)
    if reasons := [why for x in goal.limits if (why := broken(chosen, chosen.at, x))]:
        return Outcome(value=None, failure="; ".join(reasons), load=chosen.point.load)
    name, statistic, _ = objective(goal, video=bool(runs[0].metrics.get("peak_vram_bytes")))
    value = chosen.value(name, statistic)
    if value is None and name == "output_tps":  # too short for a steady window: of the whole run
        value = chosen.value("output_tps_whole")
    if value is None:
        return Outcome(value=None, failure=f"{name} is not known", load=chosen.point.load)
    return Outcome(value=max(value, ZERO), load=chosen.point.load, place=chosen.at)


def objective(goal: Goal, *, video: bool) -> tuple[str, str | None, Literal["higher", "lower"]]:
    """The first objective's metric, statistic and direction: the race is run on that one."""
    word = goal.optimize.split(",")[0].strip()
    if word == "memory":
        return ("peak_vram_bytes" if video else "peak_rss_bytes"), None, "lower"
    if word in AXES:
        name, statistic = AXES[word]
    else:
        metric, statistic = parse_metric(word)
        name = metric.name
    return name, statistic, METRICS[name].better


def candidate_of(runs: Sequence[Measurement], goal: Goal) -> Candidate:
    (found,) = comparable(runs, price_per_hour=goal.price_per_hour).candidates
    return found
