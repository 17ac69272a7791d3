"""SGLang's server. Described from the source of 0.5.23; never run here: its CPU kernels are in no wheel.

It names sizes in GB and means 2³⁰ bytes.  ``--gpu-memory-utilization`` becomes its ``--mem-fraction-static``: the share for
weights and KV cache together, without activations and graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmopt.core.domain import ServeOptions, ServerCommand
from llmopt.core.environments import Needs
from llmopt.core.errors import UsageError
from llmopt.core.worker import QUIET_ENGINES
from llmopt.serve import Backend, Container, Failure, LaunchContext
from llmopt.serve.container import NVIDIA_GPUS, SHARED_MEMORY
from llmopt.serve.facts import EngineFacts, numbers
from llmopt.serve.options import Switch

GIB = 1 << 30
START_S = 900.0  # it compiles kernels and captures graphs before it answers
GUESSES = 3


def command(context: LaunchContext) -> ServerCommand:
    require_consistent(context.options)
    name = Path(context.artifact.path).name
    argv = [
        *(context.program("sglang"), "serve"),
        *("--model-path", context.model, "--served-model-name", name),
        *("--host", context.host, "--port", str(context.port)),
        *("--enable-metrics", "--enable-cache-report"),
        *speculative(context.options),
        *BACKEND.arguments(context.options),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=context.base_url,
        model=name,
        environment=QUIET_ENGINES,
        usage_per_chunk=True,
        ready_timeout_s=START_S,
    )


def speculative(options: ServeOptions) -> list[str]:
    """Steps, width and verified tokens belong together: one without the others is refused by the engine. Raises UsageError."""
    guesses = options.num_speculative_tokens or GUESSES
    if options.speculative_model is None:
        if options.num_speculative_tokens is not None:
            raise UsageError("--num-speculative-tokens without a draft", hint="--speculative-model ngram, or a folder")
        return []
    if options.speculative_model == "ngram":
        return ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", str(guesses + 1)]
    return [
        *("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", options.speculative_model),
        *("--speculative-num-steps", str(guesses), "--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(guesses + 1)),
    ]


def require_consistent(options: ServeOptions) -> None:
    """Raise UsageError where one number would have to say two things."""
    if options.max_num_batched_tokens is not None and options.enable_chunked_prefill is False:
        raise UsageError(
            "sglang bounds the tokens of a step by the size of a piece: --max-num-batched-tokens"
            " and --no-enable-chunked-prefill exclude each other",
            hint="leave one of them out",
        )


def facts(lines: Sequence[str]) -> EngineFacts:
    """Every rank tells its own share of weights and cache; all of them hold the same tokens."""
    weights = numbers(r"Load weight end\..* mem usage=([\d.]+) GB", lines)
    keys = numbers(r"KV Cache is allocated\..* K size: ([\d.]+) GB", lines)
    values = numbers(r"KV Cache is allocated\..* V size: ([\d.]+) GB", lines)
    joined = numbers(r"KV Cache is allocated\..* KV size: ([\d.]+) GB", lines)
    cache = [*keys, *values, *joined]
    tokens = numbers(r"max_total_num_tokens=(\d+)", lines)
    context = numbers(r"max_total_num_tokens=\d+.* context_len=(\d+)", lines)
    return EngineFacts(
        weights_bytes=round(sum(weights) * GIB) if weights else None,
        kv_cache_bytes=round(sum(cache) * GIB) if cache else None,
        kv_capacity_tokens=int(tokens[0]) if tokens else None,
        max_concurrency=tokens[0] / context[0] if tokens and context else None,
    )


BACKEND = Backend(
    name="sglang",
    title="SGLang",
    formats=("plain", "compressed-tensors", "gptq", "awq", "auto-round"),
    needs=Needs(modules=("sglang",), extra="sglang"),
    distribution="sglang",
    devices=("cuda", "rocm"),
    command=command,
    facts=facts,
    flags={
        "max_model_len": "--context-length",
        "max_num_seqs": "--max-running-requests",
        # Not --max-prefill-tokens: its bound is never below the model's context.
        "max_num_batched_tokens": "--chunked-prefill-size",
        "kv_cache_dtype": "--kv-cache-dtype",
        "enable_prefix_caching": Switch(off="--disable-radix-cache"),
        "enable_chunked_prefill": lambda on: [] if on else ["--chunked-prefill-size", "-1"],
        "attn_implementation": "--attention-backend",
        "tensor_parallel_size": "--tp-size",
        "pipeline_parallel_size": "--pp-size",
        "gpu_memory_utilization": "--mem-fraction-static",
        "block_size": "--page-size",
        "enforce_eager": Switch(on="--disable-cuda-graph"),
        "lora_modules": "--lora-paths",
        # Several words together:
        "speculative_model": Switch(),
        "num_speculative_tokens": Switch(),
    },
    adapter_form="{model}:{adapter}",  # a name without the model's is answered by the base, with status 200 (0.5.23)
    container=Container(image="lmsysorg/sglang:v0.5.20-cu130", options=(*NVIDIA_GPUS, *SHARED_MEMORY)),
    metrics={
        "time_to_first_token": "sglang:time_to_first_token_seconds",
        "inter_token_latency": "sglang:inter_token_latency_seconds",
        "queue_time": "sglang:queue_time_seconds",
        "e2e_time": "sglang:e2e_request_latency_seconds",
        "prefix_cache_queries": "sglang:prompt_tokens_total",
        "prefix_cache_hits": "sglang:cached_tokens_total",
        "preemptions": "sglang:num_retracted_requests_total",
        "kv_cache_usage": "sglang:token_usage",
        "running": "sglang:num_running_reqs",
        "waiting": "sglang:num_queue_reqs",
    },
    failures=(
        Failure(pattern=r"Not enough memory[.;:,] [Pp]lease try (?:to increas|increas)\w+ --mem-fraction-static",
                cause="weights leave no room for its KV cache",
                remedy="a larger --gpu-memory-utilization, a smaller quantization, or --tensor-parallel-size"),
        Failure(pattern=r"Capture cuda graph failed", cause="memory ran out while it captured graphs",
                remedy="a smaller --gpu-memory-utilization, or --enforce-eager"),
        Failure(pattern=r"Received sigquit from a child process", cause="one of its processes failed before it was ready",
                remedy="the first error of its log tells why"),
    ),
)  # fmt: skip
