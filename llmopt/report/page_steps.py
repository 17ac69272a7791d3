"""A recipe of steps as a waterfall: what each change added to the one before it, and where all of them end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmopt.core.metrics import parse_metric, value_of
from llmopt.core.units import show
from llmopt.report.page_chart import WORDS, Chart, Spec, axis_title, quantitative, scaled, spec
from llmopt.report.page_rows import runs_words
from llmopt.report.steps import compared, factor, figures

ORDER = ("start", "better", "worse", "not told apart", "end")


def steps_charts(document: dict[str, Any]) -> list[Chart]:
    rows = document["steps"]
    names = ["output_tps", *(f.metric for f in figures(rows) if f.metric != "output_tps")]
    variants = {WORDS[name]: waterfall_spec(bars, name) for name in names if (bars := waterfall(rows, name))}
    return [
        Chart(
            name="steps", title="What each step gave", wide=True,
            caption="Each bar runs from the figure of the step before to its own. Blue: better; orange: worse; grey: the 95 %"
            " interval over runs does not leave out that nothing changed, or there is none. Invalid steps and those that"
            " failed are left out here and named below.",
            alt="Waterfall of the steps of a recipe.",
            variants=variants, why="No step has a valid run.",
        )
    ]  # fmt: skip


def waterfall(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Floating bars; the first and the last stand on zero."""
    metric, statistic = parse_metric(name)
    known = [(r, v) for r in rows if compared(r) and (v := value_of(r["metrics"], metric, statistic)) is not None]
    found: list[dict[str, Any]] = []
    for place, (row, value) in enumerate(known):
        before = known[place - 1][1] if place else 0.0
        change = row["change"].get(name) if place else None
        words = [row["step"], f"{WORDS[name]} {show(value, metric.unit)}"]
        words += [f"{factor(change)} the step before"] if change else []
        words += [f"95 % interval {change['low']:.2f}–{change['high']:.2f}"] if change and change["low"] else []
        words.append(f"{runs_words(row['runs'])}, {row['verdict']['status']}")
        found.append(
            {"step": row["step"], "from": scaled(name, before), "to": scaled(name, value),
             "kind": kind_of(change, metric.better) if place else "start",
             "text": factor(change) if change else show(value, metric.unit), "about": "\n".join(words)}
        )  # fmt: skip
    if len(known) > 1:
        value = known[-1][1]
        found.append({"step": "all together", "from": 0.0, "to": scaled(name, value), "kind": "end",
                      "text": show(value, metric.unit), "about": f"all together: {show(value, metric.unit)}"})  # fmt: skip
    return found


def kind_of(change: dict[str, Any] | None, better: str) -> str:
    if change is None or change["low"] is None or change["low"] <= 1 <= change["high"]:
        return "not told apart"
    return "better" if (change["ratio"] > 1) == (better == "higher") else "worse"


def waterfall_spec(bars: Sequence[dict[str, Any]], name: str) -> Spec:
    across: Spec = {
        "field": "step",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {"labelAngle": -30, "labelLimit": 150, "labelOverlap": False},
    }
    up = quantitative("from", axis_title(name), scale={"zero": True})
    colour: Spec = {"field": "kind", "title": None, "legend": {"orient": "bottom"}, "scale": {"domain": [*ORDER],
                    "range": ["var(--c6)", "var(--c1)", "var(--c2)", "var(--c7)", "var(--c3)"]}}  # fmt: skip
    return spec(
        bars,
        {"mark": {"type": "bar"}, "encoding": {"x": across, "y": up, "y2": {"field": "to"}, "color": colour,
         "tooltip": {"field": "about"}}},
        {"transform": [{"calculate": "max(datum.from, datum.to)", "as": "top"}],
         "mark": {"type": "text", "dy": -8, "color": "var(--ink)"},
         "encoding": {"x": across, "y": up | {"field": "top"}, "text": {"field": "text"}}},
        height=340,
    )  # fmt: skip
