"""The charts of a ranking, in the order in which the page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmopt.report.page_chart import Chart
from llmopt.report.page_costs import cost_chart, memory_chart, quality_chart
from llmopt.report.page_requests import spread_chart, timeline_chart
from llmopt.report.page_rows import rows_of
from llmopt.report.page_speed import front_chart, load_chart
from llmopt.report.page_timelines import Timeline


def ranking_charts(document: dict[str, Any], timelines: Mapping[str, Timeline]) -> list[Chart]:
    """Those that have something to draw first; two stand beside each other, and one that is left takes the whole width."""
    rows = rows_of(document)
    found = [
        front_chart(rows),
        load_chart(rows),
        spread_chart(rows, timelines),
        quality_chart(rows, document["goal"]["limits"]),
        memory_chart(rows),
        cost_chart(rows),
        timeline_chart(rows, timelines),
    ]
    halves = [chart for chart in found if chart.variants and not chart.wide]
    if len(halves) % 2:
        found[found.index(halves[-1])] = replace(halves[-1], wide=True)
    return found
