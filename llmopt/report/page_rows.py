"""The table of the page: every number with its interval, its evidence and the verdict of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.units import show
from llmopt.report.ranking import row_lines
from llmopt.report.table import artifact_name, label, options_cell

HEADLINE = {
    "output_tps": "Throughput",
    "requests_per_s": "Requests",
    "ttft_p50": "TTFT p50",
    "ttft_p95": "TTFT p95",
    "tpot_p50": "TPOT p50",
    "tps_p50": "TPS p50",
    "e2e_p50": "Request p50",
    "peak_vram_bytes": "VRAM",
    "peak_rss_bytes": "RAM",
    "cost": "Cost / 1M out",
    "kl": "KL",
    "top1": "Top-1",
    "error_rate": "Errors",
    "slo_attainment": "Met SLO",
    "goodput_rps": "Goodput",
}
TILES = ("output_tps", "ttft_p50", "ttft_p95", "tps_p50", "peak_vram_bytes", "peak_rss_bytes", "cost", "kl")
CHANGES = ("output_tps", "requests_per_s", "ttft_p50", "ttft_p95", "tpot_p50", "e2e_p50", "peak_vram_bytes", "peak_rss_bytes",
           "cost", "kl", "top1", "perplexity")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Column:
    """``name`` is that of a number of the document; ``better`` is how the table is first sorted by it."""

    name: str
    title: str
    better: str
    formula: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """``sort`` is null where the number is unknown: it stands last in either order.

    ``status`` is the verdict of the runs that it comes from; quality comes from none, and is as valid as its proof.
    """

    text: str
    sort: float | None
    interval: str = ""
    evidence: str = ""
    about: str = ""
    status: str = "valid"


def columns_of(document: dict[str, Any]) -> list[Column]:
    """The headline figures that any row has, then those that the goal names."""
    known = [name for row in rows_of(document) for name in row["numbers"]]
    names = [name for name in HEADLINE if name in known]
    names += [name for name in dict.fromkeys(known) if name not in HEADLINE]
    found = []
    for name in names:
        metric, _ = parse_metric(name)
        heading = HEADLINE.get(name, name)
        found.append(Column(name=name, title=heading, better=metric.better, formula=f"{name}: {metric.formula}"))
    return found


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [*document["ranked"], *document["rejected"]]


def identity(row: dict[str, Any]) -> str:
    """Of a row on its page: names may be alike, keys are not."""
    return f"c-{row['key']}"


def table_of(document: dict[str, Any], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Every configuration, ranked or rejected, as the template shows it."""
    return [
        {
            "id": identity(row),
            "rank": row.get("rank"),
            "place": number + 1,
            "label": label(row),
            "name": artifact_name(row["case"]["artifact"]),
            "options": options_cell(row),
            "engine": str(row["case"]["serve"]["backend"]),
            "version": row["case"]["backend"].get("version") or "",
            "load": row["point"]["load"],
            "level": row["point"]["level"],
            "bits": bits_of(row),
            "cells": [cell_of(row, column) for column in columns],
            "on_front": bool(row.get("on_front")),
            "knee": bool(row.get("knee")),
            "tie": row.get("tie_group"),
            "status": row["verdict"]["status"],
            "doubts": [reason["message"] for reason in row["verdict"]["reasons"]],
            "evidence": row["evidence"],
            "runs": row["runs"],
            "because": "; ".join(row.get("because", ())),
        }
        for number, row in enumerate(rows_of(document))
    ]


def bits_of(row: dict[str, Any]) -> Cell:
    bits = row["case"]["artifact"].get("bits_per_weight")
    text = "–" if bits is None else f"{bits:.2f}"
    return Cell(text=text, sort=bits, evidence="measured" if bits else "", about="counted in the files of the artifact")


def cell_of(row: dict[str, Any], column: Column) -> Cell:
    number = row["numbers"].get(column.name)
    if number is None:
        return Cell(text="–", sort=None, about="not known")
    words = [number["evidence"], *([f"at {number['at']}", runs_words(row["runs"])] if number["at"] else [])]
    interval = interval_words(number)
    if interval:
        words.append(f"95 % interval {interval} over {number['over']}")
    else:
        words.append("no interval")
    status = row["verdict"]["status"] if number["at"] else "valid"
    words += [f"verdict of its runs: {status}"] if number["at"] else ["from the proof of the artifact"]
    return Cell(
        text=show(number["value"], number["unit"]), sort=number["value"], interval=interval,
        evidence=number["evidence"], about=", ".join(words), status=status,
    )  # fmt: skip


def runs_words(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def interval_words(number: dict[str, Any]) -> str:
    """``785–1010``, in the unit of the number itself."""
    if number["low"] is None or number["high"] is None:
        return ""
    low, high = (show(number[end], number["unit"]) for end in ("low", "high"))
    if low.partition(" ")[2] == high.partition(" ")[2] == show(number["value"], number["unit"]).partition(" ")[2]:
        low, high = low.partition(" ")[0], high.partition(" ")[0]
    return f"{low}–{high}"


def engines_of(document: dict[str, Any]) -> list[str]:
    return sorted({str(row["case"]["serve"]["backend"]) for row in rows_of(document)})


def tiles_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline figures of the first row, each with what it rests on."""
    if not document["ranked"]:
        return []
    row = document["ranked"][0]
    names = [name for name in TILES if name in row["numbers"]]
    columns = {c.name: c for c in columns_of(document)}
    return [{"title": columns[name].title, "cell": cell_of(row, columns[name])} for name in names]


def cards(document: dict[str, Any]) -> list[dict[str, Any]]:
    """All that is said of each configuration: reasons, doubts, diagnosis, and its figures beside the baseline's."""
    return [
        {
            "id": identity(row),
            "rank": row.get("rank"),
            "label": label(row),
            "status": row["verdict"]["status"],
            "lines": [line for line in row_lines(row) if line],
            "against": against(row),
            "key": row["key"],
        }
        for row in rows_of(document)
    ]


def against(row: dict[str, Any]) -> dict[str, Any] | None:
    found = row.get("against_baseline")
    if not found:
        return None
    changes = [(name, found["changes"][name]) for name in CHANGES if name in found["changes"]]
    return {
        "label": found["label"],
        "where": "no load was measured of both" if found["load"] is None else f"both at {found['load']}",
        "changes": [change_line(name, change) for name, change in changes],
    }


def change_line(name: str, change: dict[str, Any]) -> dict[str, str]:
    metric, _ = parse_metric(name)
    unit = METRICS[metric.name].unit
    ratio, low = change["ratio"], change["low"]
    text = "–" if ratio is None else f"×{ratio:.2f}"
    interval = "" if low is None else f"{low:.2f}–{change['high']:.2f} over {change['over']}"
    return {
        "title": HEADLINE.get(name, name), "before": show(change["before"], unit), "after": show(change["after"], unit),
        "ratio": text, "interval": interval or "no interval", "evidence": change["evidence"],
    }  # fmt: skip
