"""A recipe of steps as a waterfall: what each change gave, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.metrics import parse_metric, value_of
from llmopt.core.units import show
from llmopt.report.table import title

BAR = 24
EIGHTHS = " ▏▎▍▌▋▊▉█"
HEADING = "# Steps"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One column: a metric under its heading."""

    title: str
    metric: str


def figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    video = any(row.get("metrics", {}).get("peak_vram_bytes") for row in rows)
    memory = Figure(title="VRAM", metric="peak_vram_bytes")
    if not video:
        memory = Figure(title="RAM (no GPU)", metric="peak_rss_bytes")
    return [
        Figure(title="TTFT p50", metric="ttft_p50"),
        Figure(title="TPS p50", metric="tps_p50"),
        Figure(title="throughput", metric="output_tps"),
        memory,
    ]


def lines(document: dict[str, Any]) -> list[list[str]]:
    """Header and rows: the step, each figure with its change against the step before, quality, price, throughput as a bar."""
    rows = document["steps"]
    shown = figures(rows)
    priced = document.get("price_per_hour") is not None
    head = [
        "step",
        *(f.title for f in shown),
        "KL",
        *(["per 1M tokens"] if priced else []),
        "throughput since the start",
    ]
    most = max((row["metrics"].get("output_tps") or 0.0 for row in rows if "metrics" in row), default=0.0)
    return [head, *(line(row, shown, priced, most) for row in rows)]


def line(row: dict[str, Any], shown: Sequence[Figure], priced: bool, most: float) -> list[str]:
    if "metrics" not in row:
        return [row["step"], f"left out: {row['failure']}", *[""] * (len(shown) + 1 + priced)]
    cells = [cell(row, figure.metric) for figure in shown]
    kl = show(row["metrics"].get("kl"), "nats")
    cost = [f"{row['price_per_million_tokens']:.4g}" if row["price_per_million_tokens"] else "–"] if priced else []
    return [row["step"], *cells, kl, *cost, bar(row, most)]


def cell(row: dict[str, Any], name: str) -> str:
    metric, statistic = parse_metric(name)
    value = value_of(row["metrics"], metric, statistic)
    found = row["change"].get(name)
    return show(value, metric.unit) + (f" ({factor(found)})" if found else "")


def factor(change: dict[str, Any]) -> str:
    """``×1.74``; ``≈`` where the interval does not leave out that nothing changed."""
    unsure = change["low"] is not None and change["low"] <= 1 <= change["high"]
    return f"{'≈' if unsure else '×'}{change['ratio']:.2f}"


def bar(row: dict[str, Any], most: float) -> str:
    value = row["metrics"].get("output_tps")
    if not value or not most:
        return "–"
    eighths = max(1, round(value / most * BAR * 8))
    since = row["since_start"].get("output_tps")
    blocks: str = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    return blocks + (f" ×{since['ratio']:.2f}" if since else "")


def footnotes(document: dict[str, Any]) -> list[str]:
    rows = [row for row in document["steps"] if "metrics" in row]
    counts = sorted({row["runs"] for row in rows})
    notes = (
        [f"Medians of {'–'.join(map(str, counts))} run(s); in brackets the change against the step before."]
        if rows
        else []
    )
    if any(change["low"] is None for row in rows for change in row["change"].values()):
        notes.append("Where a side has fewer than three usable runs there is no interval: a small change may be none.")
    elif rows:
        notes.append("≈: the 95 % interval over runs holds 1, so no change is seen.")
    for row in rows:
        reasons = "; ".join(reason["message"] for reason in row["verdict"]["reasons"])
        if reasons:
            notes.append(f"{row['step']} is {row['verdict']['status']}: {reasons}")
    return notes


def steps_markdown(document: dict[str, Any]) -> str:
    head, *rows = lines(document)
    table = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 2) + "---|"]
    table += [f"| {' | '.join(row)} |" for row in rows]
    about = [title(document)] if document["machine"] else []
    return (
        "\n".join(
            [f"{HEADING}: {document['name']}", "", *about, "", *table, "", *(f"{n}  " for n in footnotes(document))]
        )
        + "\n"
    )


def print_steps(document: dict[str, Any]) -> None:
    """The waterfall on a terminal; as wide as it is, for its bars are the point of it."""
    from rich.table import Table

    from llmopt.report.terminal import stdout_console

    console = stdout_console()
    if document["machine"]:
        console.print(title(document), style="bold", markup=False)
    head, *rows = lines(document)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(head):
        last = place == len(head) - 1
        table.add_column(name, justify="left" if place == 0 or last else "right", no_wrap=last)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in footnotes(document):
        console.print(note, style="dim", markup=False, soft_wrap=True)
