"""A case's history as a page: each metric over its sessions, with the levels between its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from llmopt.core.units import show
from llmopt.report.history import commit_words, heading, notes, short, size_words, step_lines
from llmopt.report.page_chart import WORDS, Chart, Spec, axis_title, quantitative, scaled, spec
from llmopt.report.page_timelines import Timeline


def history_parts(document: dict[str, Any], _: Mapping[str, Timeline]) -> dict[str, Any]:
    """What the template shows."""
    found = [step_row(series, step) for series in document["series"] for step in series["steps"]]
    lines = {line for series in document["series"] for line in step_lines(series)}
    return {
        "kind": "history",
        "heading": document["case"]["label"],
        "subtitle": heading(document).removeprefix(f"{document['case']['label']} · "),
        "goal": "",
        "found": found,
        "nothing": "" if found else "; ".join(sorted(lines)),
        "charts": [history_chart(series) for series in document["series"]],
        "notes": notes(document),
        "rows": [],
        "names": {},
    }


def step_row(series: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    change, interval = size_words(series, step)
    unit = series["unit"]
    return {
        "metric": series["metric"],
        "date": step["date"][:10],
        "change": change,
        "interval": interval,
        "before": show(step["before"], unit),
        "after": show(step["after"], unit),
        "commit": commit_words(step),
        "worse": step["worse"],
        "also_changed": step["also_changed"],
    }


def history_chart(series: dict[str, Any]) -> Chart:
    name, points = series["metric"], series["points"]
    steps = ", ".join(f"{s['date'][:10]} {size_words(series, s)[0]}" for s in series["steps"]) or "none"
    return Chart(
        name=name.replace("_", "-"), title=WORDS.get(name, name), wide=True,
        caption="Each point is a session, in their order; hollow: one of its runs is suspect. Lines are the levels between steps.",
        alt=f"{name} over {len(points)} sessions from {points[0]['started_at'][:10]} to {points[-1]['started_at'][:10]}; steps: {steps}.",
        variants={"sessions": history_spec(series)},
    )  # fmt: skip


def history_spec(series: dict[str, Any]) -> Spec:
    name, points = series["metric"], series["points"]
    edges = [0, *(step["place"] for step in series["steps"]), len(points)]
    values = [point_value(name, series["unit"], number, point) for number, point in enumerate(points, 1)]
    for start, end in pairwise(edges):
        level = sum(point["value"] for point in points[start:end]) / (end - start)
        values.append({"from": start + 0.5, "to": end + 0.5, "level": scaled(name, level)})
    values += [{"step": place + 0.5} for place in edges[1:-1]]
    across: Spec = {"field": "session", "type": "quantitative", "title": "session", "axis": {"tickMinStep": 1},
                    "scale": {"domain": [0.5, len(points) + 0.5], "nice": False}}  # fmt: skip
    up = quantitative("value", axis_title(name))
    fill: Spec = {"condition": {"test": "datum.suspect", "value": "var(--panel)"}, "value": "var(--c1)"}
    return spec(
        values,
        layer("step", {"type": "rule", "strokeDash": [4, 4], "color": "var(--c2)"}, x=across | {"field": "step"}),
        layer("level", {"type": "rule", "strokeWidth": 2, "color": "var(--c3)"},
              x=across | {"field": "from"}, x2={"field": "to"}, y=up | {"field": "level"}),
        layer("value", {"type": "point", "size": 60, "stroke": "var(--c1)", "filled": True, "strokeWidth": 1.5},
              x=across, y=up, fill=fill, tooltip={"field": "about"}),
    )  # fmt: skip


def layer(field: str, mark: Spec, **encoding: Spec) -> Spec:
    """Of the values that have this field: points, levels and steps lie in one list."""
    return {"transform": [{"filter": f"isValid(datum.{field})"}], "mark": mark, "encoding": encoding}


def point_value(name: str, unit: str, number: int, point: dict[str, Any]) -> dict[str, Any]:
    words: Sequence[str] = (
        f"{point['started_at'][:16].replace('T', ' ')}: {show(point['value'], unit)}",
        f"{len(point['runs'])} run{'s' if len(point['runs']) > 1 else ''}{', suspect' if point['suspect'] else ''}",
        f"commit {short(point['commit'])}" if point["commit"] else "no commit is known",
        f"engine {point['version']}" if point["version"] else "",
    )
    return {
        "session": number,
        "value": scaled(name, point["value"]),
        "suspect": point["suspect"],
        "about": "\n".join(word for word in words if word),
    }
