"""``llmopt verify``: does a deployed endpoint do what its recommendation promised, and what can it still take?

The same workload as it was measured with, as many times over as there are replicas.  Where the SLOs are missed at the load
of all of them, the loads of one fewer, two fewer … follow until they are kept: that is the capacity that is left.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmopt.bench.sweep import requests_for
from llmopt.bench.workload import MOST_WORKERS, check_workload
from llmopt.core.domain import Measurement, Workload
from llmopt.core.errors import ServerError, UsageError
from llmopt.core.metric_table import METRICS, value_of
from llmopt.core.statistics import MIN_SAMPLES
from llmopt.deploy.plan import Evidence, Slo
from llmopt.gate.decide import Change, decide
from llmopt.gate.judge import Status
from llmopt.gate.noise import noise_between_sessions
from llmopt.gate.promise import Promised, SloFound, judge_slo, sample
from llmopt.gate.thresholds import Threshold
from llmopt.pipeline.gate_document import metric_row
from llmopt.pipeline.measured_row import workload_of
from llmopt.pipeline.measuring import RunOptions, Subject, measure_and_save, url_subject
from llmopt.pipeline.reporter import Reporter

Verified = list[dict[str, Any]]  # one for each load, that of all replicas first
OF_THE_WHOLE = ("requests_per_s", "output_tps", "total_tps", "goodput_rps")  # of the whole stack, not of one request
ERRORS_ALLOWED = 0.01  # as a run doubts itself from there on (docs/metrics.md)


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What an endpoint is held to. ``replicas`` of the measured configuration stand behind ``url``."""

    url: str
    model: str
    replicas: int
    evidence: Evidence
    tokenizer: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and how sure. ``capacity``: also look for what is left where the SLOs are missed."""

    rounds: int
    confidence: float
    thresholds: tuple[Threshold, ...]
    capacity: bool
    results: Path


@dataclass(frozen=True, kw_only=True)
class Level:
    """The runs of one load: that of so many ``replicas``."""

    replicas: int
    workload: Workload
    runs: tuple[Measurement, ...]
    problem: str = ""

    def values(self, slo: Slo) -> list[float | None]:
        """The SLO's percentile of each run; infinite where so many requests failed that there is none."""
        return [percentile(run.metrics.get(METRICS[slo.metric].key), slo.share) for run in self.runs]

    @property
    def requests(self) -> int:
        return sum(int(r.metrics.get("requests_ok") or 0) for r in self.runs) + self.failed

    @property
    def failed(self) -> int:
        return sum(int(r.metrics.get("requests_failed") or 0) for r in self.runs)

    @property
    def invalid(self) -> tuple[str, ...]:
        """Why runs count for nothing; what errors say is judged by itself."""
        doubts = [d for run in self.runs for d in run.verdict.reasons if d.severity == "invalid"]
        return tuple(dict.fromkeys(d.message for d in doubts if d.code != "errors"))


def percentile(distribution: Mapping[str, Any] | None, share: float) -> float | None:
    percent = round(share * 100)
    name = f"p{percent}"
    if not distribution or name not in distribution or distribution.get("n", 0) < MIN_SAMPLES.get(percent, 1):
        return None
    found = distribution[name]
    return math.inf if found is None else float(found)


def verify(promise: Promise, effort: Effort, report: Reporter) -> Verified:
    """Measure and judge, the load of all replicas first. Raises ServerError where nothing answers, Interrupted."""
    require_workload(times(workload_of(promise.evidence.workload), promise.replicas, []))
    require_promised(promise, effort.thresholds)
    subject = url_subject(
        promise.url, promise.model, results=effort.results, tokenizer=promise.tokenizer, headers=promise.headers
    )
    levels = [level_of(promise, effort, subject, promise.replicas, report)]
    judged = [judge(levels[0], promise, effort)]
    while effort.capacity and judged[-1]["slo_status"] == "missed" and levels[-1].replicas > 1:
        levels.append(level_of(promise, effort, subject, levels[-1].replicas - 1, report))
        judged.append(judge(levels[-1], promise, effort))
    return judged


def require_workload(workload: Workload) -> None:
    """Raises UsageError for one that cannot be asked for without what it was made of, or that makes no run here."""
    for path in (workload.dataset, workload.trace_file):
        if path and not os.path.exists(path):  # noqa: PTH110  (a name that no file system takes is not here either)
            raise UsageError(
                f"the promise was measured with {path}, which is not here", hint="bring it to the same place"
            )
    # How many processes sent the load then is not known: a rate that is too much for one is seen in the runs.
    check_workload(replace(workload, slos=()), MOST_WORKERS)


def require_promised(promise: Promise, thresholds: Sequence[Threshold]) -> None:
    """Raises UsageError for a metric that somebody named and of which nothing was promised: it would be judged by nothing."""
    figures = promise.evidence.figures
    for threshold in thresholds:
        if not threshold.default and threshold.name not in figures:
            raise UsageError(
                f"nothing was promised of {threshold.name}", hint=f"--metric with one of {', '.join(figures) or 'none'}"
            )


def times(workload: Workload, replicas: int, shares: Sequence[float]) -> Workload:
    """The workload of one replica, so many times over, with requests enough for every percentile of the SLOs."""
    enough = max([0, *map(requests_for, shares)])
    more = {
        name: value * replicas
        for name in ("concurrency", "rate", "rate_to", "max_concurrency")
        if (value := getattr(workload, name)) is not None
    }
    requests = None if workload.requests is None else max(workload.requests * replicas, enough)
    return replace(workload, **more, requests=requests, until="")


def level_of(promise: Promise, effort: Effort, subject: Subject, replicas: int, report: Reporter) -> Level:
    """``rounds`` runs. A server that answers nothing at all ends the first level, and is a result of a later one."""
    evidence = promise.evidence
    workload = times(workload_of(evidence.workload), replicas, [slo.share for slo in evidence.slos])
    workload = replace(workload, slos=tuple(slo.text for slo in evidence.slos))
    runs: list[Measurement] = []
    word = f"load of {replicas} of {promise.replicas} replica(s)" if promise.replicas > 1 else "the promised load"
    for place in range(effort.rounds):
        try:
            runs.append(
                measure_and_save(
                    subject, workload, RunOptions(results=effort.results), report,
                    warm=place > 0 or replicas < promise.replicas, word=f"{word}, run {place + 1} of {effort.rounds}",
                )
            )  # fmt: skip
        except ServerError as error:
            if not runs and replicas == promise.replicas:
                raise
            return Level(replicas=replicas, workload=workload, runs=tuple(runs), problem=error.message)
    return Level(replicas=replicas, workload=workload, runs=tuple(runs))


def judge(level: Level, promise: Promise, effort: Effort) -> dict[str, Any]:
    """One load: its SLOs, its figures against those that were promised for so many replicas, its failures."""
    error = 1 - effort.confidence
    slos = [(slo, slo_found(level, slo, error)) for slo in promise.evidence.slos]
    statuses = {found.status for _, found in slos}
    failures = failures_of(level)
    worst = (
        "missed" if "missed" in statuses or failures == "regression" else "unclear" if "unclear" in statuses else "kept"
    )
    changes = [] if level.invalid or not level.runs else changes_of(level, promise, effort)
    rates = [v for run in level.runs if (v := rate_in(run)) is not None]
    return {
        "replicas": level.replicas,
        "load": level.workload.shape,
        "runs": [run.run_id for run in level.runs],
        "requests": level.requests,
        "failed": level.failed,
        "errors": errors_of(level.runs),
        "failures_status": failures,
        "slo_status": worst,
        "slos": [slo_row(slo, found) for slo, found in slos],
        "metrics": [metric_row(change) for change in changes],
        "left_out": left_out(changes, effort.thresholds),
        "requests_per_s": sum(rates) / len(rates) if rates else None,
        "invalid": list(level.invalid),
        "problem": level.problem or None,
    }


def rate_in(run: Measurement) -> float | None:
    """Requests per second; of the whole run where it was too short for a steady window."""
    found = [value_of(run.metrics, METRICS[name], None) for name in ("requests_per_s", "requests_per_s_whole")]
    return found[0] if found[0] is not None else found[1]


def slo_found(level: Level, slo: Slo, error: float) -> SloFound:
    if level.problem:
        return SloFound(status="missed", measured=None, low=None, high=None, why=level.problem)
    if level.invalid:
        return SloFound(status="unclear", measured=None, low=None, high=None, why=level.invalid[0])
    return judge_slo(level.values(slo), slo.bound, better=METRICS[slo.metric].better, error=error)


def slo_row(slo: Slo, found: SloFound) -> dict[str, Any]:
    return {
        "text": slo.text,
        "metric": slo.metric,
        "share": slo.share,
        "bound": slo.bound,
        "unit": METRICS[slo.metric].unit,
        "promised": slo.measured,
        **asdict(found),
    }


def failures_of(level: Level) -> Status:
    """More than one in a hundred is a regression by itself: a promise of latency is one of answers."""
    if level.problem:
        return "regression"
    return "regression" if level.failed > ERRORS_ALLOWED * max(1, level.requests) else "pass"


def errors_of(runs: Sequence[Measurement]) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in runs:
        for word, count in (run.metrics.get("errors") or {}).items():
            found[word] = found.get(word, 0) + int(count)
    return found


def changes_of(level: Level, promise: Promise, effort: Effort) -> list[Change]:
    """Those of the thresholds for which there is a promise and a figure; a rate is promised for each replica."""
    samples, shown, kept = {}, {}, []
    for threshold in effort.thresholds:
        figure = promise.evidence.figures.get(threshold.name)
        known = [v for run in level.runs if (v := value_in(run, threshold)) is not None]
        if figure is None or not figure.value or len(known) < len(level.runs):
            continue
        factor = level.replicas if threshold.metric.name in OF_THE_WHOLE else 1
        ends = [None if end is None else end * factor for end in (figure.low, figure.high)]
        promised = Promised(value=figure.value * factor, low=ends[0], high=ends[1])
        noise = noise_between_sessions(effort.results, level.runs[0], threshold)
        samples[threshold.name] = sample(promised, known, threshold, noise)
        shown[threshold.name] = (promised.value, math.exp(math.fsum(map(math.log, known)) / len(known)))
        kept.append(threshold)
    return decide(samples, shown, kept, 1 - effort.confidence) if kept else []


def left_out(changes: Sequence[Change], thresholds: Sequence[Threshold]) -> list[str]:
    """What somebody named and no run, or not each, has a figure of."""
    judged = {change.threshold.name for change in changes}
    return [threshold.name for threshold in thresholds if not threshold.default and threshold.name not in judged]


def value_in(run: Measurement, threshold: Threshold) -> float | None:
    """Above zero; a rate of the whole run where it was too short for a steady window."""
    found = value_of(run.metrics, threshold.metric, threshold.statistic)
    if found is None and (whole := METRICS.get(f"{threshold.metric.name}_whole")):
        found = value_of(run.metrics, whole, None)
    return found if found is not None and 0 < found < math.inf else None
