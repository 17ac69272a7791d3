"""What is to be deployed, out of what was measured: a ranking, a folder of results, a run, a run's or a case's name.

All of them become one row of a ranking document (``report/document.py``), and that the evidence of a deployment.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from llmopt import serve
from llmopt.core.domain import Goal, Limit, Measurement, Workload
from llmopt.core.errors import LlmoptError, UsageError
from llmopt.core.metric_table import METRICS, Metric, parse_metric, value_of
from llmopt.core.run_index import read_store
from llmopt.core.run_table import RunTable
from llmopt.core.store import read_run
from llmopt.deploy.plan import Evidence, Figure
from llmopt.pipeline import ranking
from llmopt.pipeline.deploy_slos import slos_of, without_slo
from llmopt.pipeline.measured_row import (
    CurvePoint,
    MeasuredMachine,
    Place,
    Ran,
    Ranking,
    Row,
    read,
    read_ranking,
    workload_of,
)
from llmopt.pipeline.remembered import STATE
from llmopt.recommend.constraints import make_goal
from llmopt.report.saved import saved_document

GOOD_ENOUGH = ("valid", "suspect")  # of verdicts
FROM_RUNS = ("measured", "interpolated")  # of evidence
HEADLINE = ("ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95", "tps_p50", "e2e_p50", "e2e_p95", "output_tps", "requests_per_s",
            "error_rate", "peak_vram_bytes", "peak_rss_bytes", "load_s")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which row of the source: ``rank`` from 1; ``slos`` go before those of the goal; ``results``: where runs lie."""

    rank: int = 1
    slos: tuple[str, ...] = ()
    results: Path = Path("results")
    price_per_hour: float | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One row, ranked or rejected, with what stands around it; ``run_ids`` are the runs of its point, ``ran`` is what the
    record of the newest of them says, where it was found.
    """

    source: str
    row: Row
    limits: tuple[Limit, ...]
    machine: MeasuredMachine
    workload: Workload
    ties: tuple[str, ...] = ()
    rejected: bool = False
    ran: Ran | None = None
    run_ids: tuple[str, ...] = ()


def read_source(text: str, asked: Asked) -> Chosen:
    """Raises UsageError for what names nothing, LlmoptError for a rank that is not there."""
    path = Path(text).expanduser()
    if path.is_file():
        return of_file(path, text, asked)
    if path.is_dir():
        results = (
            path / "results"
            if (path / STATE).exists() or (not has_records(path) and (path / "results").is_dir())
            else path
        )
        return of_runs(text, read_store(results).table, asked, results)
    if asked.results.is_dir() and (found := of_name(text, asked)) is not None:
        return found
    raise UsageError(
        f"{text!r} is no ranking, results folder, run or case in {asked.results}",
        hint="llmopt recommend --json > ranking.json prints a ranking; --results names the folder of runs",
    )


def has_records(folder: Path) -> bool:
    return any(folder.glob("*/machine.json")) or (folder / "machine.json").exists()


def of_file(path: Path, text: str, asked: Asked) -> Chosen:
    """A ranking, a tuning's document, or one run's record."""
    document = saved_document(path)
    if document is None:
        return of_runs(text, read_store(path).table, asked, home_of(path))
    if document["kind"] != "ranking":
        raise UsageError(
            f"{path} holds the steps of a recipe, none of which is a recommendation",
            hint="llmopt recommend --json > ranking.json",
        )
    return of_document(text, document, asked, asked.results)


def home_of(record: Path) -> Path:
    """The results folder that a record lies in, or its own folder."""
    return record.parent.parent if (record.parent / "machine.json").exists() else record.parent


def of_name(text: str, asked: Asked) -> Chosen | None:
    """By a run's id, a case's key, or the key of a ranking's row; the load curve is that of the whole configuration."""
    table = read_store(asked.results).table
    rows = range(len(table))
    mine = [n for n in rows if table.run_ids[n].decode() == text] or [n for n in rows if table.word("case", n) == text]
    if mine:
        alike = [
            n
            for n in rows
            if all(table.word(w, n) == table.word(w, mine[-1]) for w in ("configuration", "machine", "shape", "loop"))
        ]
        chosen = of_runs(text, [table.record(n) for n in mine], asked, asked.results)
        curve = ranked([table.record(n) for n in alike], asked)["ranked"]
        return with_curve(chosen, curve[0]["curve"]) if len(curve) == 1 else chosen
    if not len(table):
        return None
    document = read_ranking(ranked(table, asked), text)
    for row in (*document.ranked, *document.rejected):
        if row["key"] == text:
            return chosen_row(text, document, row, asked.results)
    return None


def with_curve(chosen: Chosen, curve: Sequence[dict[str, Any]]) -> Chosen:
    points = read(curve, list[CurvePoint], chosen.source)
    return replace(chosen, row=msgspec.structs.replace(chosen.row, curve=points))


def of_runs(text: str, runs: RunTable | list[Measurement], asked: Asked, folder: Path) -> Chosen:
    if not len(runs):
        raise LlmoptError(f"there is no run in {text}", hint="measure something first: llmopt bench, or llmopt tune")
    runs = deployable(runs) if isinstance(runs, RunTable) else runs
    return of_document(text, ranked(runs, asked), asked, folder)


def deployable(table: RunTable) -> RunTable:
    """Without the runs of servers that llmopt did not start: the newest run decides what is compared, and one of those cannot
    be deployed. All, where there are no others: then it is said why not."""
    import numpy as np

    backends = [json.loads(words)["serve"]["backend"] for words in table.vocabulary["configuration"]]
    able = np.array([name in serve.BACKENDS and name != "scripted" for name in backends], bool)
    rows = np.flatnonzero(able[table.codes["configuration"]])
    return table.taken(rows, lambda n: table.record(int(rows[n]))) if len(rows) else table


def ranked(runs: RunTable | list[Measurement], asked: Asked) -> dict[str, Any]:
    if isinstance(runs, RunTable):
        runs.fill_quality(ranking.quality_of_record)
    return ranking.rank_runs(runs, goal_of(asked))


def goal_of(asked: Asked) -> Goal:
    return make_goal(list(asked.slos), price_per_hour=asked.price_per_hour)


def of_document(text: str, document: dict[str, Any], asked: Asked, folder: Path) -> Chosen:
    """The row of that rank; where nothing was ranked, the one that was rejected, for --force. Raises LlmoptError."""
    ranking = read_ranking(document, text)
    rows, rejected = ranking.ranked, ranking.rejected
    for place, row in zip(places_in(ranking, text), rows, strict=True):
        if place.rank == asked.rank:
            return chosen_row(text, ranking, row, folder)
    if not rows and rejected and asked.rank <= len(rejected):
        return chosen_row(text, ranking, rejected[asked.rank - 1], folder)
    if not rows and not rejected:
        raise LlmoptError(f"{text} ranks nothing", hint="measure something first: llmopt bench, or llmopt tune")
    raise UsageError(f"--rank {asked.rank}: {text} has {len(rows)} ranked", hint=f"--rank 1 to {max(1, len(rows))}")


def places_in(ranking: Ranking, text: str) -> list[Place]:
    return read([{n: row.get(n) for n in Place.__struct_fields__} for row in ranking.ranked], list[Place], text)


def chosen_row(text: str, ranking: Ranking, told: dict[str, Any], folder: Path) -> Chosen:
    """Raises UsageError for a row that is not whole, StoreError for a record that is not."""
    row = read(told, Row, text)
    ties = [p.label for p in places_in(ranking, text) if p.tie_group is not None and p.tie_group == row.tie_group]
    record = newest_record(folder, row)
    return Chosen(
        source=text,
        row=row,
        limits=tuple(ranking.goal.limits),
        machine=ranking.machine,
        workload=workload_of({**ranking.workload, **(record.workload if record else {}), **row.case.workload}),
        ties=tuple(label for label in ties if label != row.label),
        rejected=row.rank is None,
        ran=read(record.backend, Ran, f"the record {record.run_id} of {text}") if record else None,
        run_ids=tuple(run_ids_of(row)),
    )


def newest_record(folder: Path, row: Row) -> Measurement | None:
    """The newest run at the row's point, by its name: no need to read all of them."""
    for run_id in sorted(run_ids_of(row), reverse=True):
        name = glob.escape(run_id)
        for place in (*folder.glob(f"*/{name}.json"), *folder.glob(f"{name}.json")):
            return read_run(place)
    return None


def run_ids_of(row: Row) -> list[str]:
    """Of the point that the row was judged at."""
    points = [p for p in row.curve if p.chosen] or [p for p in row.curve if p.level == row.point.level]
    return [run_id for p in points for run_id in p.run_ids]


# --- from a row to evidence ------------------------------------------------------------------------------------------


def evidence_of(chosen: Chosen, asked: Asked) -> Evidence:
    """Everything that is known of it. ``forced``: why it is deployed only with --force, a sentence each. Raises UsageError."""
    row, metrics = chosen.row, msgspec.to_builtins(chosen.row.metrics)
    return Evidence(
        source=chosen.source,
        label=row.label,
        key=row.key,
        rank=row.rank,
        verdict=row.verdict.status,
        reasons=tuple(row.reasons or row.because),
        evidence=row.evidence,
        runs=row.runs,
        run_ids=chosen.run_ids,
        machine=msgspec.to_builtins(chosen.machine),
        workload=msgspec.to_builtins(chosen.workload),
        load=row.point.load,
        concurrency=concurrency_of(chosen.workload),
        figures=figures_of(row, metrics),
        curve=tuple(msgspec.to_builtins(row.curve)),
        quality=row.quality,
        slos=slos_of(asked.slos, chosen.limits, chosen.workload.slos, metrics),
        without_slo=without_slo(asked.slos, chosen.limits, chosen.workload.slos),
        peak_memory_bytes=peak_of(row, "peak_rss_bytes"),
        peak_vram_bytes=peak_of(row, "peak_vram_bytes"),
        load_s=value_of(metrics, METRICS["load_s"], None),
        forced=tuple(reasons_to_refuse(chosen)),
    )


def peak_of(row: Row, name: str) -> int | None:
    """At any load that was measured: a limit from the quiet ones would kill it under the others."""
    every = (row.metrics, *(point.metrics for point in row.curve))
    peaks = [peak for metrics in every if (peak := getattr(metrics, name))]
    return int(max(peaks)) if peaks else None


def reasons_to_refuse(chosen: Chosen) -> list[str]:
    """What is not known to be good is refused: a verdict or an origin that nobody here knows is one."""
    row, found = chosen.row, []
    if row.verdict.status not in GOOD_ENOUGH:
        why = "; ".join(reason.message for reason in row.verdict.reasons if reason.severity == "invalid")
        found.append(f"its runs are {row.verdict.status}{': ' + why if why else ''}")
    elif chosen.rejected:
        found.append(f"it was rejected: {'; '.join(row.because) or 'no reason is told'}")
    if row.evidence not in FROM_RUNS:
        found.append(f"its figures are {row.evidence}: nothing of it was measured")
    return found


def concurrency_of(workload: Workload) -> float | None:
    most = workload.max_concurrency if workload.open_loop else workload.concurrency
    return None if most is None else float(most)


def figures_of(row: Row, metrics: dict[str, Any]) -> dict[str, Figure]:
    """The headline figures: with the ranking's own intervals where it has them."""
    found = {}
    for name in dict.fromkeys((*HEADLINE, *row.numbers)):
        metric, statistic = split(name)
        if metric is None:
            continue
        told, bounds = row.numbers.get(name), row.intervals.get(name)
        value = told.value if told else value_of(metrics, metric, statistic)
        if value is None:
            continue
        ends = told or bounds
        found[name] = Figure(
            value=value,
            low=ends.low if ends else None,
            high=ends.high if ends else None,
            unit=metric.unit,
            evidence=told.evidence if told else row.evidence,
        )
    return found


def split(name: str) -> tuple[Metric | None, str | None]:
    """``ttft_p95`` → (ttft, p95); (None, None) for what is no metric here, as a figure of another llmopt."""
    try:
        return parse_metric(name)
    except UsageError:
        return None, None
