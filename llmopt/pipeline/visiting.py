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

from llmopt.bench.load import Progress
from llmopt.bench.sweep import falls_behind
from llmopt.core.domain import Case, Goal, Measurement, Workload
from llmopt.core.errors import Interrupted
from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.statistics import MIN_SAMPLES
from llmopt.pipeline.measuring import RunOptions, measure_and_save, serving_case
from llmopt.pipeline.reporter import Reporter
from llmopt.recommend.candidates import Candidate, comparable
from llmopt.recommend.choosing import choose
from llmopt.recommend.constraints import broken, excess_at, of_the_load

WORTH_MORE_LOAD = 1.05  # of the best throughput so far: a closed loop that gives less than that more is saturated
IN_A_ROW = 2
LONGEST_START_S = 180.0  # below it the time left is shorter than what a server is given
SPARE = 5  # requests above what a percentile needs
REQUESTS, REQUESTS_PER_USER = 64, 4  # 64 suffice for a 95th percentile; four of each user for a steady window
# What was not the server's doing: such a run says little about the configuration.
DISTURBANCES = {"client_saturated", "throttled", "shared_gpu", "other_traffic"}
NEAR = 0.1  # of a limit's bound: three deviations of a usual run
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

    ``load`` in words, ``key`` that of its case.  ``near``: a limit is missed by so little that one run does not tell.
    """

    value: float | None
    failure: str = ""
    load: str = ""
    key: str = ""
    near: bool = False


def at_level(workload: Workload, level: float, requests: int | None, goal: Goal) -> Workload:
    """The workload at one level of its load; without ``requests``, with as many as the goal's percentiles need."""
    users = 0 if workload.open_loop else int(level)
    load = {"rate": level} if workload.open_loop else {"concurrency": users}
    return replace(workload, requests=requests or requests_for(users, goal), **load)


def requests_for(users: int, goal: Goal) -> int:
    needed = samples_of(goal)
    return max(REQUESTS, REQUESTS_PER_USER * users, needed + SPARE if needed else 0)


def samples_of(goal: Goal) -> int:
    """Requests that the percentiles of its limits and of what it is optimized for need at least; 0 without any."""
    statistics = {limit.statistic for limit in goal.limits} | {word.rpartition("_")[2] for word in words_of(goal)}
    return max((MIN_SAMPLES[int(s[1:])] for s in statistics if s in ("p90", "p95", "p99")), default=0)


def words_of(goal: Goal) -> list[str]:
    """What it is optimized for, the first thing first."""
    return [word.strip() for word in goal.optimize.split(",")]


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
) -> tuple[list[Measurement], bool]:
    """The runs of one round, by rising load, and whether that is all of them: not where the time ran out on the way.

    ``there``: those of this round that an earlier start left.  A run that the end of the time cuts is none.
    Raises ServerError and the like for a server that does not start, dies or answers nothing; Interrupted.
    """
    runs = list[Measurement]()
    with contextlib.ExitStack() as stack:
        subject = None
        for workload in workloads:
            if runs and enough(runs, goal):
                break
            if runs and time_left_s() <= 0:
                return runs, False
            case = replace(contestant.case, workload=workload)
            known = next((run for run in there if run.case_key == case.key), None)
            if known is None:
                warm = subject is not None
                if subject is None:
                    patience = time_left_s() if time_left_s() < LONGEST_START_S else None
                    serving = serving_case(contestant.case, report, results=options.results, ready_timeout_s=patience)
                    subject = replace(stack.enter_context(serving), quality=contestant.quality)
                word = f"{contestant.label}, {workload.shape}"
                stop = End(workload, runs, time_left_s)
                try:
                    known = measure_and_save(subject, workload, options, report, warm=warm, word=word, stop_when=stop)
                except (Interrupted, KeyboardInterrupt):
                    if stop.out_of_time:
                        return runs, False
                    raise
                saved(known)
            runs.append(known)
    return runs, True


class End:
    """Whether a run is to end early: it is past saturation.

    Raises KeyboardInterrupt where the time is over: like one of Ctrl-C it leaves a record that says so, and that the next
    start measures anew.
    """

    def __init__(self, workload: Workload, runs: Sequence[Measurement], time_left_s: Callable[[], float]) -> None:
        self.time_left_s, self.out_of_time = time_left_s, False
        open_loop = bool(runs) and workload.load == "open"
        self.behind = falls_behind(workload.rate or 0.0, alone_s(runs[0])) if open_loop else lambda _: False

    def __call__(self, now: Progress) -> bool:
        if self.time_left_s() <= 0:
            self.out_of_time = True
            raise KeyboardInterrupt
        return self.behind(now)


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


def undisturbed(runs: Sequence[Measurement]) -> list[Measurement]:
    """Without the disturbed runs of a load that has others: what was measured again is not told by its first try."""
    told = {run.case_key for run in runs if run.verdict.status != "invalid" and not disturbed(run)}
    return [run for run in runs if run.case_key not in told or not disturbed(run)]


def throughput(run: Measurement) -> float | None:
    found: float | None = run.metrics.get("output_tps") or run.metrics.get("output_tps_whole")
    return found


def judged(runs: Sequence[Measurement], goal: Goal) -> Outcome:
    """The objective at the load at which the configuration is judged, or the limits that no load keeps.

    ``runs`` of all rounds: repeats of a load are one point of the curve, so that no single run decides.
    """
    runs = undisturbed(runs)
    if all(run.verdict.status == "invalid" for run in runs):
        first = next(doubt for doubt in runs[0].verdict.reasons if doubt.severity == "invalid")
        return Outcome(value=None, failure=f"no valid run: {first.message}")
    chosen = choose(candidate_of(runs, goal), goal)
    if reasons := [why for x in goal.limits if (why := broken(chosen, chosen.at, x))]:
        near = excess_at(chosen, chosen.at, goal.limits) <= NEAR
        return Outcome(value=None, failure="; ".join(reasons), load=chosen.point.load, near=near)
    value = objective_of(chosen, goal)
    if value is None:
        return Outcome(value=None, failure=f"{goal.optimize} is not known", load=chosen.point.load)
    return Outcome(value=value, load=chosen.point.load, key=chosen.point.record.case_key)


def objective_of(candidate: Candidate, goal: Goal) -> float | None:
    """At its load."""
    video = bool(candidate.point.record.metrics.get("peak_vram_bytes"))
    name, statistic, _ = objective(goal, video=video)
    value = candidate.value(name, statistic)
    if value is None and name == "output_tps":  # too short for a steady window: of the whole run
        value = candidate.value("output_tps_whole")
    return None if value is None else max(value, ZERO)


def of_rounds(runs: Sequence[Measurement], key: str, goal: Goal) -> dict[int, float]:
    """Round → the objective at the load of this key, where the round has a valid run of it that tells."""
    found = {}
    for run in undisturbed(runs):
        if run.case_key == key and run.verdict.status != "invalid":
            value = objective_of(candidate_of([run], goal), goal)
            if value is not None:
                found[run.race["round"]] = value
    return found


def objective(goal: Goal, *, video: bool) -> tuple[str, str | None, Literal["higher", "lower"]]:
    """The first objective's metric, statistic and direction: the race is run on that one."""
    word = words_of(goal)[0]
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
