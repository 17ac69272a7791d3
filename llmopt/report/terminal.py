"""Tables for the terminal; plain text when piped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from llmopt.core.escaping import one_line
from llmopt.core.metrics import METRICS, parse_metric, value_of
from llmopt.core.units import show
from llmopt.report.ranking import curves, more_lines, relaxation_lines, row_lines
from llmopt.report.server_notes import server_notes
from llmopt.report.table import Column, artifact_name, columns, footnotes, goal_line, label, title, workload_line

if TYPE_CHECKING:
    import pandas as pd

MIN_WIDTH = 150
HEADLINE = ("ttft_p50", "ttft_p95", "ttft_service_p50", "tps_p50", "tpot_p50", "e2e_p50", "output_tps", "requests_per_s",
            "output_tps_whole", "goodput_rps", "slo_attainment", "peak_vram_bytes", "peak_rss_bytes", "load_s", "error_rate")  # fmt: skip
ONLY_WHERE_KNOWN = ("peak_vram_bytes", "peak_rss_bytes", "load_s", "goodput_rps", "slo_attainment")


def print_command(document: dict[str, Any]) -> None:
    """The engine's own command, ready to paste."""
    print(document["shell"])


def print_serving(document: dict[str, Any]) -> None:
    console = stdout_console()
    what = f"{document['quantization']} on {document['backend']}, ready after {document['load_s']:.1f} s"
    say(console, f"{document['url']}   model {document['model']}   ({what}; Ctrl-C ends it)")


def print_ranking(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    say(console, title(document), style="bold")
    say(console, f"goal: {goal_line(document)}")
    if document["ranked"]:
        console.print(fitting_table(document, console))
    for row in document["ranked"]:
        say(console, f"{row['rank']}. {label(row)}", style="bold")
        print_lines(row_lines(row), console)
    for row in document["rejected"]:
        say(console, f"✗ {label(row)}", style="bold red")
        print_lines(row_lines(row), console)
    for name, lines in curves(document):
        say(console, f"load curve of {name}", style="bold")
        console.print(plain_table(lines))
    if relaxed := relaxation_lines(document):
        say(console, "what must give", style="bold")
        print_lines(relaxed, console)
    for note in (*more_lines(document), *footnotes(document)):
        say(console, note, style="dim", soft_wrap=True)


def say(console: Console, text: str, *, style: str | None = None, soft_wrap: bool = False) -> None:
    """A line as it is: neither markup nor control characters in a name are obeyed."""
    console.print(Text(one_line(text)), style=style, soft_wrap=soft_wrap)


def cell(text: str) -> Text:
    return Text(one_line(text))


def print_lines(lines: Sequence[str], console: Console) -> None:
    for text in lines:
        say(console, f"   {text}", soft_wrap=True)


def plain_table(lines: Sequence[Sequence[str]]) -> Table:
    """The first line is the header; the first and the last column are words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(lines[0]):
        table.add_column(Text(name), justify="left" if place in (0, len(lines[0]) - 1) else "right")
    for line in lines[1:]:
        table.add_row(*map(cell, line))
    return table


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
        table.add_row(*(cell(column.cell(row)) for column in shown), style="bold green" if row["rank"] == 1 else None)
    return table


def print_run(record: dict[str, Any], console: Console | None = None) -> None:
    """One run: the headline figures with their intervals, then the verdict and what it doubts."""
    console = console or stdout_console()
    artifact, serve = record["artifact"], record["serve"]
    say(console, f"{artifact_name(artifact)} on {serve['backend']}", style="bold")
    say(console, workload_line(record["workload"]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval")
    for name in HEADLINE:
        metric, statistic = parse_metric(name)
        value = value_of(record["metrics"], metric, statistic)
        if value is None and metric.name in ONLY_WHERE_KNOWN:
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
    for line in server_notes(record):
        say(console, line, soft_wrap=True)
    for line in run_notes(record):
        say(console, line, style="dim", soft_wrap=True)
    print_definitions(record.get("definitions") or {}, console)
    print_verdict(record["verdict"], console)


def run_notes(record: dict[str, Any]) -> list[str]:
    """Failures by kind, where tokens were counted, and what the client knows about itself."""
    notes, metrics, client, tokens = [], record["metrics"], record.get("client") or {}, record.get("tokens") or {}
    if metrics.get("errors"):
        kinds = ", ".join(f"{n} {kind}" for kind, n in metrics["errors"].items())
        notes.append(f"failed: {kinds}; a failed request is the worst value of every percentile")
    if tokens.get("prompts", "exact") != "exact":
        notes.append("prompt lengths are estimated from words: --tokenizer DIR makes them exact")
    if tokens.get("source") == "estimated":
        notes.append("output tokens were counted from the text, not by the server")
    if client.get("lag_s"):
        lag, late = client["lag_s"], client["lateness_s"] or {}
        stamps = "kernel stamps" if client["stamps"] == "kernel" else "no kernel stamps"
        share = client["ceiling"]["share"]
        notes.append(
            f"client: {stamps}, read {tail(lag)} behind the kernel (in no latency), sent {tail(late)} late"
            + (f", {share:.0%} of its ceiling ({client['ceiling']['source']})" if share is not None else "")
        )
        if client.get("asked_rate") and client.get("achieved_rate"):
            notes.append(f"asked for {client['asked_rate']:.5g} requests/s, sent {client['achieved_rate']:.5g}")
    return notes


def tail(spread: dict[str, Any]) -> str:
    """``p99 0.3 ms``, or the worst of too few."""
    if spread.get("p99") is not None:
        return f"p99 {show(spread['p99'], 's')}"
    return f"at most {show(spread.get('max'), 's')}"


def print_definitions(definitions: dict[str, dict[str, Any]], console: Console) -> None:
    for name, figures in definitions.items():
        say(console, f"as {name} defines them", style="bold")
        for key, value in figures.items():
            say(console, f"  {key:<40} {'–' if value is None else f'{value:.3f}'}")


def print_points(document: dict[str, Any], runs: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """A sweep or a search: one line a rate, then what follows from it."""
    console = console or stdout_console()
    if runs:
        say(console, f"{artifact_name(runs[0]['artifact'])} on {runs[0]['serve']['backend']}", style="bold")
        say(console, f"{workload_line(runs[0]['workload'] | {'requests': None})} and others")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rate", "completed", "throughput", "TTFT p50", "TTFT p99", "TPS p50", "met SLO", "", "verdict"):
        table.add_column(name, justify="right" if name else "left")
    by_id = {run["run_id"]: run for run in runs}
    for point in document["points"]:
        run = by_id.get(point["run_id"])
        if run is None:
            table.add_row(f"{point['rate']:.4g}/s", *["–"] * 6, "nothing succeeded", "–")
            continue
        m = run["metrics"]
        attained = m.get("slo_attainment")
        table.add_row(
            f"{point['rate']:.4g}/s", show(point["completed_rps"], "rps"), show(m["output_tps"] or m["output_tps_whole"], "tps"),
            *(show((m.get(name) or {}).get(level), unit) for name, level, unit in
              (("ttft_s", "p50", "s"), ("ttft_s", "p99", "s"), ("tps", "p50", "tps"))),
            "–" if attained is None else f"{attained:.1%}",
            "past saturation" if point["saturated"] else "", run["verdict"]["status"],
        )  # fmt: skip
    console.print(table)
    say(console, conclusion(document), style="bold", soft_wrap=True)


def conclusion(document: dict[str, Any]) -> str:
    """What a sweep or a search found, in a sentence."""
    if document["kind"] == "sweep":
        if document["saturated_from"] is None:
            return f"no saturation up to {document['keeps_up_to']:.4g} requests/s"
        if document["keeps_up_to"] is None:
            return f"already past saturation at {document['saturated_from']:.4g} requests/s"
        return (
            f"keeps up with {document['keeps_up_to']:.4g} requests/s, falls behind at {document['saturated_from']:.4g}"
        )
    slos = " and ".join(f"{slo} for {share:.0%} of requests" for slo, share in document["shares"].items())
    if document["best"] is None:
        return f"no rate was shown to keep {slos}"
    above = document["not_shown_above"]
    end = f"; not shown at {above:.4g}" if above is not None else ""
    return f"{document['best']:.4g} requests/s keep {slos} (95 % confidence){end}"


def print_ceiling(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    say(
        console,
        f"one client process on this machine: {document['reads_per_s']:,.0f} chunks/s, {document['requests_per_s']:,.0f} requests/s "
        f"({document['s_per_read'] * 1e6:.1f} µs a chunk, {document['s_per_request'] * 1e6:.0f} µs a request)",
        soft_wrap=True,
    )
    if peak := document.get("processor"):
        say(
            console,
            f"its processor, with {peak['threads']} thread{'s' if peak['threads'] > 1 else ''}: {peak['bandwidth'] / 1e9:.1f} GB/s,"
            f" {peak['flops'] / 1e9:,.0f} GFLOP/s",
            soft_wrap=True,
        )


def conformance_document(rows: Sequence[Any]) -> dict[str, Any]:
    """JSON-ready rows of the conformance suite."""
    return {
        "traps": [
            {
                "trap": row.trap.name,
                "endpoint": "chat" if row.trap.chat else "completions",
                "expected": row.trap.error or "ok",
                "said": row.error,
                "output_tokens": row.tokens,
                "ttft_error_s": row.ttft_error_s,
                "problems": list(row.problems),
            }
            for row in rows
        ],
        "passed": sum(not row.problems for row in rows),
        "failed": sum(bool(row.problems) for row in rows),
    }


def print_conformance(rows: Sequence[Any], console: Console | None = None) -> None:
    """One line a trap: what is true, what the client said, by how much its first token was off."""
    console = console or stdout_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trap", "what it is", "truth", "said", "tokens", "TTFT off", ""):
        table.add_column(name, justify="right" if name in ("tokens", "TTFT off") else "left")
    for row in rows:
        off = "–" if row.ttft_error_s is None else f"{row.ttft_error_s * 1e3:+.2f} ms"
        name = row.trap.name + (" (chat)" if row.trap.chat else "")
        words = "; ".join(row.problems) or "✓"
        style = "red" if row.problems else None
        told = (name, row.trap.why, row.trap.error or "ok", row.error, row.tokens, off, words)
        table.add_row(*map(cell, told), style=style)
    console.print(table)
    good = sum(not row.problems for row in rows)
    say(console, f"{good} of {len(rows)} handled truthfully", style="bold")


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
    shown = shown.map(lambda value: one_line(value) if isinstance(value, str) else value)
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def print_verdict(verdict: dict[str, Any], console: Console) -> None:
    style = {"valid": "green", "suspect": "yellow", "invalid": "red"}[verdict["status"]]
    say(console, f"verdict: {verdict['status']}", style=style)
    for doubt in verdict["reasons"]:
        say(console, f"  {doubt['message']}; {doubt['remedy']}", soft_wrap=True)


def print_quality(quality: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    low, high = quality["kl_mean_interval"]
    lines = [f"KL to the base   {quality['kl_mean']:.5f} [{low:.5f}, {high:.5f}] nats, p99 {quality['kl_p99']:.4f}"]
    low, high = quality["top1_interval"]
    lines.append(f"top-1 agreement  {quality['top1_agreement']:.2%} [{low:.2%}, {high:.2%}]")
    low, high = quality["perplexity_interval"]
    lines.append(
        f"perplexity       {quality['perplexity']:.3f} [{low:.3f}, {high:.3f}], base {quality['base_perplexity']:.3f}, "
        f"on {quality['tokens']:,} tokens"
    )
    if quality.get("engine"):
        version = f" {quality['engine_version']}" if quality.get("engine_version") else ""
        lines.append(
            f"proven in        {quality['engine']}{version}, KV cache {quality['kv_cache_dtype']}, "
            f"base in {quality['reference']}"
        )
    if layers := (quality.get("structure") or {}).get("quantized_layers"):
        structure = quality["structure"]
        fallen = structure["fallback_tensors"]
        lines.append(
            f"in the files     {layers} layers quantized, {structure['bits_per_weight']:.2f} bits per weight"
            + (
                f", {len(structure['unquantized_linears'])} left as they were"
                if structure["unquantized_linears"]
                else ""
            )
            + (f", {len(fallen)} tensors of another type than asked: {', '.join(fallen[:3])} …" if fallen else "")
        )
    if (tokenizer := quality.get("tokenizer")) and not tokenizer["same"]:
        lines.append(
            f"doubt            {tokenizer['reader']} reads {tokenizer['artifact_tokens']:,} token ids where tokenizer.json "
            f"gives {tokenizer['base_tokens']:,}, of the base too"
        )
    for task in quality.get("tasks") or []:
        error = "" if task["stderr"] is None else f" ± {task['stderr']:.4f}"
        lines.append(f"{task['task']:<16} {task['metric']} {task['value']:.4f}{error}, {task['samples']:,} questions")
    for line in lines:
        say(console, line, soft_wrap=True)


def stdout_console() -> Console:
    """Piped output is as wide as its table and has no colour."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(MIN_WIDTH, console.width))
