"""What single requests say: how TTFT and ITL are distributed, and one run over time, with its stalls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmopt.core.units import show
from llmopt.report.page_chart import Chart, Spec, colour_of_rows, quantitative, short, spec
from llmopt.report.page_rows import identity
from llmopt.report.page_timelines import STALL, Timeline

STAGES = ("waiting to be sent", "until the first token", "tokens", "failed")


def spread_chart(rows: Sequence[dict[str, Any]], timelines: Mapping[str, Timeline]) -> Chart:
    """Distribution functions, which show every request; a logarithmic axis, since waiting is felt in ratios."""
    titles = {"ttft": "TTFT", "itl": "ITL", "icl": "ICL"}
    variants = {}
    for name, word in titles.items():
        values = [
            {"row": identity(row), "x": float(f"{seconds * 1e3:.5g}"), "y": round(share * 100, 2)}
            for row in rows if row["key"] in timelines for seconds, share in timelines[row["key"]].shares.get(name, ())
        ]  # fmt: skip
        if values:
            variants[word] = spread_spec(values, f"{word} (ms)")
    return Chart(
        name="spread", title="Distribution of TTFT and ITL", by_row=True,
        caption="The share that took no longer, of every request (TTFT) or gap (ITL; ICL where the tokens of a chunk are not"
        " known) at the load judged. A failed request never arrives: such a line ends below 100 %.",
        alt="Distribution functions of the time to the first token and between tokens, one line a configuration.",
        variants=variants, why="No stored timelines of these runs were found; of a saved document, --results says where they lie.",
    )  # fmt: skip


def spread_spec(values: Sequence[dict[str, Any]], heading: str) -> Spec:
    across = quantitative("x", heading, scale={"type": "log", "nice": False}, axis={"tickCount": 6, "format": "~g"})
    up = quantitative("y", "requests or gaps (%)", scale={"domain": [0, 100]})
    encoding: Spec = {"x": across, "y": up, "color": colour_of_rows()}
    words = "datum.label + '\\n' + format(datum.y, '.1f') + ' % within ' + format(datum.x, '.4~g') + ' ms'"
    return spec(
        values,
        {"mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2}, "encoding": encoding},
        {"mark": {"type": "point", "opacity": 0, "size": 90}, "encoding": encoding | {"tooltip": {"field": "about"}}},
        transform=[{"calculate": words, "as": "about"}],
    )


def timeline_chart(rows: Sequence[dict[str, Any]], timelines: Mapping[str, Timeline]) -> Chart:
    found = [(row, timelines[row["key"]]) for row in rows if row["key"] in timelines]
    return Chart(
        name="timeline", title="Timeline of one run", wide=True,
        caption="A line a request of the newest run at the load judged: waiting, until the first token, tokens; purple: stalls."
        f" A stall is a gap of more than {STALL:g} times the median gap of the run.",
        alt="Every request of one run over time, with the stalls in its token streams.",
        variants={short(row): timeline_spec(timeline) | {"usermeta": {"about": about_run(timeline)}} for row, timeline in found},
        why="No stored timelines of these runs were found; of a saved document, --results says where they lie.",
    )  # fmt: skip


def about_run(found: Timeline) -> str:
    drawn = f"{len(found.requests)} of {found.requests_in_all} requests drawn"
    stalls = f"{found.stalls_in_all} stalls" + (f" of more than {show(found.stall_s, 's')}" if found.stall_s else "")
    hidden = found.stalls_in_all - len(found.stalls)
    return f"Run {found.run_id}: {drawn}, {stalls}" + (f", the longest {len(found.stalls)} drawn." if hidden else ".")


def timeline_spec(found: Timeline) -> Spec:
    colour: Spec = {"field": "stage", "title": None, "legend": {"orient": "bottom"},
                    "scale": {"domain": [*STAGES], "range": ["var(--c8)", "var(--c5)", "var(--c1)", "var(--c2)"]}}  # fmt: skip
    up: Spec = {"field": "request", "type": "quantitative", "title": "request, in the order planned",
                "scale": {"reverse": True, "nice": False, "zero": False, "padding": 6}}  # fmt: skip
    across: Spec = {"field": "from", "type": "quantitative", "title": "seconds since the first request was planned"}
    places: Spec = {"x": across, "x2": {"field": "to"}, "y": up, "tooltip": {"field": "about"}}
    height = max(140, min(520, 4 * len(found.requests)))
    thick = max(1.5, min(6, height / max(1, len(found.requests)) - 1))
    words = ("'request ' + datum.request + ', ' + (isValid(datum.tokens) ? datum.tokens : '–') + ' tokens\\n' + datum.stage + ': '"
             " + format((datum.to - datum.from) * 1000, ',.1f') + ' ms' + (datum.error ? '\\n' + datum.error : '')")  # fmt: skip
    stalls = [
        {name: round(value, 4) for name, value in stall.items()}
        | {"about": f"stall of {show(stall['seconds'], 's')}\nin request {stall['request']:g}"}
        for stall in found.stalls
    ]
    return spec(
        [span for request in found.requests for span in spans(request)],
        {"transform": [{"calculate": words, "as": "about"}],
         "mark": {"type": "rule", "strokeWidth": thick, "strokeCap": "butt"}, "encoding": places | {"color": colour}},
        {"data": {"values": stalls}, "mark": {"type": "rule", "strokeWidth": thick + 2.5, "color": "var(--c4)"},
         "encoding": places},
        height=height,
    )  # fmt: skip


def spans(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of a request that were reached; of a failed one also what came after the last sign of life."""
    at = request
    ends = list(zip(STAGES, ("planned", "sent", "first"), ("sent", "first", "last"), strict=False))
    more = {"tokens": request["tokens"]}
    if request["error"]:
        begin = next(name for name in ("last", "first", "sent", "planned") if at[name] is not None)
        ends.append((STAGES[-1], begin, "closed" if at["closed"] is not None else begin))
        more["error"] = request["error"]
    return [
        {"request": request["request"], "stage": stage, "from": at[begin], "to": at[end]} | more
        for stage, begin, end in ends
        if at[begin] is not None and at[end] is not None and (at[end] > at[begin] or stage == STAGES[-1])
    ]
