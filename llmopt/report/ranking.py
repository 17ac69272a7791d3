"""The lines of a ranking that the terminal and Markdown share: reasons, before and after, cost, what binds, load curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmopt.core.metrics import METRICS, parse_metric, value_of
from llmopt.core.units import show

# What is said of a change, in this order; the rest is in the document.
TOLD = {"output_tps": "throughput", "ttft_p50": "TTFT p50", "ttft_p95": "TTFT p95", "tpot_p50": "TPOT p50",
        "peak_vram_bytes": "VRAM", "peak_rss_bytes": "RAM", "cost": "cost"}  # fmt: skip
CURVES_SHOWN = 3
CURVE = ("output_tps", "requests_per_s", "ttft_p50", "ttft_p95", "tpot_p50", "slo_attainment")


def row_lines(row: dict[str, Any]) -> list[str]:
    """All that is said of one configuration: why it stands where it does, or why it does not."""
    found = [*row.get("reasons", ()), *row.get("because", ())]
    if row.get("rank") is not None:
        found += [line for line in (beats_line(row), *baseline_lines(row), cost_line(row), month_line(row)) if line]
    return found + [diagnosis_line(d) for d in row.get("diagnosis") or ()]


def beats_line(row: dict[str, Any]) -> str | None:
    found = row.get("beats_next")
    if not found or found["probability"] is None:
        return None
    return f"better than {found['label']} in {found['in']} with probability {found['probability']:.2f} (over {found['over']})"


def baseline_lines(row: dict[str, Any]) -> list[str]:
    """Before and after at one load; then, where they are judged at others, each at its own."""
    found = row.get("against_baseline")
    if not found:
        return []
    name = found["label"] + (f" ({', '.join(found['unlike'])}: forced)" if found["unlike"] else "")
    own, parts, lines = found["own_points"], change_parts(found["changes"]), []
    if found["load"] is None:
        parts.insert(0, "no load was measured of both")
    where = f", both at {found['load']}" if own and found["load"] else ""
    if parts:
        lines.append(f"against {name}{where}: {', '.join(parts)}")
    if own and (apart := change_parts(own["changes"], quality=False)):
        loads = f"{own['load_after']} against its {own['load_before']}"
        lines.append(f"against {found['label']}, each at its own point ({loads}): {', '.join(apart)}")
    return lines


def change_parts(changes: dict[str, Any], *, quality: bool = True) -> list[str]:
    parts = [f"{word} {factor(changes[name])}" for name, word in TOLD.items() if changes.get(name, {}).get("ratio")]
    kl = changes.get("kl") if quality else None
    return parts + ([f"KL {kl['difference']:+.4f}"] if kl else [])


def factor(change: dict[str, Any]) -> str:
    """``×1.74 [1.70, 1.79]``; without an interval where either side has a single run."""
    text = f"×{change['ratio']:.2f}"
    return text if change["low"] is None else f"{text} [{change['low']:.2f}, {change['high']:.2f}]"


def cost_line(row: dict[str, Any]) -> str | None:
    cost = row.get("cost")
    if not cost:
        return None
    if cost["per_1m_output_tokens"] is None:
        return f"cost: not known at {cost['at']}, which has no steady throughput"
    parts = [f"{cost['per_1m_output_tokens']:.4g} per 1M output tokens"]
    if cost["per_1m_tokens_blended"] is not None:
        parts.append(f"or {cost['per_1m_tokens_blended']:.4g} per 1M tokens in and out")
    return f"cost at {cost['at']}: {' '.join(parts)} (the same bill, laid on either)"


def month_line(row: dict[str, Any]) -> str | None:
    month = (row.get("cost") or {}).get("monthly")
    if not month:
        return None
    machines = f"{month['machines']} machine{'s' if month['machines'] > 1 else ''}"
    even = month["break_even_tokens"]
    end = "no volume makes one machine cheaper" if even is None else f"one machine pays from {even:,.0f} tokens on"
    return (
        f"a month of {month['monthly_tokens']:,.0f} tokens: {machines} at {month['utilisation']:.0%} utilisation cost"
        f" {month['self_hosted']:,.2f}, the API {month['api']:,.2f}: {month['cheaper']} is cheaper; {end}"
    )


def diagnosis_line(found: dict[str, Any]) -> str:
    return f"{found['code']}: {found['words']}; try {found['next']}"


def relaxation_lines(document: dict[str, Any]) -> list[str]:
    """What must give, where nothing passes."""
    found = document.get("relaxation")
    if not found:
        return []
    lines = []
    if document["rejected_by"]:
        counts = sorted(document["rejected_by"].items(), key=lambda item: (-item[1], item[0]))
        total = document["rejected_in_all"]
        lines.append("rejects, of all: " + ", ".join(f"{text} {count:,} of {total:,}" for text, count in counts))
    if found["binding"]:
        lines.append(f"binds: {', '.join(found['binding'])} (dropped alone, something passes)")
    lines += [each["words"] for each in found["each"]]
    if found["joint"] and len(found["joint"]["changes"]) > 1:
        lines.append(f"the least together: {found['joint']['words']}")
    return lines + [f"{text}: no run here tells" for text in found["never_known"]]


def curves(document: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """The load curves of the first rows that have several loads: a title, and a table with its header."""
    rows = [r for r in (*document["ranked"], *document["rejected"]) if len(r["curve"]) > 1]
    return [(r["label"], curve_table(r["curve"])) for r in rows[:CURVES_SHOWN]]


def curve_table(points: Sequence[dict[str, Any]]) -> list[list[str]]:
    known = [name for name in CURVE if any(cell_value(p, name) is not None for p in points)]
    lines = [["load", *known, "runs", ""]]
    for point in points:
        figures = [show(cell_value(point, name), parse_metric(name)[0].unit) for name in known]
        marks = ["◀" if point["chosen"] else "", "past saturation" if point["saturated"] else ""]
        marks += [point["status"]] if point["status"] != "valid" else []
        lines.append([point["load"], *figures, str(point["runs"]), ", ".join(m for m in marks if m)])
    return lines


def cell_value(point: dict[str, Any], name: str) -> float | None:
    metric, statistic = parse_metric(name)
    return value_of(point["metrics"], METRICS[metric.name], statistic)


def more_lines(document: dict[str, Any]) -> list[str]:
    """What ``--top`` left out."""
    parts = []
    for what in ("ranked", "rejected"):
        missing = document[f"{what}_in_all"] - len(document[what])
        parts += [f"{missing:,} more {what}"] if missing > 0 else []
    return [f"… and {' and '.join(parts)}: --top 0 shows all"] if parts else []
