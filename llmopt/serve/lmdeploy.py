"""LMDeploy's API server. Described from the source of 0.18; never run here: it runs on CUDA, Ascend and the like only.

TurboMind, its engine in C++, is its default; graphs (``--eager-mode``), adapters and a KV cache of fp8 belong to its PyTorch
engine, which is chosen when they are asked for.
"""

from __future__ import annotations

from pathlib import Path

from llmopt.core.domain import ServeOptions, ServerCommand
from llmopt.core.environments import Needs
from llmopt.core.errors import UsageError
from llmopt.core.worker import QUIET_ENGINES
from llmopt.serve import Backend, Container, Failure, LaunchContext
from llmopt.serve.container import NVIDIA_GPUS, SHARED_MEMORY
from llmopt.serve.options import Switch

START_S = 600.0
# Its quantization of the KV cache is a policy with a number; the names came with 0.17.
KV_POLICIES = {"auto": "0", "int4": "4", "int8": "8", "fp8": "16", "fp8_e4m3": "16", "fp8_e5m2": "17"}
OF_TURBOMIND = ("0", "4", "8")  # it refuses every other policy


def command(context: LaunchContext) -> ServerCommand:
    name = Path(context.artifact.path).name
    options = context.options
    argv = [
        *(context.program("lmdeploy"), "serve", "api_server", context.model),
        *("--model-name", name),
        *("--server-name", context.host, "--server-port", str(context.port)),
        *(("--backend", "pytorch") if needs_pytorch(options) else ()),
        *BACKEND.arguments(options),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=context.base_url,
        model=name,
        environment=QUIET_ENGINES,
        ready_timeout_s=START_S,
    )


def needs_pytorch(options: ServeOptions) -> bool:
    policy = policy_of(options.kv_cache_dtype or "auto")
    return bool(options.enforce_eager or options.lora_modules) or policy not in OF_TURBOMIND


def policy_of(kind: str) -> str:
    """The number of a type of KV cache. Raises UsageError."""
    if kind not in KV_POLICIES:
        raise UsageError(f"lmdeploy has no KV cache of {kind}", hint=f"--kv-cache-dtype {', '.join(KV_POLICIES)}")
    return KV_POLICIES[kind]


BACKEND = Backend(
    name="lmdeploy",
    title="LMDeploy",
    formats=("plain", "compressed-tensors", "gptq", "awq"),
    needs=Needs(modules=("lmdeploy",), extra="lmdeploy"),
    distribution="lmdeploy",
    devices=("cuda",),
    command=command,
    flags={
        "max_model_len": "--session-len",
        "max_num_seqs": "--max-batch-size",
        "max_num_batched_tokens": "--max-prefill-token-num",
        "kv_cache_dtype": lambda kind: ["--quant-policy", policy_of(kind)],
        "enable_prefix_caching": Switch(on="--enable-prefix-caching"),
        "tensor_parallel_size": "--tp",
        "gpu_memory_utilization": "--cache-max-entry-count",
        "block_size": "--cache-block-seq-len",
        "enforce_eager": Switch(on="--eager-mode"),
        "lora_modules": "--adapters",
    },
    format_notes={
        "compressed-tensors": "LMDeploy reads packed 4-bit groups of it; 8-bit weights and activations are not among them",
    },
    container=Container(image="openmmlab/lmdeploy:v0.16.0-cu12.8", options=(*NVIDIA_GPUS, *SHARED_MEMORY)),
    metrics={
        "time_to_first_token": "lmdeploy:time_to_first_token_seconds",
        "inter_token_latency": "lmdeploy:iter_token_latency",
        "queue_time": "lmdeploy:request_queue_time_seconds",
        "prefill_time": "lmdeploy:request_prefill_time_seconds",
        "decode_time": "lmdeploy:request_decode_time_seconds",
        "e2e_time": "lmdeploy:e2e_request_latency_seconds",
        "prefix_cache_queries": "lmdeploy:prompt_tokens_total",
        "prefix_cache_hits": "lmdeploy:cached_tokens_total",
        "kv_cache_usage": "lmdeploy:gpu_cache_usage_perc",
        "running": "lmdeploy:num_requests_running",
        "waiting": "lmdeploy:num_requests_waiting",
    },
    failures=(
        Failure(pattern=r"No enough gpu memory for (\w+ cache)", cause="its cache does not fit into the GPU's memory",
                remedy="a larger --gpu-memory-utilization, a shorter --max-model-len, or --tensor-parallel-size"),
        Failure(pattern=r"cache_block_seq_len.* multiple of (\d+)", cause="a block of its KV cache must be a multiple of",
                remedy="--block-size 64"),
    ),
)  # fmt: skip
