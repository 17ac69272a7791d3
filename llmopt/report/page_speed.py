"""Throughput against what is paid for it, and latency against load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmopt.core.metrics import parse_metric, value_of
from llmopt.report.page_chart import (
    WORDS,
    Chart,
    Spec,
    axis_title,
    basis,
    colour_of_rows,
    drawn_of,
    quantitative,
    scaled,
    spec,
    standing,
    tooltip,
)
from llmopt.report.page_rows import identity, runs_words


def front_chart(rows: Sequence[dict[str, Any]]) -> Chart:
    """Throughput against what is paid for it; the line joins those that nobody beats in the two things drawn."""
    against = ("e2e_p50", "ttft_p95", "peak_vram_bytes", "peak_rss_bytes", "kl", "cost")
    variants = {}
    for name in against:
        points = front_points(rows, name, "output_tps")
        if points:
            words = drawn_of(rows, f"throughput with {WORDS[name]}", {point["row"] for point in points})
            variants[WORDS[name]] = front_spec(points, name, "output_tps") | {"usermeta": {"about": words}}
    return Chart(
        name="front", title="Pareto front", wide=True,
        caption="Up is faster, left is less. Filled: on the front of throughput, latency, memory and quality; hollow: behind"
        " it; ✕: rejected by a limit. ◆ is the knee. The line joins those that nobody beats in the two things drawn here."
        " Bars are 95 % intervals.",
        alt=f"Scatter plot of {len(rows)} configurations, output throughput against what is paid for it.",
        variants=variants, why="No configuration has both a throughput and a latency.",
    )  # fmt: skip


def front_points(rows: Sequence[dict[str, Any]], x: str, y: str) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        across, up = row["numbers"].get(x), row["numbers"].get(y)
        if across is None or up is None:
            continue
        point = {"row": identity(row), "standing": standing(row), "rank": row.get("rank"), "more": basis(row)}
        point |= {"knee": True} if row.get("knee") else {}
        for axis, name, number in (("x", x, across), ("y", y, up)):
            point |= {
                axis + end: scaled(name, number[key])
                for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
        found.append(point)
    edge = undominated([p for p in found if p["standing"] != "rejected"])
    return [point | ({"edge": True} if id(point) in edge else {}) for point in found]


def undominated(points: Sequence[dict[str, Any]]) -> set[int]:
    """Of lower x and higher y."""
    best, found = float("-inf"), set()
    for point in sorted(points, key=lambda p: (p["x"], -p["y"])):
        if point["y"] > best:
            best = point["y"]
            found.add(id(point))
    return found


def front_spec(points: Sequence[dict[str, Any]], x: str, y: str) -> Spec:
    order = ["on the front", "behind the front", "rejected"]
    across, up = (quantitative(n, axis_title(of), scale={"zero": True, "nice": True}) for n, of in (("x", x), ("y", y)))
    thin: Spec = {"type": "rule", "color": "var(--muted)", "opacity": 0.45}
    mark: Spec = {"type": "point", "size": 110, "strokeWidth": 2, "opacity": 1}
    shared: Spec = {"field": "standing", "title": None, "legend": {"orient": "bottom"}}
    shape = shared | {"scale": {"domain": order, "range": ["circle", "circle", "cross"]}}
    colour = shared | {"scale": {"domain": order, "range": ["var(--c1)", "var(--c8)", "var(--c2)"]}}
    fill = shared | {"scale": {"domain": order, "range": ["var(--c1)", "var(--panel)", "var(--c2)"]}}
    return spec(
        points,
        {"transform": [{"filter": "datum.edge"}], "mark": {"type": "line", "interpolate": "step-after", "color": "var(--c1)",
         "strokeDash": [5, 4], "opacity": 0.7}, "encoding": {"x": across, "y": up, "order": {"field": "x"}}},
        {"transform": [{"filter": "isValid(datum.y_low)"}], "mark": thin,
         "encoding": {"x": across, "y": up | {"field": "y_low"}, "y2": {"field": "y_high"}}},
        {"transform": [{"filter": "isValid(datum.x_low)"}], "mark": thin,
         "encoding": {"y": up, "x": across | {"field": "x_low"}, "x2": {"field": "x_high"}}},
        {"mark": mark, "encoding": {"x": across, "y": up, "shape": shape, "stroke": colour, "fill": fill,
         "tooltip": {"field": "about"}}},
        {"transform": [{"filter": "datum.knee"}], "mark": {"type": "text", "text": "◆ knee", "dy": -16, "color": "var(--ink)",
         "fontWeight": 600}, "encoding": {"x": across, "y": up}},
        {"transform": [{"filter": "isValid(datum.rank) && datum.rank <= 9"}], "mark": {"type": "text", "dx": 12, "dy": 4,
         "align": "left", "color": "var(--ink)"}, "encoding": {"x": across, "y": up, "text": {"field": "rank"}}},
        height=360,
        transform=[tooltip([(axis_title(y), "y"), (axis_title(x), "x")])],
    )  # fmt: skip


def load_chart(rows: Sequence[dict[str, Any]]) -> Chart:
    """A line a configuration over the loads that were measured; the one it is judged at is large."""
    curved = [row for row in rows if len(row["curve"]) > 1]
    names = ("ttft_p95", "ttft_p50", "tpot_p50", "e2e_p50", "output_tps", "requests_per_s")
    variants = {
        WORDS[n]: load_spec(points, n, axis)
        | {"usermeta": {"about": drawn_of(curved, f"load in {axis}", {p["row"] for p in points})}}
        for n in names
        for points, axis in [load_points(curved, n)]
        if points
    }
    return Chart(
        name="load", title="Latency against load", by_row=True,
        caption="Large: the load at which a configuration is judged. Hollow: its runs are suspect or invalid; ✕: past"
        " saturation, where latency depends on how long one waits.",
        alt="Line chart of latency over load, one line for each configuration that was measured at several loads.",
        variants=variants,
        why="Every configuration was measured at one load: llmopt bench … --sweep measures a curve.",
    )  # fmt: skip


def load_points(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[dict[str, Any]], str]:
    """Of one loop alone, where several were forced together: users and requests/s are no one axis."""
    metric, statistic = parse_metric(name)
    users = any(in_users(point) for row in rows for point in row["curve"])
    found = []
    for row in rows:
        for point in row["curve"]:
            value = value_of(point["metrics"], metric, statistic)
            if value is None or point["level"] is None or in_users(point) != users:
                continue
            words = (point["load"], point["evidence"], runs_words(point["runs"]), point["status"])
            marks = {"chosen": point["chosen"], "doubted": point["status"] != "valid", "saturated": point["saturated"]}
            found.append(
                {"row": identity(row), "level": point["level"], "y": scaled(name, value), "more": ", ".join(words)}
                | {mark: True for mark, is_so in marks.items() if is_so}
            )
    return found, "users at once" if users else "requests/s asked for"


def in_users(point: dict[str, Any]) -> bool:
    return str(point["load"]).endswith(("user", "users"))


def load_spec(points: Sequence[dict[str, Any]], name: str, axis: str) -> Spec:
    levels: Spec = {"type": "log", "base": 2, "nice": False, "padding": 14}
    across = quantitative("level", axis, scale=levels, axis={"tickCount": 6, "format": "~g"})
    up = quantitative("y", axis_title(name), scale={"zero": True})
    colour = colour_of_rows()
    silent = colour | {"legend": None}
    points_encoding: Spec = {
        "x": across, "y": up, "stroke": silent, "tooltip": {"field": "about"},
        "fill": {"condition": {"test": "datum.doubted", "value": "var(--panel)"}} | silent,
        "shape": {"condition": {"test": "datum.saturated", "value": "cross"}, "value": "circle"},
        "size": {"condition": {"test": "datum.chosen", "value": 190}, "value": 60},
    }  # fmt: skip
    return spec(
        points,
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": across, "y": up, "color": colour}},
        {"mark": {"type": "point", "strokeWidth": 2, "opacity": 1}, "encoding": points_encoding},
        resolve={"legend": {"color": "independent"}},
        transform=[tooltip([(axis_title(name), "y")])],
    )
