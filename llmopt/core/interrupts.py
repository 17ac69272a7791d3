"""Ctrl-C at a moment that would lose finished work: noted, and told when the work is kept."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Within the ``with`` block Ctrl-C does what it always does, until ``hold`` is called; from then on it only sets ``came``.

    Between ``hold`` and the end of the block belongs what ends by itself and soon: nothing but SIGTERM ends it sooner.
    ``words`` are said on standard error each time that it comes.
    """

    def __init__(self, words: str = "") -> None:
        self.came = False
        self._words = words
        self._before: Any = None
        self._held = False

    def __enter__(self) -> Interrupts:
        return self

    def hold(self) -> None:
        # Only the main thread is interrupted, and only it may say what then happens.
        if not self._held and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            self._held = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if self._words:
            with contextlib.suppress(OSError):  # past sys.stderr, which may be in the middle of a word
                os.write(2, f"{self._words}\n".encode())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._held:
            signal.signal(signal.SIGINT, self._before)
            self._held = False
