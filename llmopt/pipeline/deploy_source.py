"""What is to be deployed, out of what was measured: a ranking, a folder of results, a run, a run's or a case's name.

All of them become one row of a ranking document (``report/document.py``), and that the evidence of a deployment.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from llmopt import serve
from llmopt.core.domain import Goal, Limit, Measurement
from llmopt.core.errors import LlmoptError, UsageError
from llmopt.core.metric_table import METRICS, value_of
from llmopt.core.run_index import read_store
from llmopt.core.run_table import RunTable
from llmopt.core.store import read_run
from llmopt.deploy.plan import Evidence, Figure
from llmopt.pipeline import ranking
from llmopt.pipeline.deploy_slos import slos_of
from llmopt.pipeline.remembered import STATE
from llmopt.recommend.constraints import make_goal
from llmopt.report.saved import saved_document

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
    """One row, ranked or rejected, with what stands around it; ``run_ids`` are the runs of its point, ``record`` the
    newest of them where it was found.
    """

    source: str
    row: dict[str, Any]
    limits: tuple[Limit, ...]
    machine: dict[str, Any]
    workload: dict[str, Any]
    ties: tuple[str, ...] = ()
    rejected: bool = False
    record: Measurement | None = None
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
    with whole(text):
        return of_document(text, document, asked, asked.results)


@contextlib.contextmanager
def whole(source: str) -> Iterator[None]:
    """A saved ranking may have been cut or edited since: what it lacks is said as its fault. Raises UsageError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{source} is no whole ranking: {type(error).__name__} {error}",
            hint="make it anew with this version: llmopt recommend --json",
        ) from error


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
    document = ranked(table, asked) if len(table) else {"ranked": [], "rejected": []}
    for row in (*document["ranked"], *document["rejected"]):
        if row["key"] == text:
            return chosen_row(text, document, row, asked.results)
    return None


def with_curve(chosen: Chosen, curve: Sequence[dict[str, Any]]) -> Chosen:
    return replace(chosen, row={**chosen.row, "curve": list(curve)})


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
    rows = document["ranked"]
    for row in rows:
        if row["rank"] == asked.rank:
            return chosen_row(text, document, row, folder)
    rejected = document["rejected"]
    if not rows and rejected and asked.rank <= len(rejected):
        return chosen_row(text, document, rejected[asked.rank - 1], folder)
    if not rows and not rejected:
        raise LlmoptError(f"{text} ranks nothing", hint="measure something first: llmopt bench, or llmopt tune")
    raise UsageError(f"--rank {asked.rank}: {text} has {len(rows)} ranked", hint=f"--rank 1 to {max(1, len(rows))}")


def chosen_row(text: str, document: dict[str, Any], row: dict[str, Any], folder: Path) -> Chosen:
    ties = [
        r["label"]
        for r in document["ranked"]
        if row.get("tie_group") is not None and r["tie_group"] == row["tie_group"]
    ]
    record = newest_record(folder, row)
    workload = {**document["workload"], **(record.workload if record else {}), **row["case"]["workload"]}
    return Chosen(
        source=text,
        row=row,
        limits=tuple(msgspec.convert(limit, Limit) for limit in document["goal"]["limits"]),
        machine=msgspec.json.decode(msgspec.json.encode(document["machine"])),
        workload=workload,
        ties=tuple(label for label in ties if label != row["label"]),
        rejected="rank" not in row or row["rank"] is None,
        record=record,
        run_ids=tuple(run_ids_of(row)),
    )


def newest_record(folder: Path, row: dict[str, Any]) -> Measurement | None:
    """The newest run at the row's point, by its name: no need to read all of them."""
    for run_id in sorted(run_ids_of(row), reverse=True):
        for place in (*folder.glob(f"*/{run_id}.json"), *folder.glob(f"{run_id}.json")):
            return read_run(place)
    return None


def run_ids_of(row: dict[str, Any]) -> list[str]:
    """Of the point that the row was judged at."""
    points = [p for p in row["curve"] if p.get("chosen")] or [
        p for p in row["curve"] if p.get("level") == row["point"].get("level")
    ]
    return [str(run_id) for p in points for run_id in p.get("run_ids", ()) if "/" not in run_id and "*" not in run_id]


# --- from a row to evidence ------------------------------------------------------------------------------------------


def evidence_of(chosen: Chosen, asked: Asked) -> Evidence:
    """Everything that is known of it. ``forced``: why it is deployed only with --force, a sentence each. Raises UsageError."""
    with whole(chosen.source):
        return known_of(chosen, asked)


def known_of(chosen: Chosen, asked: Asked) -> Evidence:
    row, metrics = chosen.row, chosen.row["metrics"]
    return Evidence(
        source=chosen.source,
        label=row["label"],
        key=row["key"],
        rank=row.get("rank"),
        verdict=row["verdict"]["status"],
        reasons=tuple(map(str, row.get("reasons") or row.get("because") or ())),
        evidence=row["evidence"],
        runs=row["runs"],
        run_ids=chosen.run_ids,
        machine=chosen.machine,
        workload=chosen.workload,
        load=str(row["point"]["load"]),
        concurrency=concurrency_of(chosen.workload),
        figures=figures_of(row),
        curve=tuple(row["curve"]),
        quality=row["quality"],
        slos=slos_of(asked.slos, chosen.limits, chosen.workload.get("slos") or (), metrics),
        peak_memory_bytes=peak_of(row, "peak_rss_bytes"),
        peak_vram_bytes=peak_of(row, "peak_vram_bytes"),
        load_s=number(metrics, "load_s"),
        forced=tuple(reasons_to_refuse(chosen)),
    )


def peak_of(row: dict[str, Any], name: str) -> int | None:
    """At any load that was measured: a limit from the quiet ones would kill it under the others."""
    every = (row["metrics"], *(point["metrics"] for point in row["curve"]))
    peaks = [peak for metrics in every if (peak := number(metrics, name))]
    return int(max(peaks)) if peaks else None


def reasons_to_refuse(chosen: Chosen) -> list[str]:
    row = chosen.row
    found = []
    if row["verdict"]["status"] == "invalid":
        why = "; ".join(r["message"] for r in row["verdict"].get("reasons", ()) if r.get("severity") == "invalid")
        found.append(f"its runs are invalid{': ' + why if why else ''}")
    if row["evidence"] == "estimated":
        found.append("its figures are estimated: nothing of it was measured")
    if chosen.rejected and row["verdict"]["status"] != "invalid":
        found.append(f"it was rejected: {'; '.join(map(str, row.get('because') or ('no reason is told',)))}")
    return found


def concurrency_of(workload: dict[str, Any]) -> float | None:
    if workload.get("load", "closed") == "closed":
        return float(workload["concurrency"])
    cap = workload.get("max_concurrency")
    return None if cap is None else float(cap)


def number(metrics: dict[str, Any], name: str) -> float | None:
    return value_of(metrics, METRICS[name], None)


def figures_of(row: dict[str, Any]) -> dict[str, Figure]:
    """The headline figures: with the ranking's own intervals where it has them."""
    found = {}
    for name in dict.fromkeys((*HEADLINE, *row["numbers"])):
        told, bounds = row["numbers"].get(name), row["intervals"].get(name) or {}
        metric, statistic = split(name)
        if metric is None:
            continue
        value = told["value"] if told else value_of(row["metrics"], METRICS[metric], statistic)
        if value is None:
            continue
        found[name] = Figure(
            value=float(value),
            low=(told or bounds).get("low"),
            high=(told or bounds).get("high"),
            unit=METRICS[metric].unit,
            evidence=(told or {}).get("evidence") or row["evidence"],
        )
    return found


def split(name: str) -> tuple[str | None, str | None]:
    """``ttft_p95`` → (ttft, p95); (None, None) for what is no metric here, as the score of a task."""
    if name in METRICS:
        return name, None
    metric, _, statistic = name.rpartition("_")
    return (metric, statistic) if metric in METRICS else (None, None)
