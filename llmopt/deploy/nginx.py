"""nginx before the replicas: balance, retries where they are safe, limits, and streams that are not held back.

Written for 1.22 and newer, which is what Debian has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.deploy.limits import client_limit
from llmopt.deploy.plan import Deployment
from llmopt.deploy.templates import render

# Of an address that has no key that is known.
GUESSES_PER_S, GUESSES_AT_ONCE = 1, 10
# A line for each key in the file of those who may ask, which names the key twice (docs/gateway.md).
KEY_LINE = '"Bearer THE-KEY" THE-KEY;'
FAIL_TIMEOUT_S = 2
CONNECT_TIMEOUT_S = 2
SMALLEST_READ_TIMEOUT_S, LARGEST_READ_TIMEOUT_S = 60, 3600
BODY_IN_MEMORY = 1024**2
HOST_NAME = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)*[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
)
LONGEST_HOST_NAME = 253  # RFC 1035, as it is written: without the dot of the root
LITELLM_HEALTH = "/health/liveliness"
CERTIFICATE, CERTIFICATE_KEY = "/certs/tls.crt", "/certs/tls.key"


def nginx_conf(
    deployment: Deployment,
    *,
    upstreams: Sequence[str],
    listen: str = "0.0.0.0:8080",
    status: str | None = "127.0.0.1:8081",
    access_log: str = "/dev/stdout",
    certificate: tuple[str, str] = (CERTIFICATE, CERTIFICATE_KEY),
    keys: str | None = None,
) -> str:
    """``upstreams``, ``listen`` and ``status`` are ``host:port``; ``certificate``: files of the chain and its key, used
    with ``--tls``; ``keys``: a file of those who may ask, everybody without it.  A path that is not absolute is below the
    folder that nginx is started with (``-p``), that of the keys below the configuration's own.

    Raises UsageError for a domain that is none.
    """
    wishes = deployment.wishes
    if wishes.domain is not None:
        require_host_name(wishes.domain)
    read_timeout_s, read_why = read_timeout(deployment)
    return render(
        "nginx.conf.j2",
        deployment=deployment.name,
        version=deployment.llmopt_version,
        upstreams=list(upstreams),
        listen=listen,
        status=status,
        access_log=access_log,
        server_name=wishes.domain or "_",
        certificate=certificate[0] if wishes.tls else None,
        certificate_key=certificate[1],
        keys=keys,
        key_line=KEY_LINE,
        guesses_per_s=GUESSES_PER_S,
        guesses_at_once=GUESSES_AT_ONCE,
        health_path=LITELLM_HEALTH if wishes.gateway == "litellm" else deployment.engine.health_path,
        fail_timeout_s=FAIL_TIMEOUT_S,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        read_timeout_s=read_timeout_s,
        read_why=read_why,
        # Every replica once, and one more for what happened to the first.
        tries=min(4, len(upstreams) + 1),
        max_body_bytes=wishes.max_body_bytes,
        body_buffer_bytes=min(wishes.max_body_bytes, BODY_IN_MEMORY),
        **rate_limit(deployment),
    )


def require_host_name(domain: str) -> None:
    if len(domain) > LONGEST_HOST_NAME or not HOST_NAME.fullmatch(domain):
        raise UsageError(f"{domain!r} is no host name", hint="--domain llm.example.org")


def asks_for_keys(deployment: Deployment) -> bool:
    """nginx does where others can reach it and nobody behind it does."""
    return deployment.wishes.domain is not None and deployment.wishes.gateway == "nginx"


def rate_limit(deployment: Deployment) -> dict[str, Any]:
    """nginx knows whole numbers of requests a second, or of a minute."""
    limit = client_limit(deployment)
    if limit is None:
        return {"rate": None, "rate_why": "", "burst": 0, "retry_after_s": 1}
    whole = limit.per_second
    return {
        "rate": f"{limit.per_minute}r/m" if whole is None else f"{whole}r/s",
        "rate_why": f"{limit.rps:.3g} requests a second from one address: {limit.why}.",
        "burst": limit.burst,
        "retry_after_s": max(1, math.ceil(1 / limit.rps)),
    }


def read_timeout(deployment: Deployment) -> tuple[int, str]:
    """Seconds, and the reason: what the measured client waited for, or the longest answer that the context allows."""
    patience = deployment.evidence.workload.get("request_timeout_s") or 0.0
    figures = deployment.evidence.figures
    ttft, tpot = (figures[n].value if n in figures else None for n in ("ttft_p95", "tpot_p95"))
    longest = 0.0
    if tpot is not None and deployment.engine.max_model_len:
        longest = (ttft or 0.0) + tpot * deployment.engine.max_model_len
    why = (
        "the longest answer that fits the context, at the measured p95"
        if longest > patience
        else "as long as the measured client waited"
    )
    chosen = min(max(patience, longest, SMALLEST_READ_TIMEOUT_S), LARGEST_READ_TIMEOUT_S)
    if chosen in (SMALLEST_READ_TIMEOUT_S, LARGEST_READ_TIMEOUT_S):
        why = "a minute at least, an hour at most"
    return math.ceil(chosen), f"{math.ceil(chosen)} s, {why}."
