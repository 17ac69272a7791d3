"""TensorRT-LLM's ``trtllm-serve`` with its PyTorch backend. Described from the source of 1.2 and 1.3; never run here.

A part of its options exists in a file only (``--extra_llm_api_options``), which overrides the command line: what the file
holds of the KV cache, it holds whole.  ``--gpu-memory-utilization`` is its share of the memory that is free after the
weights were loaded, for the KV cache alone.  ``/metrics`` is JSON of iterations; Prometheus text is elsewhere, and only
with ``return_perf_metrics``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmopt.core.domain import ServeOptions, ServerCommand
from llmopt.core.environments import Needs
from llmopt.core.errors import UsageError
from llmopt.core.worker import QUIET_ENGINES
from llmopt.serve import Backend, Container, Failure, LaunchContext
from llmopt.serve.container import NVIDIA_GPUS, SHARED_MEMORY
from llmopt.serve.facts import EngineFacts, numbers, sizes, total
from llmopt.serve.options import Switch

START_S = 900.0
GUESSES = 3
# Every rank says the first once.
WEIGHTS = "Memory used after loading model weights (inside torch) in memory usage profiling"
ACTIVATIONS = "Memory dynamically allocated during inference (inside torch) in memory usage profiling"
CACHE = "for max tokens in paged KV cache"
RANK = re.compile(r"\[RANK (\d+)\]")
# Option of ours → field of its kv_cache_config.
OF_THE_CACHE = {
    "enable_prefix_caching": "enable_block_reuse",
    "gpu_memory_utilization": "free_gpu_memory_fraction",
    "kv_cache_dtype": "dtype",
    "block_size": "tokens_per_block",
}


def command(context: LaunchContext) -> ServerCommand:
    settings = f"{context.folder}/trtllm.yaml"
    argv = [
        *(context.program("trtllm-serve"), context.model),
        *("--backend", "pytorch"),
        *("--host", context.host, "--port", str(context.port)),
        *("--extra_llm_api_options", settings),
        *BACKEND.arguments(context.options),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=context.base_url,
        model=Path(context.model).name,  # it names a folder so, and knows no other name
        environment=QUIET_ENGINES,
        ready_timeout_s=START_S,
        files={settings: json.dumps(extra_options(context.options), indent=1) + "\n"},
    )


def extra_options(options: ServeOptions) -> dict[str, Any]:
    """What only its file takes; JSON is YAML. Raises UsageError for a number of guesses that nobody makes."""
    asked = options.asked
    extra: dict[str, Any] = {"return_perf_metrics": True, "enable_iter_perf_stats": True}
    if cache := {field: asked[name] for name, field in OF_THE_CACHE.items() if name in asked}:
        extra["kv_cache_config"] = cache
    if options.attn_implementation:
        extra["attn_backend"] = options.attn_implementation
    if options.enforce_eager:
        extra["cuda_graph_config"] = None
    guesses = options.num_speculative_tokens or GUESSES
    if options.speculative_model == "ngram":
        extra["speculative_config"] = {"decoding_type": "NGram", "max_draft_len": guesses}
    elif options.speculative_model:
        extra["speculative_config"] = {
            "decoding_type": "Draft_Target",
            "max_draft_len": guesses,
            "speculative_model": options.speculative_model,
        }
    elif options.num_speculative_tokens is not None:
        raise UsageError("--num-speculative-tokens without a draft", hint="--speculative-model ngram, or a folder")
    return extra


def facts(lines: Sequence[str]) -> EngineFacts:
    """Every rank tells its own share, and all of them hold the same tokens.

    The cache is built twice: small, to find out what a step needs, then in full. The last word of each rank counts.
    """
    weights = last_words(WEIGHTS, lines, ranks=sum(WEIGHTS in line for line in lines))
    caches = last_words(CACHE, lines, ranks=len(weights) or 1)
    activations = last_words(ACTIVATIONS, lines, ranks=len(weights) or 1)
    tokens = numbers(r"for max tokens in paged KV cache \((\d+)\)", caches)
    size = r"([\d.]+) (GiB)"
    return EngineFacts(
        weights_bytes=total(sizes(f"profiling: {size}", weights)),
        kv_cache_bytes=total(sizes(f"Allocated {size}", caches)),
        activation_bytes=total(sizes(f"profiling: {size}", activations)),
        kv_capacity_tokens=int(min(tokens)) if tokens else None,
    )


def last_words(words: str, lines: Sequence[str], *, ranks: int) -> list[str]:
    """Of the lines with these words the last of each rank; where they name no rank, as many as there are ranks."""
    said = [line for line in lines if words in line]
    named = {rank[1]: line for line in said if (rank := RANK.search(line))}
    return list(named.values()) if named else said[-ranks:]


BACKEND = Backend(
    name="trtllm",
    title="TensorRT-LLM",
    formats=("plain",),
    needs=Needs(modules=("tensorrt_llm",), extra="trtllm"),
    distribution="tensorrt_llm",
    devices=("cuda",),
    command=command,
    facts=facts,
    flags={
        "max_model_len": "--max_seq_len",
        "max_num_seqs": "--max_batch_size",
        "max_num_batched_tokens": "--max_num_tokens",
        "tensor_parallel_size": "--tp_size",
        "pipeline_parallel_size": "--pp_size",
        "enable_chunked_prefill": Switch(on="--enable_chunked_prefill"),
        # In the file:
        **dict.fromkeys(OF_THE_CACHE, Switch()),
        **dict.fromkeys(("attn_implementation", "enforce_eager", "speculative_model", "num_speculative_tokens"), Switch()),
    },
    container=Container(image="nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc20", options=(*NVIDIA_GPUS, *SHARED_MEMORY)),
    metrics={
        "time_to_first_token": "trtllm_time_to_first_token_seconds",
        "queue_time": "trtllm_request_queue_time_seconds",
        "prefill_time": "trtllm_request_prefill_time_seconds",
        "decode_time": "trtllm_request_decode_time_seconds",
        "e2e_time": "trtllm_e2e_request_latency_seconds",
        "prefix_cache_queries": "trtllm_prompt_tokens_total",
        "prefix_cache_hits": "trtllm_prompt_cached_tokens_total",
        "kv_cache_usage": "trtllm_kv_cache_utilization",
        "running": "trtllm_num_requests_running",
        "waiting": "trtllm_num_requests_waiting",
    },
    metrics_path="/prometheus/metrics",
    failures=(
        Failure(pattern=r"No GPU devices found on the node", cause="it sees no NVIDIA GPU", remedy="run it where there is one"),
        Failure(pattern=r"Failed to bind socket to (\S+)", cause="the port is taken", remedy="name another one: --port"),
        Failure(pattern=r"tokensPerBlock must be a power of 2|tokens_per_block .*power of (?:2|two)",
                cause="a block of its KV cache must be a power of two", remedy="--block-size 32"),
        Failure(pattern=r"The (?:max )?number of (?:kv cache )?blocks .*insufficient|can't be allocated to KV Cache for one sequence",
                cause="its KV cache has no room for one sequence",
                remedy="a shorter --max-model-len, or a larger --gpu-memory-utilization"),
    ),
)  # fmt: skip
