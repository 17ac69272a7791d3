"""Tables for the terminal; plain text when piped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from llmopt.core.metrics import METRICS, parse_metric, value_of
from llmopt.core.units import show
from llmopt.report.table import Column, columns, footnotes, goal_line, label, title

if TYPE_CHECKING:
    import pandas as pd

MIN_WIDTH = 150
HEADLINE = ("ttft_p50", "ttft_p95", "ttft_service_p50", "tps_p50", "tpot_p50", "e2e_p50", "output_tps", "requests_per_s",
            "output_tps_whole", "peak_vram_bytes", "peak_rss_bytes", "load_s", "error_rate")  # fmt: skip


def print_ranking(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    console.print(title(document), style="bold", markup=False)
    console.print(f"goal: {goal_line(document)}", markup=False)
    if document["ranked"]:
        console.print(fitting_table(document, console))
    for row in document["ranked"]:
        console.print(f"{row['rank']}. {label(row)}", style="bold", markup=False)
        for reason in row["reasons"]:
            console.print(f"   {reason}", markup=False, soft_wrap=True)
    for row in document["rejected"]:
        console.print(f"✗ {label(row)}", style="bold red", markup=False)
        for reason in row["because"]:
            console.print(f"   {reason}", markup=False, soft_wrap=True)
    for note in footnotes(document):
        console.print(note, style="dim", markup=False, soft_wrap=True)


def fitting_table(document: dict[str, Any], console: Console) -> Table:
    """The table with as many columns as the terminal has room for."""
    shown = columns(document["ranked"])
    while True:
        table = ranking_table(document, shown)
        wanted = Measurement.get(console, console.options.update(width=10_000), table).maximum
        spare = max((c.drop for c in shown), default=0)
        if wanted <= console.width:
            return table
        if not spare:
            return ranking_table(document, [c.narrow or c for c in shown], wrap=True)
        shown = [c for c in shown if c.drop != spare]


def ranking_table(document: dict[str, Any], shown: Sequence[Column], *, wrap: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=not wrap)
    for row in document["ranked"]:
        table.add_row(*(column.cell(row) for column in shown), style="bold green" if row["rank"] == 1 else None)
    return table


def print_run(record: dict[str, Any], console: Console | None = None) -> None:
    """One run: the headline figures with their intervals, then the verdict and what it doubts."""
    console = console or stdout_console()
    artifact, serve, w = record["artifact"], record["serve"], record["workload"]
    console.print(f"{artifact['quantization']} on {serve['backend']}", style="bold", markup=False)
    console.print(
        f"{w['input_tokens']} → {w['output_tokens']} tokens, closed loop of {w['concurrency']}, {w['requests']} requests",
        markup=False,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval")
    for name in HEADLINE:
        metric, statistic = parse_metric(name)
        value = value_of(record["metrics"], metric, statistic)
        if value is None and metric.name in ("peak_vram_bytes", "peak_rss_bytes"):
            continue
        bounds = record["intervals"].get(name)
        words = (
            f"{show(bounds['low'], metric.unit)} – {show(bounds['high'], metric.unit)} over {bounds['over']}"
            if bounds
            else ""
        )
        table.add_row(name, show(value, metric.unit), words)
    if record.get("quality"):
        table.add_row("kl", show(record["quality"]["kl_mean"], METRICS["kl"].unit), "")
        table.add_row("top1", show(record["quality"]["top1_agreement"], METRICS["top1"].unit), "")
    console.print(table)
    print_verdict(record["verdict"], console)


RUN_COLUMNS = {
    "started_at": "started",
    "artifact.quantization": "quantization",
    "serve.backend": "engine",
    "backend.version": "version",
    "workload.concurrency": "users",
    "metrics.output_tps": "tok/s",
    "metrics.ttft_s.p50": "TTFT p50 s",
    "metrics.tps.p50": "TPS p50",
    "verdict.status": "verdict",
}


def print_runs(runs: pd.DataFrame) -> None:
    """One line a run, as pandas prints it."""
    if runs.empty:
        print("no runs")
        return
    shown = runs.reindex(columns=list(RUN_COLUMNS)).rename(columns=RUN_COLUMNS)
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def print_verdict(verdict: dict[str, Any], console: Console) -> None:
    style = {"valid": "green", "suspect": "yellow", "invalid": "red"}[verdict["status"]]
    console.print(f"verdict: {verdict['status']}", style=style, markup=False)
    for doubt in verdict["reasons"]:
        console.print(f"  {doubt['message']}; {doubt['remedy']}", markup=False, soft_wrap=True)


def print_artifact(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    artifact = document["artifact"]
    there = " (already there)" if document["already_there"] else ""
    console.print(
        f"{artifact['quantization']['name']}{there}: {artifact['path']}", style="bold", markup=False, soft_wrap=True
    )
    console.print(
        f"{show(artifact['size_bytes'], 'bytes')}, {artifact['bits_per_weight']:.2f} bits per weight, "
        f"{document['seconds']:.1f} s, peak memory {show(document['peak_memory_bytes'], 'bytes')}",
        markup=False,
    )
    if document["quality"]:
        print_quality(document["quality"], console)


def print_quality(quality: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    low, high = quality["kl_mean_interval"]
    console.print(
        f"KL to the base   {quality['kl_mean']:.5f} [{low:.5f}, {high:.5f}] nats, p99 {quality['kl_p99']:.4f}",
        markup=False,
    )
    low, high = quality["top1_interval"]
    console.print(f"top-1 agreement  {quality['top1_agreement']:.2%} [{low:.2%}, {high:.2%}]", markup=False)
    low, high = quality["perplexity_interval"]
    console.print(
        f"perplexity       {quality['perplexity']:.3f} [{low:.3f}, {high:.3f}], base {quality['base_perplexity']:.3f}, "
        f"on {quality['tokens']:,} tokens",
        markup=False,
    )


def stdout_console() -> Console:
    """Piped output is as wide as its table and has no colour."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(MIN_WIDTH, console.width))
