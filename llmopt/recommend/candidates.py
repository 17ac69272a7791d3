"""From stored runs to candidates: repeats of one case become one row with an interval over runs."""

from __future__ import annotations

import statistics as st
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmopt.core.domain import Doubt, Measurement, Verdict, stable_hash, workload_identity
from llmopt.core.errors import Inconclusive
from llmopt.core.metrics import METRICS, value_of
from llmopt.core.statistics import bootstrap, relative_spread

NOISY_SPREAD = 0.10
PEAKS = ("peak_rss_bytes", "peak_vram_bytes")
STEADY_RATES = ("output_tps", "total_tps", "requests_per_s")
INTERVALS = ("output_tps", "ttft_p50", "ttft_p95", "tps_p50", "e2e_p50", "peak_rss_bytes", "peak_vram_bytes")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration with everything that is known of it; ``metrics`` holds the median over its runs."""

    key: str
    case: dict[str, Any]
    metrics: dict[str, Any]
    intervals: dict[str, Any]
    quality: dict[str, Any] | None
    verdict: Verdict
    runs: int

    @property
    def label(self) -> str:
        artifact = self.case["artifact"]
        return f"{artifact.get('label') or artifact['quantization']} on {self.case['serve']['backend']}"

    def value(self, name: str, statistic: str | None = None) -> float | None:
        return value_of(self.metrics, METRICS[name], statistic)


@dataclass(frozen=True, kw_only=True)
class Comparable:
    """The candidates of one machine, model and workload, and how many runs had another of these."""

    candidates: tuple[Candidate, ...]
    machine: dict[str, Any]
    workload: dict[str, Any]
    base: str
    left_out: int


def comparable(runs: Sequence[Measurement]) -> Comparable:
    """What may be ranked together: same machine, base model and workload as the newest run. Raises Inconclusive."""
    if not runs:
        raise Inconclusive(
            "there is no run to recommend from", hint="measure something first: llmopt bench, or llmopt demo"
        )
    newest = max(runs, key=lambda run: run.started_at)
    same = [run for run in runs if context(run) == context(newest)]
    groups: dict[str, list[Measurement]] = defaultdict(list)
    for run in same:
        groups[run.case_key].append(run)
    return Comparable(
        candidates=tuple(merge(key, group) for key, group in groups.items()),
        machine=asdict(newest.machine),
        workload=newest.workload,
        base=newest.artifact.get("base_name", ""),
        left_out=len(runs) - len(same),
    )


def context(run: Measurement) -> str:
    workload = workload_identity(run.workload)
    return stable_hash([run.machine.fingerprint, run.artifact.get("base_key"), workload, run.measuring_revision])


def merge(key: str, runs: Sequence[Measurement]) -> Candidate:
    """Median of each figure, and highest peak, over the usable runs."""
    usable = usable_runs(runs)
    newest = usable[-1]
    metrics = {name: median_of([run.metrics.get(name) for run in having(name, usable)]) for name in newest.metrics}
    for (
        name
    ) in PEAKS:  # a peak is the highest of all runs: engines' caches grow, and memory must suffice for the last run too
        metrics[name] = max((v for run in usable if (v := run.metrics.get(name)) is not None), default=None)
    quality = next((run.quality for run in reversed(usable) if run.quality), None)
    return Candidate(
        key=key,
        case={
            "artifact": newest.artifact,
            "serve": newest.serve,
            "workload": newest.workload,
            "backend": short(newest.backend),
        },
        metrics=metrics | quality_metrics(quality, newest.artifact),
        intervals={name: interval(name, usable) for name in INTERVALS},
        quality=quality,
        verdict=merged_verdict(usable),
        runs=len(usable),
    )


def usable_runs(runs: Sequence[Measurement]) -> list[Measurement]:
    """Those of the newest engine version that are not invalid; all of that version where none is valid."""
    version = max(runs, key=lambda run: run.started_at).backend.get("version")
    same = [run for run in runs if run.backend.get("version") == version]
    return [run for run in same if run.verdict.status != "invalid"] or same


def having(name: str, runs: Sequence[Measurement]) -> Sequence[Measurement]:
    """The runs that tell of a figure.

    A run that never got steady has no steady rate: its repeats still have theirs, and the doubt stays in the merged
    verdict.  Any other figure that one run lacks is unknown: a tail that is missing may be missing because it is bad.
    """
    return [run for run in runs if name not in STEADY_RATES or run.metrics.get(name) is not None] or runs


def short(backend: dict[str, Any]) -> dict[str, Any]:
    return {name: backend.get(name) for name in ("name", "version", "argv", "note")}


def quality_metrics(quality: dict[str, Any] | None, artifact: dict[str, Any]) -> dict[str, Any]:
    """The figures under the names of the metrics table; the base is its own reference, measured or not."""
    if quality is None:
        return {"kl": 0.0, "kl_p99": 0.0, "top1": 1.0} if artifact.get("method") == "none" else {}
    return {
        "kl": quality["kl_mean"],
        "kl_p99": quality["kl_p99"],
        "top1": quality["top1_agreement"],
        "perplexity": quality["perplexity"],
    }


def median_of(values: Sequence[Any]) -> Any:
    """The median, inside dictionaries too; unknown in one run is unknown."""
    if any(v is None for v in values):
        return None
    if isinstance(values[0], dict):
        return {name: median_of([v.get(name) for v in values]) for name in values[0]}
    return st.median(values) if isinstance(values[0], (int, float)) else values[-1]


def interval(name: str, runs: Sequence[Measurement]) -> dict[str, Any] | None:
    """Bootstrap over runs where there are three or more; else the widest of the runs' own block intervals."""
    base, _, statistic = name.rpartition("_")
    metric, stat = (METRICS[base], statistic) if base in METRICS else (METRICS[name], None)
    runs = having(name, runs)
    values = [v for run in runs if (v := value_of(run.metrics, metric, stat)) is not None]
    if len(values) == len(runs) and (bounds := bootstrap(values, max if name in PEAKS else st.median)) is not None:
        return {"low": bounds[0], "high": bounds[1], "over": "runs"}
    own = [run.intervals[name] for run in runs if run.intervals.get(name)]
    if not own:
        return None
    return {"low": min(i["low"] for i in own), "high": max(i["high"] for i in own), "over": "blocks"}


def merged_verdict(runs: Sequence[Measurement]) -> Verdict:
    """The worst of the runs, each reason once, and whether the runs disagree among themselves."""
    reasons = {d.code: d for run in runs for d in run.verdict.reasons}
    throughputs = [v for run in runs if (v := run.metrics.get("output_tps")) is not None]
    spread = relative_spread(throughputs)
    if spread is not None and spread > NOISY_SPREAD:
        reasons["machine_noisy"] = Doubt(
            code="machine_noisy",
            severity="suspect",
            message=f"throughput differs by {spread:.0%} between {len(throughputs)} runs",
            remedy="close other programs, or add repeats",
        )
    return Verdict.of(tuple(reasons.values()))
