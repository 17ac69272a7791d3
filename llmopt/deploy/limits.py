"""Of every gateway, whoever it is: how much one client may ask for, and how long nothing may come from an engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmopt.core.errors import UsageError
from llmopt.deploy.canary import EVERY_S
from llmopt.deploy.capacity import count, rps
from llmopt.deploy.plan import Deployment

LONGEST_SILENCE_S = 600  # where no limit is known: a long prompt may wait in the queue before its first token
WHOLE_FROM_RPS = 10  # below it a rate that is rounded up to whole requests a second would be another one
SLOWEST_RPS, FASTEST_RPS = 1 / 60, 1_000_000  # nginx counts whole requests a minute; above that nobody is limited


@dataclass(frozen=True, kw_only=True)
class ClientLimit:
    """Requests a second of one client's address, ``burst`` of them at once, and the reason in a few words."""

    rps: float
    burst: int
    why: str

    @property
    def per_second(self) -> int | None:
        """Whole requests a second; ``None`` where only ``per_minute`` is near enough."""
        whole = math.ceil(self.rps)
        return whole if whole == self.rps or self.rps >= WHOLE_FROM_RPS else None

    @property
    def per_minute(self) -> int:
        return max(1, math.ceil(self.rps * 60))


def require_client_limit(rps: float) -> None:
    """Raises UsageError for a limit that nginx would round up to several times as much, or could not read."""
    if not SLOWEST_RPS <= rps <= FASTEST_RPS:
        raise UsageError(
            f"--rate-limit {rps:g} is out of range",
            hint=f"from one request a minute (0.017) to {FASTEST_RPS} a second",
        )


def client_limit(deployment: Deployment) -> ClientLimit | None:
    """As asked for, or twice the most that all replicas may take; ``None`` where that is not known.

    The capacity that is planned with is the lower end of what was measured: with a wide interval twice that is less than
    what they can do, and the gateway would refuse the very load that it is verified with.
    """
    asked, capacity = deployment.wishes.rate_limit_rps, most_rps(deployment)
    limit = asked if asked is not None else capacity and 2 * capacity
    if not limit:
        return None
    why = (
        "as asked for"
        if asked is not None
        else f"twice the most that all replicas were measured to take ({capacity:.3g}/s)"
    )
    # A second's worth, and all users of all replicas twice: answers of one batch end together, and so do their users
    # ask again together. A burst of what one replica was measured with refused a fifth of its own benchmark.
    burst = max(math.ceil(limit), math.ceil(2 * concurrency(deployment) * deployment.replicas))
    return ClientLimit(rps=limit, burst=burst, why=why)


def most_rps(deployment: Deployment) -> float | None:
    """Of all replicas, by the upper end of what one was measured to take."""
    figure, planned = deployment.evidence.figures.get("requests_per_s"), deployment.capacity.total_rps
    ends = [v for v in (figure.value, figure.high) if v is not None] if figure else []
    known = [v * deployment.replicas for v in ends] + ([planned] if planned is not None else [])
    return max(known, default=None)


def doubts(deployment: Deployment) -> tuple[str, ...]:
    """Whoever measures is one client: a limit below the measured load is what they would find, and call a regression."""
    asked, most = deployment.wishes.rate_limit_rps, most_rps(deployment)
    if asked is None or most is None or asked >= float(rps(most)):  # as told: who asks for what the README says has it
        return ()
    watched = deployment.wishes.monitoring and deployment.wishes.target != "kubernetes"  # there not through the Ingress
    canary = "a canary that asks from there"
    if watched and asked < 1 / EVERY_S:
        canary = f"the canary, whose request every {EVERY_S} s is more than that by itself"
    return (
        f"--rate-limit {asked:g} is less than the {rps(most)} requests/s that {count(deployment.replicas)} may take"
        f" (one was measured with up to {rps(most / deployment.replicas)}):"
        " ./verify.sh asks for those from one address and is refused above the limit (429), and so is"
        f" {canary}; without --rate-limit a client may send twice what was measured",
    )


def concurrency(deployment: Deployment) -> float:
    """Requests at once on one replica, as measured."""
    return deployment.evidence.concurrency or deployment.engine.max_num_seqs


def silence_s(deployment: Deployment) -> int:
    """How long nothing may come from an engine: the limit that requests were measured with."""
    return math.ceil(float(deployment.evidence.workload.get("request_timeout_s") or LONGEST_SILENCE_S))
