"""``llmopt history``: which case was meant, its runs and baselines, and the document of its metrics over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llmopt.core.domain import Machine, Measurement
from llmopt.core.errors import Inconclusive, StoreError, UsageError, nearest
from llmopt.core.machine import this_machine
from llmopt.core.metric_table import Metric, name_of, parse_metric
from llmopt.core.run_index import read_store, skipped_words
from llmopt.core.run_table import RunTable
from llmopt.gate import baselines
from llmopt.gate.history import Point, Series, Step, figure, series_of
from llmopt.gate.thresholds import DEFAULTS

SCHEMA = 1
SHORTEST_KEY = 4  # characters of a case's key that may stand for it
NAMED_AT_MOST = 6


@dataclass(kw_only=True)
class CaseRuns:
    """One case, whatever the machine: rows of the table of stored runs, and what only baselines have of it.

    Records are read when they are asked for: a folder may hold a hundred thousand.
    """

    key: str
    table: RunTable
    rows: list[int] = field(default_factory=list)
    kept: list[Measurement] = field(default_factory=list)
    accepted: dict[str, str] = field(default_factory=dict)

    @cached_property
    def newest(self) -> Measurement:
        return self.table.record(self.rows[-1]) if self.rows else self.kept[-1]

    @property
    def label(self) -> str:
        return label_of(self.newest)

    @property
    def count(self) -> int:
        return len(self.rows) + len(self.kept)

    def runs(self) -> list[Measurement]:
        """Oldest first."""
        return sorted([*map(self.table.record, self.rows), *self.kept], key=lambda run: run.started_at)


def history(case: str | None, metrics: Sequence[str], results: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The document. Raises UsageError for a case or a metric that is not there, Inconclusive where nothing is stored."""
    wanted = [parse_metric(name) for name in metrics]
    known = cases_of(results, say)
    if not known:
        raise Inconclusive(f"there is no run in {results}", hint="measure something first: llmopt bench")
    found = known[0] if case is None and len(known) == 1 else chosen(case or "", known)
    runs, machine, left_out = comparable(found.runs())
    pairs = wanted or [p for p in map(parse_metric, DEFAULTS) if any(usable(run, p) for run in runs)]
    series = [series_of(runs, metric, statistic) for metric, statistic in pairs]
    unknown = [one.name for one in series if not one.points]
    if unknown or not series:
        raise UsageError(
            f"no run of {found.label} that counts knows {', '.join(unknown) or 'a metric that is followed unasked'}",
            hint="llmopt runs --csv runs.csv lists what is known",
        )
    return {
        "schema": SCHEMA,
        "kind": "history",
        "case": {"key": found.key, "label": found.label, "workload": runs[-1].workload},
        "machine": asdict(machine),
        "runs": len(runs),
        "left_out": left_out,
        "baselines": [{"name": name, "accepted_at": at} for name, at in sorted(found.accepted.items())],
        "series": [series_document(one) for one in series],
    }


def usable(run: Measurement, pair: tuple[Metric, str | None]) -> bool:
    return run.verdict.status != "invalid" and bool(figure(run, *pair))


# --- which runs ---------------------------------------------------------------------------------------------------


def cases_of(results: Path, say: Callable[[str], None]) -> list[CaseRuns]:
    """Of the stored runs and of the baselines, whose runs may be stored nowhere else."""
    stored = read_store(results)
    if stored.skipped:
        say(skipped_words(stored.skipped))
    table, found = stored.table, dict[str, CaseRuns]()
    for row in range(len(table)):
        key = table.word("case", row)
        found.setdefault(key, CaseRuns(key=key, table=table)).rows.append(row)
    known = {run_id.decode() for run_id in table.run_ids}
    for name in baselines.names(results):
        try:
            baseline = baselines.read_baseline(results, name)
        except StoreError as error:
            say(error.message)
            continue
        for run in baseline.runs:
            case = found.setdefault(run.case_key, CaseRuns(key=run.case_key, table=table))
            case.accepted[name] = baseline.accepted_at
            if run.run_id not in known:
                case.kept.append(run)
                known.add(run.run_id)
    return list(found.values())


def label_of(run: Measurement) -> str:
    """``gguf-q4_k_m on llamacpp``, ``NAME at URL``: as the commands that measure call it."""
    name = run.artifact.get("label") or run.artifact.get("quantization") or "unknown"
    url = run.serve.get("url")
    return f"{name} at {url}" if url else f"{name} on {run.backend.get('name') or 'unknown'}"


def chosen(words: str, known: Sequence[CaseRuns]) -> CaseRuns:
    """By label or key, or by the beginning of either. Raises UsageError where none or several are meant."""
    text = words.strip().lower()
    ways: tuple[Callable[[CaseRuns], bool], ...] = (
        lambda c: text in (c.key.lower(), c.label.lower()),
        lambda c: len(text) >= SHORTEST_KEY and c.key.lower().startswith(text),
        lambda c: bool(text) and c.label.lower().startswith(text),
    )
    for fits in ways:
        found = [c for c in known if fits(c)]
        if len(found) == 1:
            return found[0]
        if found:
            raise several(f"{words!r} could be {len(found)} cases", found)
    if not text:
        raise several(f"there are {len(known)} cases: which one?", known)
    raise UsageError(
        f"no case is called {words!r}, or has such a key", hint=nearest(words, sorted({c.label for c in known}))
    )


def several(problem: str, found: Sequence[CaseRuns]) -> UsageError:
    most = sorted(found, key=lambda c: c.count, reverse=True)[:NAMED_AT_MOST]
    names = [f"{c.key[:8]} ({c.label}, {load_words(c.newest.workload)}, {c.count} runs)" for c in most]
    more = f"; and {len(found) - len(most)} more" if len(found) > len(most) else ""
    return UsageError(problem, hint="name one by its key: " + "; ".join(names) + more)


def load_words(workload: dict[str, Any]) -> str:
    closed = workload.get("load", "closed") == "closed"
    load = f"{workload.get('concurrency')} at once" if closed else f"{workload.get('rate')}/s"
    return f"{workload.get('input_tokens')} → {workload.get('output_tokens')} tokens, {load}"


def comparable(runs: Sequence[Measurement]) -> tuple[list[Measurement], Machine, dict[str, int]]:
    """Those of one machine (this one, where it has any; else the one with most) and of the newest way of measuring.

    A step between two machines, or between two ways to measure, would be none of the code.
    """
    here, counts = this_machine().fingerprint, Counter(run.machine.fingerprint for run in runs)
    place = here if here in counts else counts.most_common(1)[0][0]
    of_one = [run for run in runs if run.machine.fingerprint == place]
    revision = max(run.measuring_revision for run in of_one)
    kept = [run for run in of_one if run.measuring_revision == revision]
    invalid = sum(run.verdict.status == "invalid" for run in kept)
    left_out = {
        "of another machine": len(runs) - len(of_one),
        "measured in another way": len(of_one) - len(kept),
        "invalid": invalid,
    }
    return kept, kept[-1].machine, {name: count for name, count in left_out.items() if count}


# --- the document -------------------------------------------------------------------------------------------------


def series_document(series: Series) -> dict[str, Any]:
    return {
        "metric": name_of(series.metric.name, series.statistic),
        "unit": series.metric.unit,
        "better": series.metric.better,
        "absolute": series.absolute,
        "points": [asdict(point) for point in series.points],
        "steps": [step_document(step, series.points) for step in series.steps],
    }


def step_document(step: Step, points: Sequence[Point]) -> dict[str, Any]:
    """With the first session of the new level, and the last one before: the change was made between the two."""
    last, first = points[step.place - 1], points[step.place]
    return asdict(step) | {
        "date": first.started_at,
        "commit": first.commit,
        "previous_date": last.started_at,
        "previous_commit": last.commit,
        "also_changed": [
            f"{name} {one or 'unknown'} → {other or 'unknown'}"
            for name, one, other in (
                ("engine", last.version, first.version),
                ("llmopt", last.llmopt_version, first.llmopt_version),
            )
            if one != other
        ],
    }
