"""A gate as a page: the verdict, every row that led there, and each block's difference against what is tolerated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmopt.report.gate import HEADER, case_line, confidence, remarks, rows
from llmopt.report.page_chart import WORDS, Chart, Spec, quantitative, spec
from llmopt.report.page_timelines import Timeline


def gate_parts(document: dict[str, Any], _: Mapping[str, Timeline]) -> dict[str, Any]:
    """What the template shows."""
    return {
        "kind": "gate",
        "heading": document["status"].capitalize(),
        "subtitle": document["words"].partition(": ")[2],
        "goal": "",
        "header": HEADER,
        "cases": [{"line": case_line(c), "rows": list(rows(c)), "remarks": list(remarks(c))} for c in document["cases"]],
        "charts": [
            block_chart(case, metric, number)
            for number, case in enumerate(document["cases"], 1)
            for metric in case["metrics"]
            if metric["by_block"]
        ],
        "notes": [f"Confidence {confidence(document)}; a change is candidate / base − 1."],
        "rows": [],
        "names": {},
    }  # fmt: skip


def block_chart(case: dict[str, Any], metric: dict[str, Any], number: int) -> Chart:
    name = metric["name"]
    changes = [f"{value:+.1%}" for value in metric["by_block"]]
    return Chart(
        name=f"{name.replace('_', '-')}-{number}",
        title=WORDS.get(name, name),
        caption=f"{case['candidate']} against {case['base']}: the change that each block of four runs leaves. The band is the interval"
        f" that was judged, the dashed line is what is tolerated, the full one what blocks.",
        alt=f"{name} changed by {metric['change']:+.1%} [{metric['low']:+.1%}, {metric['high']:+.1%}]; by block: {', '.join(changes)}.",
        variants={"blocks": block_spec(metric)},
    )


def block_spec(metric: dict[str, Any]) -> Spec:
    worse = 1 if metric["better"] == "lower" else -1
    values: list[dict[str, Any]] = [
        {"block": number, "change": 100 * value, "about": f"block {number}: {value:+.2%}"}
        for number, value in enumerate(metric["by_block"], 1)
    ]
    values += [
        {"tolerated": 100 * worse * metric["tolerate"]},
        {"blocks": 100 * worse * metric["block"]},
        {"low": 100 * metric["low"], "high": 100 * metric["high"]},
    ]
    across: Spec = {"field": "block", "type": "quantitative", "title": "block", "axis": {"tickMinStep": 1},
                    "scale": {"domain": [0.5, len(metric["by_block"]) + 0.5], "nice": False}}  # fmt: skip
    up = quantitative("change", "change (%)")

    def layer(field: str, mark: Spec, **encoding: Spec) -> Spec:
        return {"transform": [{"filter": f"isValid(datum.{field})"}], "mark": mark, "encoding": encoding}

    return spec(
        values,
        layer("low", {"type": "rect", "color": "var(--c1)", "opacity": 0.15}, y=up | {"field": "low"}, y2={"field": "high"}),
        layer("tolerated", {"type": "rule", "strokeDash": [4, 4], "color": "var(--c2)"}, y=up | {"field": "tolerated"}),
        layer("blocks", {"type": "rule", "color": "var(--c2)"}, y=up | {"field": "blocks"}),
        layer("block", {"type": "point", "size": 60, "filled": True, "color": "var(--c1)"}, x=across, y=up, tooltip={"field": "about"}),
    )  # fmt: skip
