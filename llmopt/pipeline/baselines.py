"""``llmopt baseline``: runs become accepted ones, and are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmopt.core.domain import Measurement
from llmopt.core.errors import StoreError, UsageError
from llmopt.core.machine import this_machine
from llmopt.core.run_index import load_runs
from llmopt.core.units import show
from llmopt.gate import baselines
from llmopt.gate.baselines import Baseline
from llmopt.gate.thresholds import parse_thresholds
from llmopt.pipeline.experiment import counts_beside
from llmopt.pipeline.gating_stored import refuse_duplicates
from llmopt.pipeline.sides import Stored, home_of

SUMMARY = ("name", "accepted_at", "age_days", "old", "cases", "runs", "machines", "here")


def accept(name: str, texts: Sequence[str], results: Path) -> dict[str, Any]:
    """Keep the runs that ``texts`` name. Raises UsageError, StoreError."""
    found = [one for text in texts for one in runs_of(text, results)]
    refuse_duplicates(Stored(label=", ".join(texts), runs=tuple(run for run, _ in found), counts={}))
    pairs = [(run, counts_beside(run, home)) for run, home in found]
    if not pairs:
        raise StoreError(f"there is no run in {', '.join(texts)}", hint="measure something first: llmopt bench")
    files = baselines.set_baseline(results, name, pairs)
    return {"name": name, "runs": len(pairs), "files": [str(file) for file in files]}


def runs_of(text: str, results: Path) -> list[tuple[Measurement, Path]]:
    path = Path(text)
    if path.exists():
        return [(run, home_of(path)) for run in load_runs(path)]
    found = [run for run in (load_runs(results) if results.is_dir() else []) if run.run_id == text]
    if not found:
        raise UsageError(
            f"{text!r} is no record, folder of records, or id of a run in {results}", hint="llmopt runs shows them"
        )
    return [(run, results) for run in found]


def overview(results: Path) -> list[dict[str, Any]]:
    """Every folder of a baseline; ``reason`` says why one cannot be read, and nothing else of it is known then."""
    return [summary_or_reason(results, name) for name in baselines.names(results)]


def summary_or_reason(results: Path, name: str) -> dict[str, Any]:
    try:
        return summary(baselines.read_baseline(results, name)) | {"reason": None}
    except StoreError as error:
        return dict.fromkeys(SUMMARY) | {"name": name, "reason": error.message}


def summary(found: Baseline) -> dict[str, Any]:
    machines = sorted({run.machine.fingerprint for run in found.runs})
    return {
        "name": found.name,
        "accepted_at": found.accepted_at,
        "age_days": round(found.age_days, 1),
        "old": found.age_days > baselines.OLD_DAYS,
        "cases": len({run.case_key for run in found.runs}),
        "runs": len(found.runs),
        "machines": machines,
        "here": machines == [this_machine().fingerprint],
    }


def details(results: Path, name: str) -> dict[str, Any]:
    found = baselines.read_baseline(results, name)
    cases: dict[str, list[Measurement]] = {}
    for run in found.runs:
        cases.setdefault(run.case_key, []).append(run)
    return summary(found) | {"rows": [row(runs) for runs in cases.values()]}


def row(runs: Sequence[Measurement]) -> dict[str, Any]:
    first = runs[0]
    figures = {}
    for one in parse_thresholds([]):
        values = [v for run in runs if (v := value(run, one)) is not None]
        if values:
            figures[one.name] = {
                "mean": sum(values) / len(values),
                "shown": show(sum(values) / len(values), one.metric.unit),
            }
    return {
        "artifact": first.artifact.get("label") or first.artifact.get("quantization"),
        "engine": first.backend.get("name"),
        "version": first.backend.get("version"),
        "runs": len(runs),
        "case_key": first.case_key,
        "metrics": figures,
    }


def value(run: Measurement, one: Any) -> float | None:
    from llmopt.core.metric_table import value_of

    return value_of(run.metrics, one.metric, one.statistic)
