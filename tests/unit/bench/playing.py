"""Hand-made schedules, played by real client processes against a scripted server."""

from __future__ import annotations

import json
import statistics
import uuid
from collections.abc import Sequence
from typing import Any

from llmopt.bench.endpoint import Endpoint
from llmopt.bench.load import LoadResult, clients, play
from llmopt.bench.schedule import PlannedRequest, Schedule
from llmopt.core.domain import RequestTrace
from llmopt.core.metrics import METRICS
from llmopt.serve.process import DIRECT

FAST = "scripted?ttft_ms=5&tpot_ms=1"


def planned(index: int, model: str = FAST, tokens: int = 8, prompt: str = "some words", **body: Any) -> PlannedRequest:
    asked = {
        "model": model,
        "prompt": prompt,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return PlannedRequest(index=index, body=json.dumps(asked | body).encode(), output_tokens=tokens, prompt_tokens=None)


def schedule(models: Sequence[str] | int, *, tokens: int = 8, **fields: Any) -> Schedule:
    """One request per model, or so many fast ones; a closed loop of one user unless ``fields`` say otherwise."""
    models = [FAST] * models if isinstance(models, int) else models
    requests = tuple(planned(index, model, tokens) for index, model in enumerate(models))
    known = {"first": tuple(range(len(requests))), "users": 1, "request_timeout_s": 10.0}
    return Schedule(requests=requests, **known | fields)


def run(
    base_url: str, plan: Schedule, *, endpoint: str = "completions", workers: int = 1, **options: Any
) -> LoadResult:
    with clients(workers) as crew:
        return play(crew, plan, Endpoint.of(base_url, endpoint, options.pop("headers", None)), **options)


def truth(base_url: str, prefix: str) -> list[dict[str, Any]]:
    """What the server really did with the requests of one run, in the order of their indices."""
    with DIRECT.open(base_url.removesuffix("/v1") + "/scripted/log?all=1", timeout=10) as response:
        rows = [row for row in json.load(response) if (row["request_id"] or "").startswith(prefix + "-")]
    return sorted(rows, key=lambda row: int(row["request_id"].rpartition("-")[2]))


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def kinds(result: LoadResult) -> list[str | None]:
    return [trace.error_kind for trace in result.traces]


def median(name: str, traces: Sequence[RequestTrace]) -> float:
    """Of a metric, in seconds."""
    values = [METRICS[name].of_request(trace) for trace in traces]
    return statistics.median(v for v in values if v is not None)
