"""``llmopt history``: a metric of one case over time and commits."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli.shell import GroupedCommand, Json, ResultsOption, app, for_people, print_json

output = functools.partial(typer.Option, rich_help_panel="Output")


@app.command("history", cls=GroupedCommand)
@for_people
def history_command(
    case: Annotated[
        str | None,
        typer.Argument(help="Label or key of a case, or the beginning of one; may be left out where there is one."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="output_tps, ttft_p95 …; may be repeated. Default: those that a gate looks at."),
    ] = None,
    results: ResultsOption = Path("results"),
    html: Annotated[
        Path | None, output("--html", help="Also one file for a browser, that needs nothing else: llmopt[html].")
    ] = None,
    json: Json = False,
) -> None:
    """Plot what a case was measured at, session by session, and name the steps with their date, size and commit.

    All stored runs of the case on one machine count, and those of baselines. A step is named when noise alone would
    give one in fewer than 1 of 100 histories; it needs three sessions on each side.
    """
    from llmopt.core.escaping import one_line
    from llmopt.core.files import write_atomic
    from llmopt.pipeline.history import history
    from llmopt.report.history import print_history

    if html is not None:
        from llmopt.cli.reporting import require_page

        require_page(html)
    document = history(case, metric or [], results, lambda text: print(one_line(text), file=sys.stderr))
    if html is not None:
        from llmopt.report.page import page

        write_atomic(html, page(document))
        print(f"{html} ({html.stat().st_size / 1e3:,.0f} kB)", file=sys.stderr if json else sys.stdout)
    print_json(document) if json else print_history(document)
