"""A chart as a Vega-Lite specification, and what all charts share: units, axes, colours, the words of a tooltip.

Colours are the page's CSS variables: SVG takes ``var(--c1)`` as a fill, so the light, the dark and the printed page are one
drawing.  Values name their row in ``row``, and the page adds its ``label``: once a row and not once a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmopt.core.metrics import parse_metric
from llmopt.report.page_rows import runs_words
from llmopt.report.table import label

Spec = dict[str, Any]
COLOURS = [f"var(--c{number})" for number in range(1, 9)]
SCALE = {"s": (1e3, "ms"), "bytes": (2**-30, "GiB"), "share": (100, "%"), "tps": (1, "tok/s"), "rps": (1, "req/s"),
         "nats": (1, "nats"), "price": (1, "per 1M output tokens"), "count": (1, "")}  # fmt: skip
WORDS = {"output_tps": "output throughput", "e2e_p50": "request latency p50", "ttft_p50": "TTFT p50", "ttft_p95": "TTFT p95",
         "tpot_p50": "TPOT p50", "peak_rss_bytes": "peak RAM", "peak_vram_bytes": "peak VRAM", "kl": "KL to the base",
         "cost": "cost", "tps_p50": "TPS p50", "requests_per_s": "requests"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chart:
    """``variants`` are specifications by the name of their button; without any, ``why`` stands in its place.

    ``alt`` says in words what is drawn, for whoever cannot see it.
    """

    name: str
    title: str
    caption: str
    alt: str
    variants: dict[str, Spec] = field(default_factory=dict)
    why: str = ""
    by_row: bool = False
    wide: bool = False


def spec(values: Sequence[dict[str, Any]], *layers: Spec, height: int | dict[str, int] = 300, **more: Any) -> Spec:
    return {"width": "container", "height": height, "data": {"values": list(values)}, "layer": list(layers)} | more


def scaled(name: str, value: float | None) -> float | None:
    """In the unit that the axis has."""
    metric, _ = parse_metric(name)
    factor, _ = SCALE.get(metric.unit, (1, ""))
    return None if value is None else float(f"{value * factor:.6g}")


def axis_title(name: str) -> str:
    metric, _ = parse_metric(name)
    _, unit = SCALE.get(metric.unit, (1, str(metric.unit)))
    return WORDS.get(name, name) + (f" ({unit})" if unit else "")


def quantitative(name: str, heading: str, **more: Any) -> Spec:
    return {"field": name, "type": "quantitative", "title": heading, "scale": {"zero": False, "nice": True}} | more


def colour_of_rows() -> Spec:
    """Each row a colour, in the order of the table."""
    legend: Spec = {"columns": 1, "orient": "bottom"}
    return {
        "field": "label",
        "type": "nominal",
        "title": None,
        "legend": legend,
        "scale": {"range": COLOURS},
        "sort": None,
    }


def short(row: dict[str, Any]) -> str:
    rank = row.get("rank")
    return f"{rank if rank is not None else '✗'}. {label(row)}"


def standing(row: dict[str, Any]) -> str:
    if row.get("rank") is None:
        return "rejected"
    return "on the front" if row["on_front"] else "behind the front"


def basis(row: dict[str, Any]) -> str:
    """What the figures of a row rest on."""
    return f"{row['evidence']}, {runs_words(row['runs'])}, {row['verdict']['status']}; {standing(row)}"


def about(row: dict[str, Any], *words: str) -> str:
    return "\n".join([short(row), *words, basis(row)])


def tooltip(figures: Sequence[tuple[str, str]]) -> Spec:
    """``about`` of every value, put together by the page: its label, its figures under their titles, and ``more``."""
    lines = [f"{title!r} + ' ' + format(datum.{name}, ',.5~r')" for title, name in figures]
    return {"calculate": " + '\\n' + ".join(["datum.label", *lines, "datum.more"]), "as": "about"}


def drawn_of(rows: Sequence[dict[str, Any]], what: str, drawn: set[str]) -> str:
    """Says how many could not be drawn; empty where all were."""
    missing = len(rows) - len(drawn)
    return f"{len(drawn)} of {len(rows)} configurations are drawn: {missing} have no {what}." if missing else ""
