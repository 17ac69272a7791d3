"""The ranked table: one list of columns for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llmopt.core.domain import Workload
from llmopt.core.metrics import parse_metric, value_of
from llmopt.core.units import show


@dataclass(frozen=True, kw_only=True)
class Column:
    """``cell`` turns one row of the document into text; where the terminal is narrow, the highest ``drop`` goes first."""

    title: str
    cell: Callable[[dict[str, Any]], str]
    right: bool = True
    drop: int = 0
    narrow: Column | None = None  # what stands here where even that does not fit


def artifact_name(artifact: dict[str, Any]) -> str:
    """With its layout where another is usual; records of before llmopt knew layouts have the quantization alone."""
    return str(artifact.get("label") or artifact["quantization"])


def metric_cell(name: str) -> Callable[[dict[str, Any]], str]:
    metric, statistic = parse_metric(name)
    return lambda row: show(value_of(row["metrics"], metric, statistic), metric.unit)


def with_interval(name: str) -> Callable[[dict[str, Any]], str]:
    metric, statistic = parse_metric(name)

    def cell(row: dict[str, Any]) -> str:
        value, bounds = value_of(row["metrics"], metric, statistic), row["intervals"].get(name)
        if value is None or bounds is None:
            return show(value, metric.unit)
        number, _, unit = show(value, metric.unit).partition(" ")
        low, high = (show(bounds[end], metric.unit).partition(" ")[0] for end in ("low", "high"))
        return f"{number} [{low}–{high}] {unit}"

    return cell


def rank_cell(row: dict[str, Any]) -> str:
    return f"{row['rank']}{'' if row['on_front'] else ' ·'}{' ◆' if row.get('knee') else ''}"


def tie_cell(rows: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], str]:
    """The places that a tie leaves open: ``1–3``."""
    places: dict[int, list[int]] = {}
    for row in rows:
        if row["tie_group"] is not None:
            places.setdefault(row["tie_group"], []).append(row["rank"])

    def cell(row: dict[str, Any]) -> str:
        mine = places.get(row["tie_group"], [row["rank"]])
        return f"{min(mine)}–{max(mine)}" if len(mine) > 1 else ""

    return cell


def columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The headline four of every table (TTFT, TPS, throughput, memory), with size and quality beside them."""
    video = any(row["metrics"].get("peak_vram_bytes") for row in rows)
    memory = ("VRAM", "peak_vram_bytes") if video else ("RAM (no GPU)", "peak_rss_bytes")
    groups = [row["tie_group"] for row in rows if row["tie_group"] is not None]
    ties = [Column(title="ties", cell=tie_cell(rows))] if len(set(groups)) < len(groups) else []
    loads = (
        [Column(title="load", cell=lambda r: str(r["point"]["load"]))]
        if len({r["point"]["load"] for r in rows}) > 1
        else []
    )
    apart = [Column(title="options", cell=options_cell, right=False, drop=6)] if any(map(options_cell, rows)) else []
    priced = [Column(title="per 1M out", cell=metric_cell("cost"))] if any(row.get("cost") for row in rows) else []
    return [
        Column(title="#", cell=rank_cell),
        *ties,
        Column(title="quantization", cell=lambda r: artifact_name(r["case"]["artifact"]), right=False),
        Column(title="engine", cell=lambda r: str(r["case"]["serve"]["backend"]), right=False),
        *apart,
        *loads,
        Column(
            title="throughput [95 %]",
            cell=with_interval("output_tps"),
            narrow=Column(title="throughput", cell=metric_cell("output_tps")),
        ),
        Column(title="req/s", cell=lambda r: metric_cell("requests_per_s")(r).removesuffix(" req/s"), drop=4),
        Column(title="TTFT p50", cell=metric_cell("ttft_p50")),
        Column(title="TTFT p95", cell=metric_cell("ttft_p95"), drop=1),
        Column(title="TPS p50", cell=lambda r: metric_cell("tps_p50")(r).removesuffix(" tok/s")),
        Column(title=memory[0], cell=metric_cell(memory[1])),
        *priced,
        Column(title="bits/w", cell=bits_cell, drop=3),
        Column(title="KL", cell=metric_cell("kl")),
        Column(title="top-1", cell=metric_cell("top1"), drop=5),
        Column(title="verdict", cell=lambda r: str(r["verdict"]["status"]), right=False, drop=2),
    ]


def bits_cell(row: dict[str, Any]) -> str:
    bits = row["case"]["artifact"].get("bits_per_weight")
    return "–" if bits is None else f"{bits:.2f}"


def label(row: dict[str, Any]) -> str:
    return row.get("label") or f"{artifact_name(row['case']['artifact'])} on {row['case']['serve']['backend']}"


def options_cell(row: dict[str, Any]) -> str:
    """What tells it from others of its name."""
    name = f"{artifact_name(row['case']['artifact'])} on {row['case']['serve']['backend']}"
    return label(row).removeprefix(name).removeprefix(", ")


def hardware_words(machine: dict[str, Any]) -> str:
    """GPUs, else the processor with its cores, which an imported run does not tell."""
    cores = f", {machine['logical_cores']} cores" if machine["logical_cores"] is not None else ""
    return ", ".join(machine["gpus"]) or f"{machine['cpu']}{cores}"


def title(document: dict[str, Any]) -> str:
    w, m = document["workload"], document["machine"]
    hardware = hardware_words(m)
    points = [p for row in (*document.get("ranked", ()), *document.get("rejected", ())) for p in row["curve"]]
    levels = {p["level"]: p["load"] for p in points if p["level"] is not None}
    line = workload_line(w)
    if document.get("forced"):
        line = "unlike workloads, forced together"
    elif len(levels) > 1:
        single = Workload(**{f.name: w[f.name] for f in fields(Workload) if f.name in w}).shape
        loop = f"{'closed' if w.get('load', 'closed') == 'closed' else 'open'} loop, {levels[min(levels)]} to {levels[max(levels)]}"
        line = workload_line(w | {"requests": None, "duration_s": None, "until": ""}).replace(single, loop)
    return f"{document['base']} · {line} · {hardware}"


def workload_line(workload: dict[str, Any]) -> str:
    """``64 → 32 tokens, closed loop of 4, 64 requests``."""
    w = Workload(**{field.name: workload[field.name] for field in fields(Workload) if field.name in workload})
    lengths = f"{w.input_lengths or w.input_tokens} → {w.output_lengths or w.output_tokens} tokens"
    end = [f"{w.requests} requests"] if w.requests else []
    end += [f"{w.duration_s:g} s"] if w.duration_s else []
    end += [f"until {w.until}"] if w.until else []
    return ", ".join([w.dataset or lengths, w.shape, *end])


def goal_line(document: dict[str, Any]) -> str:
    limits = ", ".join(limit["text"] for limit in document["goal"]["limits"])
    return f"best {document['goal']['optimize']}" + (f" with {limits}" if limits else "")


def footnotes(document: dict[str, Any]) -> list[str]:
    notes = []
    runs = {row["runs"] for row in document["ranked"]}
    over = {i["over"] for row in document["ranked"] for i in row["intervals"].values() if i}
    if runs:
        counts = "–".join(str(n) for n in sorted({min(runs), max(runs)}))
        notes.append(f"Figures are medians of {counts} run(s), memory the highest peak.")
        notes.append(
            f"Intervals are of 95 %, over {' and '.join(sorted(over))}."
            if over
            else "No interval is known: run each three times."
        )
    if any(not row["on_front"] for row in document["ranked"]):
        notes.append("· behind the Pareto front of throughput, latency, memory and KL.")
    if any(row["knee"] for row in document["ranked"]):
        notes.append("◆ the knee of the front.")
    if any(len(row["curve"]) > 1 for row in document["ranked"]):
        notes.append(
            "Figures are those of one load of each curve, the one marked ◀ there: all limits are judged at it."
        )
    if document["forced"]:
        notes.append(
            "Forced: these runs are of unlike workloads, loops, models or machines, and their ranks compare unlike things."
        )
    if document["left_out"]:
        parts = ", ".join(f"{count:,} of {what}" for what, count in document["left_out"].items())
        unlike = any(
            "other" in what for what in document["left_out"]
        )  # the rest is superseded, and left out at any rate
        way = " --force ranks unlike runs together." if unlike else ""
        notes.append(f"{document['runs_left_out']:,} run(s) are left out: {parts}.{way}")
    if document["copies"]:
        notes.append(f"{document['copies']:,} record(s) lie there twice, and count once.")
    if document["files_skipped"]:
        files = "; ".join(f"{s['file']}: {s['reason']}" for s in document["skipped"][:3])
        notes.append(f"{document['files_skipped']:,} file(s) skipped: {files}")
    return notes
