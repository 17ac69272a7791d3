"""What holds a configuration back at its load, in plain words: a closed list, each with its evidence and what to try next.

The numbers are the run's own: the server's histograms and gauges where it has them, else the load curve (what grows when
more is asked) and the client's timelines.  A diagnosis doubts nothing; that is what the verdict does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from llmopt.recommend.candidates import Candidate
from llmopt.recommend.points import NOISY_SPREAD, Point, spread_of_three

FULL = 0.95  # of a KV cache: blocks are given out whole, so the last per cent is never used
HALF = 0.5
GROWN, STEADY = 2.0, 1.5  # times the figure at the lowest load of the curve
NEARLY_ALL = 0.9  # of the memory that there is
# A share of the card, whatever the load, unless told otherwise: their peak alone says nothing.
RESERVE = ("vllm", "sglang", "trtllm", "lmdeploy", "tgi", "rayserve", "triton")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """``evidence``: the numbers that say so, by name, in the units of METRICS.md."""

    code: str
    words: str
    next: str
    evidence: dict[str, float | None] = field(default_factory=dict)


def diagnose(candidate: Candidate) -> tuple[dict[str, Any], ...]:
    """All that is seen at the chosen point, what comes before the server first. JSON-ready."""
    if candidate.invalid:
        return ()
    return tuple(asdict(found) for ask in DIAGNOSES if (found := ask(candidate)) is not None)


def client_bound(c: Candidate) -> Diagnosis | None:
    """What to do is the run's own remedy: a client that waited for a processor needs another than one that was at its limit."""
    doubt = next((d for d in c.point.verdict.reasons if d.code == "client_saturated"), None)
    if doubt is None:
        return None
    client = c.point.record.client
    share, late = (client.get("ceiling") or {}).get("share"), (client.get("lateness_s") or {}).get("p99")
    return Diagnosis(
        code="client-bound",
        words="the load client was part of what was measured: the server may be faster than these figures",
        next=f"{doubt.remedy}; llmopt calibrate says what the client can take",
        evidence={
            "client_ceiling_share": share,
            "lateness_p99_s": late,
            "client_waited_share": client.get("waited_share"),
        },
    )


def noisy(c: Candidate) -> Diagnosis | None:
    spread = spread_of_three(c.point.values("output_tps"))
    loud = spread is not None and spread > NOISY_SPREAD
    if not loud and "machine_noisy" not in c.point.codes:
        return None
    steal = c.point.record.telemetry.get("steal_share")
    return Diagnosis(
        code="noisy",
        words="something else used the machine: the same runs differ" + (f" by {spread:.0%}" if loud else ""),
        next="a machine of its own, or more repeats: the median of five stands one bad run",
        evidence={"throughput_spread": spread, "steal_share": steal},
    )


def kv_starved(c: Candidate) -> Diagnosis | None:
    count, peak = c.value("preemptions"), c.value("kv_usage_peak")
    if not count and (peak is None or peak < FULL):
        return None
    many = f"{count:.0f} times requests were put back and computed again" if count else f"it was {peak:.0%} full"
    options = c.identity["serve"]
    seqs = options.get("max_num_seqs")
    return Diagnosis(
        code="kv-starved",
        words=f"the KV cache is too small for this load: {many}",
        next="more memory for it (--gpu-memory-utilization, a smaller quantization), a smaller type (--kv-cache-dtype fp8),"
        f" a shorter --max-model-len, or fewer --max-num-seqs{f' than {seqs}' if seqs else ''}",
        evidence={"preemptions": count, "kv_usage_peak": peak, "kv_capacity_tokens": c.value("kv_capacity_tokens")},
    )


def memory_bound(c: Candidate) -> Diagnosis | None:
    """Nearly all memory of the machine is needed: nothing is left for more sequences or a longer context.

    What an engine reserves of a GPU for its KV cache and never fills is taken by its own choice (vLLM and SGLang: .9 of the
    card); in main memory what was never touched is in no sample.
    """
    record = c.point.record
    peak, there, empty = c.value("peak_rss_bytes"), record.machine.memory_bytes, 0.0
    if video := c.value("peak_vram_bytes"):
        gpus = record.telemetry.get("gpu_memory_bytes") or [None]
        peak, there, empty = video, 0 if None in gpus else sum(gpus), reserved_and_empty(c)
    if not peak or not there or peak - empty < NEARLY_ALL * there:
        return None
    return Diagnosis(
        code="memory-bound",
        words=f"{(peak - empty) / there:.0%} of the memory that there is are needed",
        next="a smaller quantization, fewer --max-num-seqs, a shorter --max-model-len, or more memory",
        evidence={"peak_bytes": peak, "reserved_and_empty_bytes": empty, "memory_bytes": there},
    )


def reserved_and_empty(c: Candidate) -> float:
    """Bytes of a KV cache that nothing was in when it was fullest: all of them, as far as is known, where its size is not."""
    size, share = c.value("kv_cache_bytes"), c.value("kv_usage_peak")
    if size is None:
        return 0.0 if share is None and c.backend not in RESERVE else math.inf
    return max(0.0, size * (1 - (share or 0.0)))


def queueing(c: Candidate) -> Diagnosis | None:
    """Requests wait for their turn before anything is computed for them."""
    queue, ttft = c.value("server_queue", "mean"), c.value("ttft", "mean")
    share = queue / ttft if queue is not None and ttft else None
    lowest, full = c.points[0], over_full(c, c.point)
    grown = ratio(c.value("ttft", "p50"), lowest.value("ttft", "p50")) if c.at else None
    slowed = ratio(c.value("tpot", "p50"), lowest.value("tpot", "p50")) if c.at else None
    by_curve = share is None and (grown or 0) > GROWN and slowed is not None and slowed < STEADY
    if (
        not c.point.saturated
        and not (share is not None and share > HALF)
        and not by_curve
        and not (full and share is None)
    ):
        return None
    seqs, users = c.identity["serve"].get("max_num_seqs"), c.point.level
    if c.point.saturated:
        words = "requests come faster than they are answered: the queue grows as long as the load lasts"
    elif share is not None:
        words = f"requests wait for their turn: {share:.0%} of the time to the first token"
    elif by_curve:
        words = (
            f"requests wait for their turn: the first token takes {grown:.1f} times as long as at {lowest.load},"
            " the tokens after it no longer"
        )
    else:
        words = f"requests wait for their turn: there are {users:g} users, and {seqs} sequences at once"
    return Diagnosis(
        code="queueing",
        words=words,
        next=(f"more --max-num-seqs than {seqs} (there are {users:g} users), " if full else "")
        + "a second server, or a lower load",
        evidence={
            "server_queue_mean_s": queue,
            "queue_share_of_ttft": share,
            "ttft_growth": grown,
            "tpot_growth": slowed,
        },
    )


def over_full(c: Candidate, point: Point) -> bool:
    """Whether a closed loop has more users than the engine has sequences: some of them always wait."""
    seqs, users = c.identity["serve"].get("max_num_seqs"), point.level
    return seqs is not None and users is not None and point.workload["load"] == "closed" and users > seqs


def nobody_waits(c: Candidate, point: Point) -> bool:
    """One user alone, no more than the engine has sequences, or a rate that it keeps up with."""
    if point.workload["load"] != "closed":
        return not point.saturated
    return point.level == 1 or (c.identity["serve"].get("max_num_seqs") is not None and not over_full(c, point))


def prefill_bound(c: Candidate) -> Diagnosis | None:
    prefill, e2e = c.value("server_prefill", "mean"), c.value("e2e", "mean")
    source = "server_prefill_mean_s"
    if prefill is None and c.value("server_queue", "mean") is None:
        # Without a word of the server: the first token at the lowest load, if nobody waits there.
        if not nobody_waits(c, c.points[0]):
            return None
        prefill, e2e, source = c.points[0].value("ttft", "p50"), c.value("e2e", "p50"), "ttft_p50_at_lowest_load_s"
    share = ratio(prefill, e2e)
    if share is None or share <= HALF:
        return None
    return Diagnosis(
        code="prefill-bound",
        words=f"{share:.0%} of a request's time goes into its prompt",
        next="prefix caching where prompts share their beginning, chunked prefill, 8-bit activations (w8a8-int8, fp8),"
        " or shorter prompts: weights of fewer bits alone do not help here",
        evidence={source: prefill, "share_of_e2e": share, "input_tokens": c.point.workload.get("input_tokens")},
    )


def decode_bound(c: Candidate) -> Diagnosis | None:
    each, e2e = c.value("tpot", "p50"), c.value("e2e", "p50")
    tokens = int(c.point.workload.get("output_tokens") or 0)
    decode = each * (tokens - 1) if each is not None and tokens > 1 else None
    share = ratio(decode, e2e)
    if share is None or share <= HALF:
        return None
    slowed = ratio(each, c.points[0].value("tpot", "p50")) if c.at else None
    shared = slowed is not None and slowed > STEADY
    return Diagnosis(
        code="decode-bound",
        words=f"{min(share, 1):.0%} of a request's time goes into its tokens one after the other"
        + (f", each {slowed:.1f} times as long as at {c.points[0].load}" if shared else ""),
        next="weights of fewer bits (each token reads them all), speculative decoding, "
        + (
            "or fewer sequences at once: they slow each other"
            if shared
            else "or more sequences at once: they read the weights together"
        ),
        evidence={"tpot_p50_s": each, "decode_share_of_e2e": share, "tpot_growth": slowed},
    )


def ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


DIAGNOSES: tuple[Callable[[Candidate], Diagnosis | None], ...] = (
    client_bound,
    noisy,
    kv_starved,
    memory_bound,
    queueing,
    prefill_bound,
    decode_bound,
)
