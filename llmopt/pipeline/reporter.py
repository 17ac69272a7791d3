"""Who is told how far long work is; the command line passes one in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


class Work(Protocol):
    """A running piece of work."""

    def advance(self) -> None: ...
    def at(self, done: int, total: int | None, what: str = "") -> None: ...


class Reporter(Protocol):
    """Who is told how far things are."""

    def say(self, text: str) -> None: ...
    def task(self, text: str, total: int | None = None) -> AbstractContextManager[Work]: ...


@dataclass
class Part:
    """A piece of a larger piece of work; only the larger one is shown, with the words of the piece."""

    whole: Within
    text: str

    def advance(self) -> None:
        self.whole.shown(self.text)

    def at(self, done: int, total: int | None, what: str = "") -> None:
        self.whole.shown(self.text)


@dataclass
class Within:
    """A Reporter for the parts of one piece of work: ``done`` of ``total`` of it, and no line for each part."""

    report: Reporter
    work: Work
    total: int
    done: int = 0

    def say(self, text: str) -> None:
        self.report.say(text)

    @contextlib.contextmanager
    def task(self, text: str, total: int | None = None) -> Iterator[Part]:
        self.shown(text)
        yield Part(self, text)

    def shown(self, what: str) -> None:
        self.work.at(self.done, self.total, what)
