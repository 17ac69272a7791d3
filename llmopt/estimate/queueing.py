"""What a stream of requests meets: how busy it keeps the engine, and how long one waits for its first token.

Below saturation the requests in flight are those at which a closed loop completes as many a second (Little 1961).  A prompt
waits behind others as in a queue with one server and times that hardly vary, M/G/1 (Pollaczek 1930, Khinchine 1932).  Near
saturation waiting grows without bound and hangs on every burst: there no time is predicted, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmopt.estimate.roofline import Times

SATURATED = 0.8  # of what the engine can do at most, or of its time in prompts: above it nothing is predicted


@dataclass(frozen=True, kw_only=True)
class Queue:
    """``in_flight`` on average; ``utilisation``: of the highest rate; ``refused``: why there is no TTFT, in words."""

    in_flight: float
    utilisation: float
    ttft_s: float | None
    refused: str = ""


def queue_at(rate: float, at: Callable[[int], Times], most: int, variation: float = 0.0) -> Queue:
    """``rate`` requests a second, with at most ``most`` served at once; ``variation``: of prompts' times, squared."""
    capacity = at(most).requests_per_s or 0.0
    utilisation = rate / capacity if capacity else 1.0
    if utilisation >= 1:
        return Queue(
            in_flight=float(most), utilisation=utilisation, ttft_s=None,
            refused=f"{rate:g} requests/s are more than the {capacity:.3g} that it can do: the queue grows without end",
        )  # fmt: skip
    users = users_at(rate, at, most)
    now = at(users)
    busy = rate * now.prefill_s
    worst = max(utilisation, busy)
    if worst >= SATURATED:
        return Queue(
            in_flight=float(users), utilisation=worst, ttft_s=None,
            refused=f"at {worst:.0%} of saturation waiting hangs on every burst: measure it",
        )  # fmt: skip
    waiting = busy * now.prefill_s * (1 + variation) / (2 * (1 - busy))
    alone = at(1)
    # It also comes in the middle of a step of the others, on average half of it before the next begins.
    return Queue(
        in_flight=float(users),
        utilisation=worst,
        ttft_s=alone.ttft_s + waiting + now.step_s / 2 * min(1.0, users - 1 + busy),
    )


def users_at(rate: float, at: Callable[[int], Times], most: int) -> int:
    """The smallest closed loop that completes so many requests a second."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if (at(middle).requests_per_s or 0.0) >= rate:
            high = middle
        else:
            low = middle + 1
    return low
