"""The kernel stamps packets in CLOCK_REALTIME; everything else here is CLOCK_MONOTONIC. This is the bridge."""

from __future__ import annotations

import time

from llmopt.bench.recording import ClockOffset

TRIES = 5


def clock_offset() -> ClockOffset:
    """Realtime minus monotonic, bracketed: the reading whose two monotonic stamps lie closest together wins."""
    best: ClockOffset | None = None
    for _ in range(TRIES):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        found = ClockOffset((before + after) // 2, real - (before + after) // 2, after - before)
        if best is None or found.bracket_ns < best.bracket_ns:
            best = found
    assert best is not None
    return best
