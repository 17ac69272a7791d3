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


def quality_chart(rows: Sequence[dict[str, Any]], limits: Sequence[dict[str, Any]]) -> Chart:
    points = quality_points(rows)
    return Chart(
        name="quality", title="Quality against bits",
        caption="KL divergence of the next-token distribution from the unquantized base; lower is closer. Bars are 95 %"
        " intervals over windows of text; the dashed line is the limit.",
        alt="Scatter plot of KL divergence over bits per weight.",
        variants={"KL": quality_spec(points, limits) | {"usermeta": {"about": drawn_of(rows, "KL and known bits", {p["row"] for p in points})}}}
        if points else {},
        why="No configuration has both a measured KL and known bits: llmopt quality measures it.",
    )  # fmt: skip


def quality_points(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By rising bits; ``above`` alternates, so that the names of neighbours do not stand on each other."""
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
    named = dict.fromkeys((point["label"], point["x"], point["y"]) for point in found)  # one name for all its servers
    for place, key in enumerate(named):
        next(p for p in found if (p["label"], p["x"], p["y"]) == key)["above"] = place % 2 == 0
    return found


def quality_spec(points: Sequence[dict[str, Any]], limits: Sequence[dict[str, Any]]) -> Spec:
    bounds = [x for x in limits if x["metric"] == "kl" and x["statistic"] is None]
    lines = [{"mark": {"type": "rule", "strokeDash": [6, 4], "color": "var(--c2)", "strokeWidth": 1.5},
              "data": {"values": [{"bound": x["bound"], "about": f"limit {x['text']}"}]},
              "encoding": {"y": {"field": "bound", "type": "quantitative"}, "tooltip": {"field": "about"}}} for x in bounds]  # fmt: skip
    across = quantitative("x", "bits per weight, counted in the files", scale={"zero": False, "padding": 70})
    up = quantitative("y", "KL to the base (nats)", scale={"zero": True})
    name: Spec = {"type": "text", "align": "left", "dx": 9, "color": "var(--ink)", "limit": 130}
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
    parts: Spec = {"field": "part", "title": None, "sort": order, "legend": {"orient": "bottom"},
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
    across = quantitative("x", "per 1M output tokens, at the load judged", scale={"zero": True})
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
