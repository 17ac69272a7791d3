"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[], None]


class Rate(ProgressColumn):
    """Finished parts per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class Reporter:
    """What long work tells the person at the terminal; results never go through here."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.live = self.console.is_terminal and not quiet

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def task(self, text: str, total: int | None = None) -> Iterator[Advance]:
        """One piece of work; call the yielded function once per finished part."""
        started = time.monotonic()
        if not self.live:
            self.say(f"{text} …")
            yield lambda: None
        else:
            with self._bar(total) as progress:
                task = progress.add_task(text, total=total)
                yield lambda: progress.advance(task)
        seconds = time.monotonic() - started
        if self.live or seconds >= 1:
            self.say(f"{text}: {seconds:.1f} s")

    def _bar(self, total: int | None) -> Progress:
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24)]
        columns += [MofNCompleteColumn(), Rate(), TimeRemainingColumn()] if total is not None else []
        return Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True)
