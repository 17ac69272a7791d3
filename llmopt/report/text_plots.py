"""The Pareto front in characters, for a terminal without pictures."""

from __future__ import annotations

from typing import Any

from llmopt.core.units import show

WIDTH, HEIGHT = 64, 14
ACROSS, UP = "e2e_p50", "output_tps"
RANKS = "123456789abcdefghijklmnopqrstuvwxyz"


def front_lines(document: dict[str, Any], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Throughput over request latency, both from zero; each configuration as its rank, × rejected; none without two points.

    Where two fall on one place the better rank stands.
    """
    points = []
    for row in (*document["ranked"], *document["rejected"]):
        x, y = row["numbers"].get(ACROSS), row["numbers"].get(UP)
        if x is not None and y is not None:
            points.append((x["value"], y["value"], sign(row.get("rank"))))
    if len(points) < 2:
        return []
    right, top = max(x for x, _, _ in points) or 1.0, max(y for _, y, _ in points) or 1.0
    grid = [[" "] * width for _ in range(height)]
    for x, y, mark in reversed(points):
        grid[round((1 - y / top) * (height - 1))][round(x / right * (width - 1))] = mark
    highest = show(top, "tps")
    labels = [highest, *[""] * (height - 2), "0"]
    lines = [f"{text:>{len(highest)}} │{''.join(cells).rstrip()}" for text, cells in zip(labels, grid, strict=True)]
    pad, end = " " * len(highest), show(right, "s")
    lines.append(f"{pad} └{'─' * width}")
    lines.append(f"{pad}  0{end:>{width - 1}}")
    lines.append(f"{pad}  output throughput over request latency p50; by rank, × rejected")
    return lines


def sign(rank: int | None) -> str:
    if rank is None:
        return "×"
    return RANKS[rank - 1] if rank <= len(RANKS) else "+"
