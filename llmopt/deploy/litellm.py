"""LiteLLM's proxy behind nginx: a key, one model name over all replicas, retries, cooldown, and a response cache in Redis.

Option names are those of the version below, read in its source and run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmopt.deploy.limits import concurrency
from llmopt.deploy.nginx import read_timeout
from llmopt.deploy.plan import Deployment
from llmopt.deploy.templates import render

VERSION = "1.106.2"
# The proxy imports it whenever it refuses a key, with a database or without: where it is missing, a refusal is a 500 (1.106.2).
BESIDE = "prisma==0.15.0"
REQUIREMENTS = (f"litellm[proxy]=={VERSION}", BESIDE)
RETRIES = 2
COOLDOWN_S = 5
CACHED_S = 3600
CACHED_CALLS = ["acompletion", "atext_completion"]


def litellm_config(deployment: Deployment, *, backends: Sequence[str], redis: str | None) -> dict[str, Any]:
    """``backends``: the ``/v1`` addresses of the replicas; ``redis``: ``host:port`` of the cache.

    There is no fallback to another model: there is one model here.  What one replica fails at, another is asked.
    """
    timeout_s = read_timeout(deployment)[0]
    return {
        "model_list": [replica(deployment, number, address, timeout_s) for number, address in enumerate(backends)],
        "router_settings": {
            # least-busy would be better, were it not that it never forgets a client who left in the middle of a stream:
            # of five of them all five still counted as running (1.106.2), and the replica that had more of them got less.
            "routing_strategy": "simple-shuffle",
            "num_retries": min(RETRIES, max(1, len(backends) - 1)),
            "timeout": timeout_s,
            # One failure takes a replica out for a few seconds, as in nginx.
            "allowed_fails": 0,
            "cooldown_time": COOLDOWN_S,
        },
        "litellm_settings": {
            "request_timeout": timeout_s,
            "drop_params": False,  # an option that the engine lacks is an error, as it is without the proxy
            "turn_off_message_logging": True,
            **({"cache": True, "cache_params": cache(deployment, redis)} if redis else {}),
        },
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }


def replica(deployment: Deployment, number: int, address: str, timeout_s: int) -> dict[str, Any]:
    """``openai/`` passes /v1/completions and /v1/chat/completions on as they are; the engine itself takes no key."""
    return {
        "model_name": deployment.engine.model,
        "litellm_params": {
            "model": f"openai/{deployment.engine.model}",
            "api_base": address,
            "api_key": "none",
            "timeout": timeout_s,
            "stream_timeout": timeout_s,
            "max_parallel_requests": most_at_once(deployment),
        },
        "model_info": {"id": f"{deployment.name}-{number + 1}"},
    }


def cache(deployment: Deployment, redis: str) -> dict[str, Any]:
    host, _, port = redis.rpartition(":")
    return {
        "type": "redis",
        "host": host,
        "port": int(port),
        "namespace": deployment.name,
        "ttl": CACHED_S,
        "supported_call_types": CACHED_CALLS,
    }


def most_at_once(deployment: Deployment) -> int:
    """Requests on one replica: as many as it was measured with, and as many again that wait; more get a 429 at once.

    It is the one limit that holds without a database: ``rpm`` and ``global_max_parallel_requests`` let all pass (1.106.2).
    """
    return math.ceil(2 * concurrency(deployment))


def litellm_dockerfile() -> str:
    return render("litellm.Dockerfile", requirements=REQUIREMENTS)
