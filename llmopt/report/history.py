"""A case's history for the terminal: each metric as a plot of characters, and the steps in words."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rich.console import Console

from llmopt.core.units import show
from llmopt.report.table import hardware_words, workload_line
from llmopt.report.terminal import print_lines, say, stdout_console

WIDEST, HEIGHT, NARROWEST = 100, 10, 12
COLUMNS_A_POINT = 4
SHORT = 10  # characters of a commit


def print_history(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    say(console, heading(document), style="bold", soft_wrap=True)
    for series in document["series"]:
        sessions = len(series["points"])
        say(console, f"{series['metric']}, {sessions} session{'s' if sessions > 1 else ''}", style="bold")
        for line in plot(series, min(console.width, WIDEST)):
            say(console, line)
        print_lines(step_lines(series), console)
    for note in notes(document):
        say(console, note, style="dim", soft_wrap=True)


def heading(document: dict[str, Any]) -> str:
    hardware = hardware_words(document["machine"])
    return f"{document['case']['label']} · {workload_line(document['case']['workload'])} · {hardware}"


def plot(series: dict[str, Any], width: int) -> list[str]:
    """Sessions in their order, • each (◦ suspect), levels as lines, steps numbered below; none for a single session."""
    points, places = series["points"], [step["place"] for step in series["steps"]]
    values: list[float] = [point["value"] for point in points]
    if len(values) < 2:
        return []
    low, high = min(values), max(values)
    if low == high:
        return [f"always {show(low, series['unit'])}"]
    labels = [show(high, series["unit"]), show(low, series["unit"])]
    margin = max(map(len, labels))
    across = max(NARROWEST, min(width - margin - 3, COLUMNS_A_POINT * len(values)))

    def column(place: float) -> int:
        return round(place * (across - 1) / (len(values) - 1))

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (HEIGHT - 1))

    grid = [[" "] * across for _ in range(HEIGHT)]
    edges = [0, *places, len(values)]
    for start, end in pairwise(edges):
        part = values[start:end]
        for place in range(column(start), column(end - 1) + 1):
            grid[row(sum(part) / len(part))][place] = "─"
    for place, point in enumerate(points):
        grid[row(point["value"])][column(place)] = "◦" if point["suspect"] else "•"
    sides = [labels[0], *[""] * (HEIGHT - 2), labels[1]]
    lines = [f"{text:>{margin}} │{''.join(cells).rstrip()}" for text, cells in zip(sides, grid, strict=True)]
    axis = ["─"] * across
    for number, place in enumerate(places, 1):
        axis[column(place - 0.5)] = str(number)[-1]
    first, last = points[0]["started_at"][:10], points[-1]["started_at"][:10]
    ends = f"{first}{last:>{across - len(first)}}" if across > len(first) + len(last) else f"{first} – {last}"
    ends = first if first == last else ends
    return [*lines, f"{' ' * margin} └{''.join(axis)}", f"{' ' * margin}  {ends}"]


def step_lines(series: dict[str, Any]) -> list[str]:
    if not series["steps"]:
        points = series["points"]
        return ["no step was found"] if len(points) >= 6 else [too_few(len(points))]
    return [f"{number}. {step_words(series, step)}" for number, step in enumerate(series["steps"], 1)]


def step_words(series: dict[str, Any], step: dict[str, Any]) -> str:
    """``2026-05-04: +5.2% [+4.1%, +6.3%], worse: 10.0 ms → 10.5 ms; at commit 1a2b3c4d5e, after 9f8e7d6c5b``."""
    unit = series["unit"]
    change, interval = size_words(series, step)
    text = f"{step['date'][:10]}: {change} {interval}, {'worse' if step['worse'] else 'better'}: "
    text += f"{show(step['before'], unit)} → {show(step['after'], unit)}; {commit_words(step)}"
    return "; ".join([text, *step["also_changed"]])


def size_words(series: dict[str, Any], step: dict[str, Any]) -> tuple[str, str]:
    """How far it went, and the interval of that."""
    form = "{:+.4g}" if series["absolute"] else "{:+.1%}"
    change, low, high = (form.format(step[name]) for name in ("change", "low", "high"))
    return change, f"[{low}, {high}]"


def commit_words(step: dict[str, Any]) -> str:
    """Which commit came with the step: of those between the two sessions that were measured, only the last is known."""
    now, before = short(step["commit"]), short(step["previous_commit"])
    if not now:
        return "no commit is known"
    if now == before:
        return f"the commit stayed {now}: look at the machine, the engine or what was served"
    return f"at commit {now}" + (f", after {before}" if before else "")


def short(commit: str) -> str:
    return commit[:SHORT] + ("+" if commit.endswith("+") else "")


def notes(document: dict[str, Any]) -> list[str]:
    found = [f"{count} runs are left out: {why}" for why, count in document["left_out"].items()]
    found += [f"baseline {one['name']}: accepted {one['accepted_at'][:10]}" for one in document["baselines"]]
    if any(series["steps"] for series in document["series"]):
        found.append("Intervals are of 95 %, by the noise of the sessions on both sides of a step.")
    if any(point["commit"].endswith("+") for series in document["series"] for point in series["points"]):
        found.append("A + behind a commit: files differed from it.")
    return found


def too_few(sessions: int) -> str:
    return f"{sessions} session{'s are' if sessions > 1 else ' is'} too few for a step: six or more"
