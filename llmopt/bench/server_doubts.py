"""What a run doubts when it hears the server: two clocks that differ, requests that are not ours, memory that was short."""

from __future__ import annotations

from collections.abc import Callable

from llmopt.bench.evidence import Evidence
from llmopt.core.domain import Doubt

FULL = 0.99  # of the blocks of a KV cache: the next token of somebody has to wait
CLOCKS = {
    "ttft": (
        "time to first token",
        "the rest passes in the server's HTTP half, its tokenizer or the network: measure on the server's own machine,"
        " leave it a free core, or give it more API processes",
    ),
    "itl": (
        "time between tokens",
        "the server holds tokens back or sends them in bursts: look at its proxy or event loop",
    ),
}


def server_disagrees(e: Evidence) -> Doubt | None:
    """The first clock of the two that is off by more than is allowed (``agreement.ALLOWED``, with its reason)."""
    for name, (words, remedy) in CLOCKS.items():
        found = e.agreement.get(name) or {}
        if found.get("agrees") is False:
            client, server = found["client_s"] * 1e3, found["server_s"] * 1e3
            return Doubt(
                code="server_disagrees",
                severity="suspect",
                message=f"mean {words}: {client:.1f} ms for the client, {server:.1f} ms by the server's own count"
                f" of the same {found['n']}",
                remedy=remedy,
            )
    return None


def other_traffic(e: Evidence) -> Doubt | None:
    """The server answered more than was asked here; a request that was tried again counts as often as it was tried."""
    counted = e.server.get("requests")
    ours = sum((t.sent_ns is not None) + len(t.attempts) for t in e.traces)
    if counted is None or counted <= ours:
        return None
    return Doubt(
        code="other_traffic",
        severity="suspect",
        message=f"the server counts {counted} requests in this time, {counted - ours} more than were sent from here",
        remedy="measure while nobody else uses the server",
    )


def preempted(e: Evidence) -> Doubt | None:
    count = e.server.get("preemptions")
    if not count:
        return None
    return Doubt(
        code="preemptions",
        severity="suspect",
        message=f"the engine put requests back {count:.0f} times because its KV cache was full: their work was done twice",
        remedy="fewer --max-num-seqs, a lower load, or more memory for the KV cache (--gpu-memory-utilization, --kv-cache-dtype)",
    )


def kv_cache_full(e: Evidence) -> Doubt | None:
    if e.kv_usage_peak is None or e.kv_usage_peak < FULL:
        return None
    return Doubt(
        code="kv_cache_full",
        severity="suspect",
        message=f"the KV cache was {e.kv_usage_peak:.0%} full: requests waited for memory, not for computation",
        remedy="more memory for the KV cache (--gpu-memory-utilization, --kv-cache-dtype), or a lower load",
    )


def memory_split(e: Evidence) -> Doubt | None:
    if e.memory.get("adds_up") is not False:
        return None
    off = e.memory["unexplained_bytes"] / e.memory["total_bytes"]
    return Doubt(
        code="memory_split",
        severity="suspect",
        message=f"the engine's own figures of its memory are {abs(off):.0%} {'below' if off > 0 else 'above'} what was"
        f" sampled ({e.memory['total_is']})",
        remedy="trust the sampled total; the parts are only the engine's word",
    )


SERVER_DOUBTS: tuple[Callable[[Evidence], Doubt | None], ...] = (
    server_disagrees,
    other_traffic,
    preempted,
    kv_cache_full,
    memory_split,
)
