"""What a load client is told: every byte to send and every moment to send it at, fixed before the run."""

from __future__ import annotations

import msgspec

BY_CALLER = "stopped by the caller"  # how a client says that it ended because it was told to


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One client's share of a run. Times are nanoseconds; ``offsets_ns`` are relative to the start of the run.

    ``requests`` are whole HTTP messages.  ``first`` are the requests that open a conversation, in order; ``follower[i]``
    is the request that comes ``think_ns`` after request i has ended (-1: none).  Without ``offsets_ns`` the loop is
    closed: ``users`` slots, each taking the next conversation when its last one has ended; with ``again`` it begins anew
    after the last one (request i is then i plus a multiple of their number).  With them the loop is open, and ``users``
    (0: no limit) is a cap on requests in flight; what waits for it was planned all the same.
    """

    family: int
    address: tuple[str, int]
    server_name: str
    tls: bool
    tunnel: bytes
    requests: list[bytes]
    first: list[int]
    follower: list[int] = []
    think_ns: int = 0
    offsets_ns: list[int] | None = None
    users: int = 0
    again: bool = False
    warm_connections: int = 1
    duration_ns: int | None = None
    connect_timeout_ns: int = 10_000_000_000
    request_timeout_ns: int = 120_000_000_000
    stall_timeout_ns: int = 60_000_000_000
    retries: int = 0
    give_up_after: int = 0
    max_response_bytes: int = 32 << 20
