"""results.json as Markdown: one table for each case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLOSED = ["peer", "TTFT reported", "TTFT true", "error p50", "error p99"]
PLAN = ["TTFT true from plan", "error from plan p50", "error from plan p99", "own delay p99"]
REST = ["TPOT error", "ok", "failed", "arrivals/s true", "rate reported", "tokens reported / true", "CPU s", "wall s"]


def table(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    lines = ["# Load clients against a server that knows the truth", ""]
    lines += [f"{document['date']}, {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}.", ""]
    lines += ["Times in ms as p50 / p99. What each column means: README.md.", ""]
    names = [f"{name} {about['version']}" for name, about in document["peers"].items()]
    lines += [f"Versions: {', '.join(names)}.", ""]
    for case in document["cases"].values():
        runs = [run for run in document["runs"] if run["case"] == case["name"]]
        lines += [f"## {case['name']}: {case['about']}", "", *case_table(case, runs), ""]
    return "\n".join(lines)


def case_table(case: Mapping[str, Any], runs: list[Mapping[str, Any]]) -> list[str]:
    header = CLOSED + (PLAN if case["rate"] is not None else []) + REST
    lines = [row(header), row(["---"] + ["---:"] * (len(header) - 1))]
    for run in runs:
        cells = case_cells(case, run) if "reported" in run else [run["peer"], f"no result: {run['problem']}"]
        lines.append(row(cells + [""] * (len(header) - len(cells))))
    return lines


def case_cells(case: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    said, true, process = run["reported"], run["truth"], run["process"]
    poisson = case["rate"] is not None and run["arrival"] == "Poisson"
    cells = [run["peer"] + (" (Poisson)" if poisson else ""), pair(said, "ttft"), pair(true, "ttft")]
    cells += [signed_ms(run["ttft_service_p50_error_s"]), signed_ms(run["ttft_service_p99_error_s"])]
    if case["rate"] is not None:
        plan = [signed_ms(run["ttft_plan_p50_error_s"]), signed_ms(run["ttft_plan_p99_error_s"])]
        cells += [f"~ {cell}" if poisson else cell for cell in (pair(true, "ttft_from_plan"), *plan)]
        cells += [ms(said["send_delay_p99_s"])]
    cells += [tpot_error(said, true), number(said["requests_ok"]), failed(said, true)]
    cells += [number(true.get("arrival_rate_rps"), ".1f"), number(said["achieved_rate_rps"], ".1f")]
    cells += [f"{number(said['output_tokens'])} / {number(true.get('output_tokens'))}"]
    return [*cells, number(process["cpu_s"], ".1f"), number(process["wall_s"], ".1f")]


def failed(said: Mapping[str, Any], true: Mapping[str, Any]) -> str:
    """Beside what the peer says, what the server knows, where it ended something else than whole."""
    others = sum(count for ended, count in true.get("ended", {}).items() if ended != "whole")
    return number(said["requests_failed"]) + (f" (true: {others})" if others else "")


def tpot_error(said: Mapping[str, Any], true: Mapping[str, Any]) -> str:
    if said["tpot_p50_s"] is None or true.get("tpot_p50_s") is None:
        return "–"
    return f"{(said['tpot_p50_s'] - true['tpot_p50_s']) * 1000:+.3f}"


def pair(values: Mapping[str, Any], name: str) -> str:
    return f"{ms(values.get(f'{name}_p50_s'))} / {ms(values.get(f'{name}_p99_s'))}"


def ms(value: float | None) -> str:
    return "–" if value is None else f"{value * 1000:.1f}"


def signed_ms(value: float | None) -> str:
    return "–" if value is None else f"{value * 1000:+.1f}"


def number(value: float | None, form: str = "d") -> str:
    return "–" if value is None else format(value, form)


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
