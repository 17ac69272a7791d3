"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llmopt.core.escaping import visible

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

LINE_S = 10.0


class Work:
    """A running piece of work: ``advance`` by one part, or say ``at`` which part of how many it is.

    Where nothing is live (a pipe, CI), ``line`` is told where the work is every ``LINE_S`` seconds, with the time left.
    """

    def __init__(
        self, progress: Progress | None, task: TaskID | None, line: Callable[[str], None] = lambda text: None
    ) -> None:
        self.progress, self.task, self.line = progress, task, line
        self.started = self.last = time.monotonic()

    def advance(self) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.advance(self.task)

    def at(self, done: int, total: int | None, what: str = "") -> None:
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, total=total, what=what)
            return
        now = time.monotonic()
        if (total or what) and now - self.last >= LINE_S:
            self.last = now
            left = f", about {(now - self.started) / done * (total - done):.0f} s left" if done and total else ""
            self.line(f"  {f'{done}/{total} ' if total else ''}{what}".rstrip() + left)


class Reporter:
    """What long work tells the person at the terminal; results never go through here.

    rich is imported for a live bar alone: a run that is piped starts 30 ms earlier without it.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty() and not quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(visible(text), file=sys.stderr, flush=True)  # names of files are in it

    @contextlib.contextmanager
    def task(self, text: str, total: int | None = None) -> Iterator[Work]:
        """One piece of work; tell the yielded ``Work`` how far it is."""
        started = time.monotonic()
        if not self.live:
            self.say(f"{text} …")
            yield Work(None, None, self.say)
        else:
            with bar() as progress:
                yield Work(progress, progress.add_task(text, total=total, what=""))
        seconds = time.monotonic() - started
        if self.live or seconds >= 1:
            self.say(f"{text}: {seconds:.1f} s")


def bar() -> Progress:
    """A transient bar with rate and time left on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Finished parts of how many, and how many a second, once there is a total."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text(f"{task.completed:.0f}" if task.completed else "")
            return Text(f"{task.completed:.0f}/{task.total:.0f}" + (f" {task.speed:.1f}/s" if task.speed else ""))

    words, what = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[what]}", markup=False)
    columns = (SpinnerColumn(), words, BarColumn(bar_width=24), Rate(), what)
    console = Console(stderr=True, highlight=False)
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
