"""The document of ``llmopt verify`` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from llmopt.core.units import show
from llmopt.report.gate import STYLES
from llmopt.report.terminal import plain_table, print_lines, say, stdout_console

SLO_HEADER = ("SLO", "promised", "measured", "interval", "status")
# Where the word alone leaves people searching.
MEANING = {
    "http_429": ": more than the gateway takes from one client (llmopt deploy --rate-limit), or one before it does"
}
METRIC_HEADER = ("metric", "promised", "measured", "change", "interval", "tolerated", "status")


def print_verify(document: dict[str, Any], console: Console | None = None) -> None:
    console = console or stdout_console()
    say(console, document["words"], style=STYLES[document["status"]], soft_wrap=True)
    promise = document["promise"]
    say(
        console,
        f"{document['model']} at {document['url']}, held to {promise['label']} ({promise['source']})",
        soft_wrap=True,
    )
    for level in document["levels"]:
        say(console, level_line(level, document), style="bold", soft_wrap=True)
        if level["slos"]:
            console.print(plain_table([SLO_HEADER, *map(slo_row, level["slos"])]))
        if level["metrics"]:
            console.print(plain_table([METRIC_HEADER, *map(metric_row, level["metrics"])]))
    print_lines(list(remarks(document)), console)


def level_line(level: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    failed = f", {level['failed']} failed" if level["failed"] else ""
    return (
        f"load of {level['replicas']} of {document['replicas']} replica(s): {level['load']}; "
        f"{len(level['runs'])} runs, {level['requests']} requests{failed}"
    )


def slo_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    unit = row["unit"]
    interval = f"[{show(row['low'], unit)}, {show(row['high'], unit)}]" if row["low"] is not None else row["why"]
    return row["text"], show(row["promised"], unit), show(row["measured"], unit), interval, row["status"]


def metric_row(m: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        m["name"], show(m["base"], m["unit"]), show(m["candidate"], m["unit"]), f"{m['change']:+.1%}",
        f"[{m['low']:+.1%}, {m['high']:+.1%}]", f"{m['tolerate']:.0%}", m["status"],
    )  # fmt: skip


def remarks(document: Mapping[str, Any]) -> Iterator[str]:
    if document["capacity"]:
        yield f"capacity: {document['capacity']['words']}"
    for level in document["levels"]:
        for words, count in level["errors"].items():
            yield f"{count} × {words}{MEANING.get(words, '')}"
        if level["problem"]:
            yield level["problem"]
    yield from document["notes"]
