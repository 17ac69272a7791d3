"""Who sends what when: a schedule in, ``RequestTrace`` out is the whole contract with the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmopt.core.domain import Workload


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """One request: the JSON body to post, and what was asked for."""

    index: int
    body: dict[str, Any]
    output_tokens: int
    prompt_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """``concurrency`` slots, each sending its next request the moment its last one has ended."""

    requests: tuple[PlannedRequest, ...]
    concurrency: int
    timeout_s: float


def closed_loop(
    workload: Workload, texts: tuple[str, ...], model: str, *, prompt_tokens: int | None, usage_per_chunk: bool
) -> ClosedLoop:
    """The schedule of one run; greedy decoding to a fixed length, so that every engine does the same work."""
    requests = []
    for index, text in enumerate(texts):
        prompt = {"messages": [{"role": "user", "content": text}]} if workload.endpoint == "chat" else {"prompt": text}
        options = {"include_usage": True} | ({"continuous_usage_stats": True} if usage_per_chunk else {})
        body = {
            "model": model,
            **prompt,
            "max_tokens": workload.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": options,
        }
        planned = PlannedRequest(
            index=index, body=body, output_tokens=workload.output_tokens, prompt_tokens=prompt_tokens
        )
        requests.append(planned)
    return ClosedLoop(requests=tuple(requests), concurrency=workload.concurrency, timeout_s=workload.request_timeout_s)
