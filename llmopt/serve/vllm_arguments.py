"""vLLM inside another server (Ray Serve, Triton): its engine's arguments as JSON, under its own names, which are ours."""

from __future__ import annotations

import json
from typing import Any

from llmopt.core.domain import ServeOptions
from llmopt.serve.options import Flag, Switch
from llmopt.serve.vllm import limit_images, speculative

NAMES = (
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_dtype",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "gpu_memory_utilization",
    "block_size",
    "enforce_eager",
)
# What such a backend's table of flags holds: they are in a file, none is a word of the command line.
FLAGS: dict[str, Flag] = dict.fromkeys(
    (*NAMES, "speculative_model", "num_speculative_tokens", "limit_mm_per_prompt"), Switch()
)


def engine_arguments(options: ServeOptions) -> dict[str, Any]:
    """What was asked for, as ``AsyncEngineArgs`` takes it. Raises UsageError."""
    asked = options.asked
    found = {name: asked[name] for name in NAMES if name in asked}
    if draft := speculative(options):
        found["speculative_config"] = json.loads(draft[1])
    if options.limit_mm_per_prompt:
        found["limit_mm_per_prompt"] = json.loads(limit_images(options.limit_mm_per_prompt)[1])
    return found


def whole_arguments(options: ServeOptions) -> dict[str, Any] | None:
    """The same, or ``None`` where some of what was asked for is a word of the command line alone. Raises UsageError.

    Threads are in the environment, wherever the engine runs.
    """
    return engine_arguments(options) if options.asked.keys() <= {*FLAGS, "threads"} else None
