"""A recipe of steps as a waterfall: what each change gave, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmopt.core.escaping import markdown_text
from llmopt.core.metrics import parse_metric, value_of
from llmopt.core.units import show
from llmopt.report.table import title

if TYPE_CHECKING:
    from rich.table import Table

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


def lines(document: dict[str, Any], *, wide: bool = True) -> list[list[str]]:
    """Header and rows: the step, each figure with its change against the step before, quality, price, throughput as a bar.

    Without ``wide`` the change against the step before is left to throughput alone.
    """
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
    most = max((row["metrics"].get("output_tps") or 0.0 for row in rows if compared(row)), default=0.0)
    return [head, *(line(row, shown, priced, most, wide) for row in rows)]


def compared(row: dict[str, Any]) -> bool:
    return "metrics" in row and row["verdict"]["status"] != "invalid"


def line(row: dict[str, Any], shown: Sequence[Figure], priced: bool, most: float, wide: bool) -> list[str]:
    if "metrics" not in row:
        return [row["step"], *["–"] * (len(shown) + 1 + priced), "not measured"]
    cells = [cell(row, figure.metric, wide or figure.metric == "output_tps") for figure in shown]
    kl = show(row["metrics"].get("kl"), "nats")
    cost = [f"{row['price_per_million_tokens']:.4g}" if row["price_per_million_tokens"] else "–"] if priced else []
    return [row["step"], *cells, kl, *cost, bar(row, most) if compared(row) else "invalid"]


def cell(row: dict[str, Any], name: str, with_change: bool = True) -> str:
    metric, statistic = parse_metric(name)
    value = value_of(row["metrics"], metric, statistic)
    found = row["change"].get(name) if with_change else None
    return show(value, metric.unit) + (f" ({factor(found)})" if found else "")


def factor(change: dict[str, Any]) -> str:
    """``×1.74``; ``≈`` where the interval does not leave out that nothing changed, ``~`` where none is known."""
    if change["low"] is None:
        return f"~{change['ratio']:.2f}"
    return f"{'≈' if change['low'] <= 1 <= change['high'] else '×'}{change['ratio']:.2f}"


def bar(row: dict[str, Any], most: float) -> str:
    value = row["metrics"].get("output_tps")
    if not value or not most:
        return "–"
    eighths = max(1, round(value / most * BAR * 8))
    since = row["since_start"].get("output_tps")
    blocks: str = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    return blocks + (f" {factor(since)}" if since else "")


def footnotes(document: dict[str, Any]) -> list[str]:
    rows = [row for row in document["steps"] if "metrics" in row]
    notes = []
    if rows:
        counts = "–".join(str(n) for n in sorted({min(r["runs"] for r in rows), max(r["runs"] for r in rows)}))
        notes = [
            f"Medians of {counts} run(s), memory the highest peak; in brackets the change against the step before."
        ]
        notes.append("×: the 95 % interval over runs leaves out 1; ≈: it does not; ~: one run a side, no interval.")
    notes += [f"{row['step']}: {row['failure']}" for row in document["steps"] if row["failure"]]
    for row in rows:
        reasons = "; ".join(reason["message"] for reason in row["verdict"]["reasons"])
        if reasons:
            notes.append(f"{row['step']} is {row['verdict']['status']}: {reasons}")
    return notes


def steps_markdown(document: dict[str, Any]) -> str:
    head, *rows = lines(document)
    table = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 2) + "---|"]
    table += [f"| {' | '.join(map(markdown_text, row))} |" for row in rows]
    about = [markdown_text(title(document))] if document["machine"] else []
    notes = (f"{markdown_text(note)}  " for note in footnotes(document))
    return "\n".join([f"{HEADING}: {markdown_text(document['name'])}", "", *about, "", *table, "", *notes]) + "\n"


def print_steps(document: dict[str, Any]) -> None:
    """The waterfall on a terminal; where it is narrow, with fewer brackets."""
    from rich.measure import Measurement

    from llmopt.report.terminal import say, stdout_console

    console = stdout_console()
    if document["machine"]:
        say(console, title(document), style="bold")
    table = steps_table(lines(document))
    if Measurement.get(console, console.options.update(width=10_000), table).maximum > console.width:
        table = steps_table(lines(document, wide=False))
    console.print(table)
    for note in footnotes(document):
        say(console, note, style="dim", soft_wrap=True)


def steps_table(rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from llmopt.report.terminal import cell as text_cell

    table = Table(box=None, pad_edge=False, header_style="bold")
    last = len(rows[0]) - 1
    for place, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="left" if place in (0, last) else "right", no_wrap=place == last)
    for row in rows[1:]:
        table.add_row(*map(text_cell, row))
    return table
