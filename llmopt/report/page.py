"""One HTML file that shows a document with everything that doubts it: no request leaves it, and it needs no server.

The page is made here, by Jinja2, and readable without a script: the table, the reasons and the notes are HTML.  The charts
are Vega-Lite specifications (``page_charts``) that Vega, embedded once, draws as SVG in the reader's browser.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import llmopt
from llmopt.core.errors import MissingEnvironment, UsageError
from llmopt.core.escaping import visible
from llmopt.report import steps as steps_table
from llmopt.report.page_chart import Chart, short
from llmopt.report.page_charts import ranking_charts
from llmopt.report.page_gate import gate_parts
from llmopt.report.page_history import history_parts
from llmopt.report.page_rows import cards, columns_of, engines_of, identity, rows_of, table_of, tiles_of
from llmopt.report.page_steps import steps_charts
from llmopt.report.page_timelines import Timeline
from llmopt.report.ranking import more_lines, relaxation_lines
from llmopt.report.table import footnotes, goal_line, title

TEMPLATES = Path(__file__).parent / "templates"
# Of the bundle of vl-convert 1.9.0 ``vegaLite`` is null, and cannot be asked for alone; vega-embed knows it.
SNIPPET = "globalThis.vegaEmbed = vegaEmbed;"
MARK = b"<!-- llmopt report -->"


def page(document: dict[str, Any], timelines: Mapping[str, Timeline] | None = None) -> bytes:
    """The whole file for a ranking, a document of steps, a history or a gate. Raises UsageError for another, MissingEnvironment."""
    document = visible(document)
    kinds = {"ranking": ranking_parts, "steps": steps_parts, "history": history_parts, "gate": gate_parts}
    if document.get("kind") not in kinds:
        raise UsageError(
            f"a document of kind {document.get('kind')!r} cannot be drawn",
            hint=f"one of: {', '.join(kinds)}; llmopt recommend --json makes one",
        )
    readable = {key: replace(line, requests=visible(line.requests)) for key, line in (timelines or {}).items()}
    parts = kinds[document["kind"]](document, readable)
    charts: Sequence[Chart] = parts["charts"]
    drawn = {chart.name: chart.variants for chart in charts if chart.variants}
    text: str = templates().get_template("page.html").render(
        parts | {"drawn": {"names": parts["names"], "charts": drawn}, "vega": vega() if drawn else "", "version": llmopt.__version__,
                 "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    )  # fmt: skip
    return text.encode()


def ranking_parts(document: dict[str, Any], timelines: Mapping[str, Timeline]) -> dict[str, Any]:
    """What the template shows of a ranking; an empty one is drawn as well."""
    columns = columns_of(document)
    rows = table_of(document, columns)
    return {
        "kind": "ranking",
        "heading": document["base"] or "No runs",
        "subtitle": title(document).removeprefix(f"{document['base']} · ")
        if document["machine"]
        else "nothing was measured",
        "goal": goal_line(document),
        "columns": columns,
        "rows": rows,
        "names": {identity(row): short(row) for row in rows_of(document)},
        "tiles": tiles_of(document),
        "best": document["ranked"][0] if document["ranked"] else None,
        "engines": engines_of(document),
        "cards": cards(document),
        "must_give": relaxation_lines(document),
        "charts": ranking_charts(document, timelines),
        "notes": [*more_lines(document), *footnotes(document)],
        "skipped": document["skipped"],
        "files_skipped": document["files_skipped"],
    }


def steps_parts(document: dict[str, Any], timelines: Mapping[str, Timeline]) -> dict[str, Any]:
    head, *lines = steps_table.lines(document)
    return {
        "kind": "steps",
        "heading": document["name"],
        "subtitle": title(document) if document["machine"] else "nothing was measured",
        "goal": "one change at a time",
        "step_head": head,
        "step_rows": [
            {
                "cells": cells[:-1],
                "runs": step.get("runs"),
                "failure": step["failure"],
                "status": step["verdict"]["status"] if "verdict" in step else "",
            }
            for cells, step in zip(lines, document["steps"], strict=True)
        ],
        "charts": steps_charts(document),
        "notes": steps_table.footnotes(document),
        "rows": [],
        "names": {},
    }


@functools.cache
def templates() -> Any:
    """Every value is escaped; only our own style sheet, script and the library are put in as they are."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the first variant of a chart is the one that is shown
    return found


@functools.cache
def vega() -> str:
    """Vega and Vega-Lite as one script. Raises MissingEnvironment without the extra."""
    try:
        import vl_convert
    except ImportError as error:
        raise MissingEnvironment(
            "the HTML report needs the plotting library vl-convert-python, which is not installed",
            hint="pip install 'llmopt[html]'; --md and --csv need nothing",
        ) from error
    script: str = vl_convert.javascript_bundle(SNIPPET)
    return script.replace("</script", "<\\/script")  # the same inside a string of the script, and no end of it
