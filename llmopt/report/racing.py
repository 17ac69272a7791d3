"""How a race stands: a live table on a terminal, plain lines elsewhere, and its part of the report in the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llmopt.core.metrics import METRICS, parse_metric
from llmopt.core.units import show
from llmopt.report.progress import Reporter, Work

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

SUREST = 0.99  # its own error does not allow to say more
SHOWN = 12  # survivors on a terminal; the report has all


class RaceReporter(Reporter):
    """A reporter that shows how the race stands; within its ``with`` block the table of a terminal is live."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self.screen: Live | None = None
        self.document: dict[str, Any] | None = None
        self.work = ""

    def __enter__(self) -> RaceReporter:
        if self.live:
            from rich.console import Console
            from rich.live import Live

            self.screen = Live(console=Console(stderr=True, highlight=False), transient=True, refresh_per_second=4)
            self.screen.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.screen is not None:
            self.screen.stop()
            self.screen = None

    def stands(self, document: dict[str, Any]) -> None:
        self.document = document
        if self.screen is not None:
            self.screen.update(self.picture())
        elif document["doing"] is None:
            for line in standing_lines(document):
                self.say(line)

    def say(self, text: str) -> None:
        if self.screen is None:
            super().say(text)
        else:
            self.screen.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def task(self, text: str, total: int | None = None) -> Iterator[Work]:
        """Below the table, where it is live: rich has one live display at a time."""
        if self.screen is None:
            with super().task(text, total) as work:
                yield work
            return
        self.work = text
        self.screen.update(self.picture())
        yield Line(self, text)
        self.work = ""

    def picture(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for place, title in enumerate(("configuration", "value", "95 %", "rounds", "judged at")):
            table.add_column(title, justify="right" if place in (1, 3) else "left")
        for row in survivors(self.document)[:SHOWN]:
            table.add_row(*map(Text, row))
        lines = [Text(line) for line in standing_lines(self.document)[:1]] if self.document else []
        return Group(*lines, table, Text(self.work, style="dim"))


class Line(Work):
    """A piece of work as one line of the live table."""

    def __init__(self, reporter: RaceReporter, text: str) -> None:
        super().__init__(None, None)
        self.reporter, self.text = reporter, text

    def at(self, done: int, total: int | None, what: str = "") -> None:
        of = f"{done}/{total}" if total else str(done) if done else ""
        self.reporter.work = "   ".join(filter(None, (self.text, of, what, f"{time.monotonic() - self.started:.0f} s")))
        if self.reporter.screen is not None:
            self.reporter.screen.update(self.reporter.picture())


def survivors(document: dict[str, Any] | None) -> list[list[str]]:
    if document is None:
        return []
    return [
        [row["arm"], shown(document, row["value"]), f"{shown(document, row['low'])} – {shown(document, row['high'])}",
         str(row["runs"]), row["load"] or ""]
        for row in document["survivors"]
    ]  # fmt: skip


def shown(document: dict[str, Any], value: float) -> str:
    metric, _ = parse_metric(document["metric"])
    return show(value, METRICS[metric.name].unit)


def standing_lines(document: dict[str, Any]) -> list[str]:
    """``round 2: 3 of 8 left …``, then one line a survivor."""
    waiting = f", {len(document['unmeasured'])} not measured yet" if document["unmeasured"] else ""
    left = f", {document['left_s']:.0f} s left" if "left_s" in document else ""
    head = (
        f"after round {document['round']}: {len(document['survivors'])} of {document['configurations']} may be the best"
        f" by {document['metric']}{waiting}{left}"
    )
    return [
        head,
        *(f"  {words}" for words in sure_words(document)),
        *(
            f"  {name}: {value} [{interval}] over {runs} round(s)"
            for name, value, interval, runs, _ in survivors(document)
        ),
    ]


def race_lines(document: dict[str, Any]) -> list[str]:
    """How the race of a whole tuning went, in plain sentences; reasons of what was left out last."""
    race = document["race"]
    lines = [
        f"{race['visits']} visits in {race['round']} round(s) over {race['configurations']} configurations, "
        f"{document['spent_s']:.0f} of {document['budget_s']:.0f} s; ended: {document['ended']}",
        f"{noise_words(race['noise'], race['noise_before'])}; quality is told against {document['reference']}",
        *sure_words(race),
    ]
    lines += [f"dropped: {row['configuration']}: {row['reason']}" for row in race["dropped"]]
    lines += [f"never measured: {label}: {document['ended']}" for label in race["unmeasured"]]
    return lines + [f"not measured: {row['label']}: {row['reason']}" for row in document["not_measured"]]


def noise_words(noise: float | None, before: dict[str, Any]) -> str:
    """``before``: what was known of it before the race: the usual, or by other runs of these engines here."""
    others = "other runs of these engines on this machine"
    if noise is None:
        by = "what machines usually have" if before["usual"] else others
        return f"nothing was measured twice: the intervals rest on a noise of {before['share']:.1%}, by {by}"
    return f"run-to-run noise {noise:.1%}" + ("" if before["usual"] else f", also by {others}")


def sure_words(race: dict[str, Any]) -> list[str]:
    """Nothing while somebody is left of whom nothing is known."""
    if not race["survivors"] or not race["sure"]:
        return []
    chance = "more than 99%" if race["sure"] > SUREST else f"{race['sure']:.0%}"
    return [f"{race['survivors'][0]['arm']} is within {race['tolerance']:.0%} of the best with a chance of {chance}"]


def race_markdown(document: dict[str, Any]) -> str:
    rows = survivors(document["race"])
    table = ["| configuration | value | 95 % | rounds | judged at |", "|---|---:|---|---:|---|"]
    table += [f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |" for row in rows]
    notes = [f"- {' '.join(line.split())}" for line in race_lines(document)]
    title = f"## The race ({document['race']['metric']})"
    return "\n".join(["", title, "", *table, "", *notes]) + "\n"


def print_race(document: dict[str, Any]) -> None:
    """Below the ranking."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print()
    for line in race_lines(document):
        console.print(line, style="dim", markup=False, soft_wrap=True)


def print_space(document: dict[str, Any]) -> None:
    """What a dry run would measure and what not."""
    for name, found in document["searched"].items():
        print(f"searched: {name} from {found['low']:g} to {found['high']:g}")
    for row in document["configurations"]:
        print(f"{row['name']}: {row['options']}")
    for row in document["not_measured"]:
        print(f"not measured: {row['label']}: {row['reason']}")
