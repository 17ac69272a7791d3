"""What a configuration costs: its distance to the base, memory, money."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmopt.core.units import show
from llmopt.report.page_chart import Chart, Spec, about, drawn_of, quantitative, short, spec
from llmopt.report.page_rows import identity
from llmopt.report.table import artifact_name

PARTS = {"weights_bytes": "weights", "kv_cache_bytes": "KV cache", "activation_bytes": "activations", "rest_bytes": "rest",
         "unexplained_bytes": "not told by the engine"}  # fmt: skip

LEAST_PLOT, NAME_LIMIT, LETTER, LINE = (
    (200.0, 270.0),
    130,
    6.5,
    14.0,
)  # pixels, at the narrowest that charts stand in pairs


def quality_chart(rows: Sequence[dict[str, Any]], limits: Sequence[dict[str, Any]]) -> Chart:
    points = quality_points(rows, max((x["bound"] for x in limits if x["metric"] == "kl"), default=0.0))
    return Chart(
        name="quality", title="Quality against bits",
        caption="KL divergence of the next-token distribution from the unquantized base; lower is closer. Bars are 95 %"
        " intervals over windows of text; the dashed line is the limit. A name that would stand on another is left to its tooltip.",
        alt="Scatter plot of KL divergence over bits per weight.",
        variants={"KL": quality_spec(points, limits) | {"usermeta": {"about": drawn_of(rows, "KL and known bits", {p["row"] for p in points})}}}
        if points else {},
        why="No configuration has both a measured KL and known bits: llmopt quality measures it.",
    )  # fmt: skip


def quality_points(rows: Sequence[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """By rising bits; ``above`` says where a name stands, and is missing where it would stand on another."""
    found = []
    for row in rows:
        bits, number = row["case"]["artifact"].get("bits_per_weight"), row["numbers"].get("kl")
        if bits is not None and number is not None:
            words = (f"{bits:.2f} bits per weight", f"KL {number['value']:.4f} nats")
            found.append(
                {"row": identity(row), "label": artifact_name(row["case"]["artifact"]), "x": bits, "y": number["value"],
                 "low": number["low"], "high": number["high"], "about": about(row, *words)}
            )  # fmt: skip
    found.sort(key=lambda point: (point["x"], point["y"]))
    place_names(found, limit)
    return found


def place_names(points: Sequence[dict[str, Any]], limit: float) -> None:
    """A name above its point, else below it, else none: of what would overlap on a picture of the least width, in pixels."""
    left = min((p["x"] for p in points), default=0.0)
    across = max((p["x"] - left for p in points), default=0.0) or 1.0
    up = max((p["high"] or p["y"] for p in points), default=0.0)
    up = max(up, limit) or 1.0
    placed: list[tuple[float, float, float]] = []
    seen = set[tuple[str, float, float]]()
    for point in points:
        key = (point["label"], point["x"], point["y"])
        if key in seen:  # one name for all its servers
            continue
        seen.add(key)
        x, y = (point["x"] - left) / across * LEAST_PLOT[0], (1 - point["y"] / up) * LEAST_PLOT[1]
        wide = min(NAME_LIMIT, LETTER * len(point["label"])) + 8
        for above, at in ((True, y - 8), (False, y + 10)):
            if all(x + wide < a or b < x or abs(at - other) > LINE for a, b, other in placed):
                placed.append((x, x + wide, at))
                point["above"] = above
                break


def quality_spec(points: Sequence[dict[str, Any]], limits: Sequence[dict[str, Any]]) -> Spec:
    bounds = [x for x in limits if x["metric"] == "kl" and x["statistic"] is None]
    lines = [{"mark": {"type": "rule", "strokeDash": [6, 4], "color": "var(--c2)", "strokeWidth": 1.5},
              "data": {"values": [{"bound": x["bound"], "about": f"limit {x['text']}"}]},
              "encoding": {"y": {"field": "bound", "type": "quantitative"}, "tooltip": {"field": "about"}}} for x in bounds]  # fmt: skip
    across = quantitative("x", "bits per weight, counted in the files", scale={"zero": False, "padding": 70})
    up = quantitative("y", "KL to the base (nats)", scale={"zero": True})
    name: Spec = {"type": "text", "align": "left", "dx": 9, "color": "var(--ink)", "limit": NAME_LIMIT}
    return spec(
        points, *lines,
        {"transform": [{"filter": "isValid(datum.low)"}], "mark": {"type": "rule", "color": "var(--muted)"},
         "encoding": {"x": across, "y": up | {"field": "low"}, "y2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 110, "opacity": 1, "color": "var(--c3)"},
         "encoding": {"x": across, "y": up, "tooltip": {"field": "about"}}},
        *({"transform": [{"filter": f"datum.above === {'true' if above else 'false'}"}], "mark": name | {"dy": -8 if above else 10},
           "encoding": {"x": across, "y": up, "text": {"field": "label"}}} for above in (True, False)),
    )  # fmt: skip


def memory_chart(rows: Sequence[dict[str, Any]]) -> Chart:
    values = [part for row in rows for part in memory_parts(row)]
    order = list(PARTS.values())
    parts: Spec = {"field": "part", "title": None, "sort": order, "legend": {"orient": "bottom", "columns": 1},
                   "scale": {"domain": order, "range": ["var(--c1)", "var(--c5)", "var(--c3)", "var(--c6)", "var(--c8)"]}}  # fmt: skip
    names: Spec = {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 190}}
    variants = {"memory": spec(
        values,
        {"mark": {"type": "bar", "stroke": "var(--panel)", "strokeWidth": 1}, "encoding": {"y": names, "x":
         quantitative("gib", "GiB", stack="zero", scale={"zero": True}), "color": parts, "order": {"field": "order"},
         "tooltip": {"field": "about"}}},
        height={"step": 26},
    )} if values else {}  # fmt: skip
    return Chart(
        name="memory", title="Memory split", by_row=True,
        caption="Of the server at its peak, as far as the engine tells; what it does not tell is named so and not shared out.",
        alt="Stacked bars of memory by configuration: weights, KV cache, activations, the rest, and what is not told.",
        variants=variants, why="No run here tells where its memory goes: llmopt sees it of a server that it starts itself.",
    )  # fmt: skip


def memory_parts(row: dict[str, Any]) -> list[dict[str, Any]]:
    memory = row["memory"]
    found = []
    for number, (key, word) in enumerate(PARTS.items()):
        size = memory.get(key)
        if size:
            words = (f"{word} {show(size, 'bytes')}", f"of {show(memory.get('total_bytes'), 'bytes')} ({memory.get('total_is') or 'total'})",
                     f"source: {memory['source']}" if memory.get("source") else "")  # fmt: skip
            found.append({"row": identity(row), "part": word, "order": number, "gib": size / 2**30,
                          "about": "\n".join([short(row), *(w for w in words if w)])})  # fmt: skip
    return found


def cost_chart(rows: Sequence[dict[str, Any]]) -> Chart:
    values = []
    for row in rows:
        cost = row.get("cost") or {}
        if cost.get("per_1m_output_tokens") is None:
            continue
        bounds = cost["interval_output"] or {}
        value = cost["per_1m_output_tokens"]
        values.append(
            {"row": identity(row), "x": value, "low": bounds.get("low"), "high": bounds.get("high"),
             "about": about(row, f"{show(value, 'price')} per 1M output tokens", f"at {cost['at']}",
                            f"at {cost['price_per_hour']:g} an hour")}
        )  # fmt: skip
    names: Spec = {"field": "label", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 190}}
    across = quantitative("x", "per 1M output tokens", scale={"zero": True})
    variants = {"cost": spec(
        values,
        {"mark": {"type": "bar", "color": "var(--c1)"}, "encoding": {"y": names, "x": across, "tooltip": {"field": "about"}}},
        {"transform": [{"filter": "isValid(datum.low)"}], "mark": {"type": "rule", "color": "var(--ink)", "strokeWidth": 2},
         "encoding": {"y": names, "x": across | {"field": "low"}, "x2": {"field": "high"}}},
        height={"step": 26},
    )} if values else {}  # fmt: skip
    return Chart(
        name="cost", title="Cost of a million output tokens", by_row=True,
        caption="At the load at which limits are judged, not at peak throughput. Bars are 95 % intervals.",
        alt="Bars of cost per million output tokens by configuration.",
        variants=variants, why="The price of an hour was not given: --price-per-hour.",
    )  # fmt: skip
