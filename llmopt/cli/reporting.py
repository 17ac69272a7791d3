"""``llmopt report``: what was found, drawn for a terminal, a pull request, a spreadsheet or a browser."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli.deciding import no_runs, require_report, say_skipped
from llmopt.cli.shell import GroupedCommand, Json, app, for_people, nobody_gave, print_json
from llmopt.core.errors import LlmoptError, UsageError

if TYPE_CHECKING:
    from llmopt.core.domain import Goal

DRAWN = 8  # configurations whose timelines are read: as many as the page shows at once

form = functools.partial(typer.Option, rich_help_panel="Forms")
wish = functools.partial(typer.Option, rich_help_panel="What is ranked, as of recommend")


@app.command("report", cls=GroupedCommand)
@for_people
def report_command(
    context: typer.Context,
    results: Annotated[
        Path,
        typer.Argument(help="Folder of run records, one record, or what recommend or tune printed with --json."),
    ] = Path("results"),
    html: Annotated[
        Path | None, form("--html", help="One file for a browser, that needs nothing else: llmopt[html].")
    ] = None,
    md: Annotated[Path | None, form("--md", help="Markdown, for a pull request.")] = None,
    csv: Annotated[Path | None, form("--csv", help="One row a configuration and load, units in the names.")] = None,
    slo: Annotated[list[str] | None, wish("--slo", help="Kept at one load: 'ttft_p95<500ms'; may be repeated.")] = None,
    max_memory: Annotated[str | None, wish("--max-memory", help="Peak memory limit, e.g. 2GiB.")] = None,
    max_kl: Annotated[float | None, wish("--max-kl", help="Largest mean KL divergence to the base.")] = None,
    optimize: Annotated[
        str, wish("--optimize", help="throughput, latency, memory, quality, cost, or any metric.")
    ] = "throughput",
    baseline: Annotated[str | None, wish("--baseline", help="What to compare with, by label or key.")] = None,
    price_per_hour: Annotated[
        float | None, wish("--price-per-hour", help="What this machine costs an hour, in any currency.")
    ] = None,
    force: Annotated[bool, wish("--force", help="Rank unlike runs together.")] = False,
    top: Annotated[int, wish("--top", min=0, help="Rows that are shown; 0 for all.")] = 0,
    timelines: Annotated[
        Path | None, typer.Option("--results", help="Where the runs of a saved document lie, for their timelines.")
    ] = None,
    json: Json = False,
) -> None:
    """Draw what was measured: on the terminal, or as one HTML file, Markdown, CSV."""
    from llmopt.core.files import write_atomic
    from llmopt.recommend.constraints import make_goal
    from llmopt.report.saved import saved_document

    require_apart({"--html": html, "--md": md, "--csv": csv})
    for file, check in ((html, require_page), (md, require_report), (csv, require_table)):
        if file is not None:
            check(file)
    goal = make_goal(
        slo or [], max_memory=max_memory, max_kl=max_kl, optimize=optimize, price_per_hour=price_per_hour
    )  # fmt: skip
    saved = saved_document(results)
    if saved is not None:
        require_no_wish(context, results)
    document, empty = (saved, None) if saved is not None else ranked(results, goal, force, top or None, baseline)
    runs = timelines or (results if saved is None else None)
    with whole(results if saved is not None else None):
        for file, make in ((html, page_maker(runs)), (md, markdown), (csv, table)):
            if file is not None:
                write_atomic(file, make(document))
                print(f"{file} ({file.stat().st_size / 1e3:,.0f} kB)", file=sys.stderr if json else sys.stdout)
        if json:
            print_json(document)
        elif html is md is csv is None and empty is None:
            show(document)
    if empty is not None:
        raise empty


@contextlib.contextmanager
def whole(file: Path | None) -> Iterator[None]:
    """A saved document may have been cut or edited since: what it lacks is said as its fault. Raises UsageError."""
    try:
        yield
    except Exception as error:
        of_the_file = isinstance(error, (KeyError, TypeError, AttributeError, ValueError))
        # A template meets what it lacks with an error of its own, and jinja2 is imported only for a page.
        if file is None or not (of_the_file or type(error).__module__.startswith("jinja2")):
            raise
        raise UsageError(
            f"{file} is no whole document of llmopt: {type(error).__name__} {error}",
            hint="make it anew with this version: llmopt recommend --json",
        ) from error


def ranked(
    results: Path, goal: Goal, force: bool, top: int | None, baseline: str | None
) -> tuple[dict[str, Any], LlmoptError | None]:
    """The document, and where there is no run at all the error that says so: it is drawn, and said. Raises LlmoptError."""
    from dataclasses import asdict

    from llmopt.core.run_index import read_store
    from llmopt.pipeline import ranking
    from llmopt.report.document import ranking_document

    stored = read_store(results)
    say_skipped(stored.skipped)
    skipped = [asdict(s) for s in stored.skipped]
    if not len(stored.table):
        nothing = ranking_document(
            goal, [], [], machine={}, workload={}, base="", left_out={}, skipped=skipped
        )  # fmt: skip
        return nothing, no_runs(results, stored.skipped)
    stored.table.fill_quality(ranking.quality_of_record)
    return ranking.rank_runs(
        stored.table, goal, force=force, top=top, baseline=baseline, skipped=stored.skipped, copies=stored.copies
    ), None


# The options of "What is ranked": a saved document was ranked before, and would not heed them.
WISHES = ("slo", "max_memory", "max_kl", "optimize", "baseline", "price_per_hour", "force", "top")


def require_no_wish(context: typer.Context, saved: Path) -> None:
    """Refuse what a saved document would not heed. Raises UsageError."""
    given = [f"--{name.replace('_', '-')}" for name in WISHES if not nobody_gave(context, name)]
    if given:
        raise UsageError(
            f"{' and '.join(given)} would change nothing: {saved} is ranked already",
            hint="give it to llmopt recommend --json, or name the folder of the runs here",
        )


def require_apart(files: dict[str, Path | None]) -> None:
    """Refuse two forms in one file. Raises UsageError."""
    flags: dict[Path, str] = {}
    for flag, file in files.items():
        if file is None:
            continue
        if other := flags.get(file.resolve()):
            raise UsageError(f"{other} and {flag} both name {file}", hint=f"name another file for {flag}")
        flags[file.resolve()] = flag


def page_maker(results: Path | None) -> Callable[[dict[str, Any]], bytes]:
    def make(document: dict[str, Any]) -> bytes:
        from llmopt.report.page import page
        from llmopt.report.page_timelines import timelines_of

        rows: Sequence[dict[str, Any]] = [*document.get("ranked", ()), *document.get("rejected", ())][:DRAWN]
        return page(document, timelines_of(results, rows) if results is not None else {})

    return make


def markdown(document: dict[str, Any]) -> bytes:
    from llmopt.report.markdown import ranking_markdown
    from llmopt.report.steps import steps_markdown

    if document["kind"] == "ranking" and not document["machine"]:
        return b"# Recommendation\n\nThere is no run to rank.\n"
    return (steps_markdown if document["kind"] == "steps" else ranking_markdown)(document).encode()


def table(document: dict[str, Any]) -> bytes:
    from llmopt.report.csv_table import csv_of

    return csv_of(document)


def show(document: dict[str, Any]) -> None:
    """On the terminal, with the front in characters."""
    from llmopt.report.steps import print_steps
    from llmopt.report.terminal import print_ranking
    from llmopt.report.text_plots import front_lines

    if document["kind"] == "steps":
        print_steps(document)
        return
    print_ranking(document)
    for line in front_lines(document):
        print(line)


def require_page(file: Path) -> None:
    from llmopt.report.page import MARK

    require_own(file, MARK in head(file), "report.html")


def require_table(file: Path) -> None:
    from llmopt.report.csv_table import HEADS

    require_own(file, head(file).startswith(HEADS), "report.csv")


def head(file: Path) -> bytes:
    return file.read_bytes()[:200] if file.is_file() else b""


def require_own(file: Path, own: bool, other: str) -> None:
    """Refuse to write over a file that is none of ours. Raises UsageError."""
    if file.exists() and not own:
        raise UsageError(f"{file} is no report of llmopt and is not overwritten", hint=f"name another file, as {other}")
