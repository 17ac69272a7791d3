"""One progress line per finished layer, in the form that the parent reads from a worker's log."""

from __future__ import annotations

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
