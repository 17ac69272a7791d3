"""The client's clock against the server's own, over the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmopt.core.domain import RequestTrace
from llmopt.core.metric_table import NS, tokens_of_first_chunk

# (seconds, share): a difference within both together is agreement.  The scripted server and transformers are within 2 ms + 2 %
# (benchmarks/serving): connection, HTTP and tokenizing lie between the two clocks.  Five times that is more than they take
# where nothing is wrong; vLLM 0.32 on two cores holds some first tokens back for longer, and is doubted for it.  A gap between tokens has
# none of them in it: only how evenly chunks are sent, which a mean evens out.
ALLOWED = {"ttft": (0.010, 0.10), "itl": (0.001, 0.10)}
SAME_TOKENS = 0.05  # by which the numbers of gaps may differ: chunks that were read together are one to the client


def compare(traces: Sequence[RequestTrace], window: Mapping[str, Any]) -> dict[str, Any]:
    """Means of both sides with the difference that is allowed: ``agrees``, or ``why`` they cannot be compared."""
    return {"ttft": compare_ttft(traces, window), "itl": compare_itl(traces, window)}


def compare_ttft(traces: Sequence[RequestTrace], window: Mapping[str, Any]) -> dict[str, Any]:
    """Mean time from a request's first byte sent to its first token, and from its arrival to its first token."""
    waits = [
        (t.first_token_ns - t.sent_ns) * NS for t in traces if t.first_token_ns is not None and t.sent_ns is not None
    ]
    server = window.get("server_ttft_s")
    if server is None:
        return unknown("the server does not tell it")
    if server["n"] != len(waits):
        return unknown(f"the server counts {server['n']} first tokens, the client {len(waits)}")
    return compared("ttft", sum(waits) / len(waits), server["mean"], len(waits))


def compare_itl(traces: Sequence[RequestTrace], window: Mapping[str, Any]) -> dict[str, Any]:
    """Mean time from one token to the next, over the tokens of all requests."""
    server = window.get("server_itl_s")
    if server is None:
        return unknown("the server does not tell it")
    spans, gaps = 0.0, 0.0
    for trace in traces:
        first = tokens_of_first_chunk(trace)
        if len(trace.chunks_ns) > 1 and trace.output_tokens is not None and first is not None:
            spans += (trace.chunks_ns[-1] - trace.chunks_ns[0]) * NS
            gaps += trace.output_tokens - first
    if not gaps:
        return unknown("the client knows no gap between tokens")
    if abs(server["n"] - gaps) > SAME_TOKENS * gaps:
        return unknown(f"the server counts {server['n']} gaps between tokens, the client {gaps:.0f}")
    return compared("itl", spans / gaps, server["mean"], round(gaps))


def compared(name: str, client_s: float, server_s: float, n: int) -> dict[str, Any]:
    fixed_s, share = ALLOWED[name]
    allowed_s = fixed_s + share * server_s
    return {
        "client_s": client_s,
        "server_s": server_s,
        "allowed_s": allowed_s,
        "n": n,
        "agrees": abs(client_s - server_s) <= allowed_s,
        "why": None,
    }


def unknown(why: str) -> dict[str, Any]:
    return {"client_s": None, "server_s": None, "allowed_s": None, "n": 0, "agrees": None, "why": why}
