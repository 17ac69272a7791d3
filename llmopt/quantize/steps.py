"""One progress line per finished layer, in the form that the parent reads from a worker's log."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys


def step(done: int, total: int, what: str, loss: float | None = None) -> None:
    """Print ``(done/total): what loss 1.2e-05`` as one whole line.

    A single write to a line of its own: libraries print bars that end without a newline, and from several threads.
    """
    text = f"({done}/{total}): {what}" + ("" if loss is None else f" loss {loss:.3g}")
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()


def without_bars() -> None:
    """Turn the libraries' own progress bars off; to be called before one of them is imported.

    Their ``(3/9): …`` counts layers that were begun, ours layers that are done, and thousands of redrawn lines bury a
    reason in the log.
    """
    os.environ["TQDM_DISABLE"] = "1"


def give_back_freed_memory() -> None:
    """Hand what is free between used blocks of the heap back to the system, where the C library can (glibc).

    It stays resident otherwise, layer after layer: 10 MiB of 580 with the bundled model.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
