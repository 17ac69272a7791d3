"""The loads that every client is put under."""

from __future__ import annotations

from peers import Case

CASES = {
    case.name: case
    for case in (
        Case(
            name="closed-1",
            about="closed loop, 1 user, 64 tokens 10 ms apart",
            concurrency=1, requests=64, output_tokens=64, ttft_ms=50, tpot_ms=10,
        ),
        Case(
            name="closed-64",
            about="closed loop, 64 users, 64 tokens 10 ms apart",
            concurrency=64, requests=640, output_tokens=64, ttft_ms=50, tpot_ms=10,
        ),
        Case(
            name="closed-256",
            about="closed loop, 256 users, 64 tokens 10 ms apart",
            concurrency=256, requests=2560, output_tokens=64, ttft_ms=50, tpot_ms=10,
        ),
        Case(
            name="closed-100-fast",
            about="closed loop, 100 users, 256 tokens 1 ms apart",
            concurrency=100, requests=400, output_tokens=256, ttft_ms=50, tpot_ms=1,
        ),
        Case(
            name="open-200",
            about="open loop, 200 requests/s for 10 s, 16 tokens 2 ms apart",
            rate=200, requests=2000, output_tokens=16, ttft_ms=50, tpot_ms=2,
        ),
        Case(
            name="open-1000",
            about="open loop, 1000 requests/s for 5 s, 16 tokens 2 ms apart",
            rate=1000, requests=5000, output_tokens=16, ttft_ms=50, tpot_ms=2,
        ),
        Case(
            name="overload",
            about="open loop, 60 requests/s for 10 s onto a server that does 40/s",
            rate=60, requests=600, output_tokens=16, ttft_ms=50, tpot_ms=10, max_num_seqs=8,
        ),
        Case(
            name="overload-capped",
            about="the same with at most 8 requests in flight: the queue is in the client",
            rate=60, requests=600, output_tokens=16, ttft_ms=50, tpot_ms=10, max_num_seqs=8, max_concurrency=8,
        ),
        Case(
            name="cut",
            about="closed loop, 8 users, 20 of 100 streams end in the middle as if they were whole",
            concurrency=8, requests=100, output_tokens=64, ttft_ms=50, tpot_ms=10,
            model="scripted?trap=cut-clean&times=20",
        ),
    )
}  # fmt: skip
