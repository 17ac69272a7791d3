"""results.json as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

HEADER = [
    "case", "library", "measured", "rounds", "load", "bare s", "llmopt s", "start-up s", "ratio", "bare MiB", "llmopt MiB", "ratio",
    "KL bare", "KL llmopt", "best library", "top-1 llmopt", "MB",
]  # fmt: skip


def table(document: Mapping[str, Any]) -> str:
    machine, cases = document["machine"], document["cases"]
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    lines = ["# Quantizations beside the bare libraries", ""]
    lines += [f"{machine['cores']} cores; rows that were measured on different days saw different loads.", ""]
    lines += [
        f"Model {document['model']}, {document['samples']} samples of {document['sample_tokens']} tokens, medians of "
        "the rounds; load is the machine's average at the end of a case; llmopt's start-up (checks, calibration, forecast: "
        "what --dry-run takes) is taken off its time before the ratio. What each column means: README.md.",
        "",
        f"Versions: {versions}.",
        "",
    ]
    lines += [row(HEADER), row(["---"] * 3 + ["---:"] * (len(HEADER) - 3))]
    return "\n".join([*lines, *(row(cells(name, case, document)) for name, case in cases.items())]) + "\n"


def cells(name: str, case: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    problems = [f"{s}: {r[s]['problem']}" for r in case["rounds"] for s in ("bare", "llmopt") if "problem" in r[s]]
    if problems:
        return [name, case["library"], *problems[:1], *[""] * (len(HEADER) - 3)]
    bare_s, ours_s = median(case, "bare", "wall_s"), median(case, "llmopt", "wall_s")
    bare_b, ours_b = median(case, "bare", "peak_bytes"), median(case, "llmopt", "worker_peak_bytes")
    best = best_library(case["group"], document)
    return [
        name, case["library"], case["date"], str(len(case["rounds"])), f"{case['load_average']:.1f}",
        f"{bare_s:.1f}", f"{ours_s:.1f}", f"{case['startup_s']:.1f}", f"{(ours_s - case['startup_s']) / bare_s:.2f}",
        f"{bare_b / 2**20:.0f}", f"{ours_b / 2**20:.0f}", f"{ours_b / bare_b:.2f}",
        spread(figures(case, "bare", "kl_mean")), spread(figures(case, "llmopt", "kl_mean")), best,
        share(figures(case, "llmopt", "top1")), f"{case['weight_bytes']['llmopt'] / 1e6:.2f}",
    ]  # fmt: skip


def best_library(group: str, document: Mapping[str, Any]) -> str:
    """The bare library with the lowest median KL of those that make this quantization."""
    found = [
        (statistics.median(kl), case["library"])
        for case in document["cases"].values()
        if case["group"] == group and (kl := figures(case, "bare", "kl_mean"))
    ]
    return f"{number(min(found)[0])} {min(found)[1]}" if found else "–"


def median(case: Mapping[str, Any], side: str, field: str) -> float:
    return statistics.median(r[side][field] for r in case["rounds"])


def figures(case: Mapping[str, Any], side: str, name: str) -> list[float]:
    """Of every round that was compared with the base."""
    return [r[side]["quality"][name] for r in case["rounds"] if name in r[side].get("quality", {})]


def spread(values: list[float]) -> str:
    """The median, and the range where the rounds did not all give the same."""
    if not values or number(min(values)) == number(max(values)):
        return number(values[0] if values else None)
    return f"{number(statistics.median(values))} ({number(min(values))}–{number(max(values))})"


def share(values: list[float]) -> str:
    return f"{statistics.median(values):.1%}" if values else "–"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def row(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"
