"""Who is told how far long work is; the command line passes one in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Work(Protocol):
    """A running piece of work."""

    def advance(self) -> None: ...
    def at(self, done: int, total: int | None, what: str = "") -> None: ...


class Reporter(Protocol):
    """Who is told how far things are."""

    def say(self, text: str) -> None: ...
    def task(self, text: str, total: int | None = None) -> AbstractContextManager[Work]: ...
