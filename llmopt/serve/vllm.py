"""vLLM's own server: the CUDA build where there is a GPU, its CPU build elsewhere.

Started as a module, not as ``vllm serve``: that command looks up a distribution named ``vllm``, which the CPU build is not
(0.32).  On a CPU vLLM reserves its KV cache by a number of its own and pins its threads: both are set, and so recorded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmopt.core import environments
from llmopt.core.domain import ServeOptions, ServerCommand
from llmopt.core.environments import Environment, Needs
from llmopt.core.errors import UsageError
from llmopt.core.kv_cache import GIB
from llmopt.core.loading import device_here
from llmopt.core.machine import core_ids
from llmopt.core.worker import QUIET_ENGINES, threads_environment
from llmopt.serve import Backend, Container, Failure, LaunchContext, Recipe, engine_threads
from llmopt.serve.adapters import named_adapters
from llmopt.serve.container import NVIDIA_GPUS, SHARED_MEMORY
from llmopt.serve.facts import EngineFacts, numbers, sizes, total
from llmopt.serve.options import Switch
from llmopt.serve.room import context_bytes

# Tokens of the end that are looked up in the prompt. One bound alone becomes the other too, and both are 5 where neither
# is given (0.32): a model that repeats three tokens would be guessed nothing.
NGRAM = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
GUESSES = 3
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
RELEASE = re.compile(r"\d+\.\d+\.\d+(\.post\d+)?")
# Of vllm/v1/metrics/buckets.py (0.32).
TO_FIRST_TOKEN = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
                  640.0, 2560.0)  # fmt: skip
BETWEEN_TOKENS = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
OF_A_REQUEST = (.3, .5, .8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
                1920.0, 7680.0)  # fmt: skip
BOUNDS = {
    "vllm:time_to_first_token_seconds": TO_FIRST_TOKEN,
    "vllm:inter_token_latency_seconds": BETWEEN_TOKENS,
    "vllm:request_time_per_output_token_seconds": BETWEEN_TOKENS,
    "vllm:request_queue_time_seconds": OF_A_REQUEST,
    "vllm:request_prefill_time_seconds": OF_A_REQUEST,
    "vllm:request_decode_time_seconds": OF_A_REQUEST,
    "vllm:e2e_request_latency_seconds": OF_A_REQUEST,
}
COLD_COMPILE_S = 600.0  # it may compile its graphs, which took three minutes for a small model on two cores


def command(context: LaunchContext) -> ServerCommand:
    options = context.options
    name = Path(context.artifact.path).name
    argv = [
        *(context.python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", context.model, "--served-model-name", name),
        *("--host", context.host, "--port", str(context.port)),
        *speculative(options),
        *BACKEND.arguments(options),
    ]
    on_cpu = device_here() == "cpu" and context.environment is not None
    return ServerCommand(
        argv=tuple(argv),
        base_url=context.base_url,
        model=name,
        environment=QUIET_ENGINES | {"VLLM_NO_USAGE_STATS": "1"} | (cpu_environment(context) if on_cpu else {}),
        usage_per_chunk=True,
        ready_timeout_s=COLD_COMPILE_S,
    )


def cpu_environment(context: LaunchContext) -> dict[str, str]:
    """Room for the whole context of every sequence, in whole GiB as vLLM wants it, and the cores of each worker."""
    options = context.options
    workers = (options.tensor_parallel_size or 1) * (options.pipeline_parallel_size or 1)
    cores = core_ids()[-engine_threads(options) :]
    share = max(1, len(cores) // workers)
    bound = [",".join(map(str, cores[i * share : (i + 1) * share] or cores[-1:])) for i in range(workers)]
    wanted = context_bytes(context.artifact, options) or 0
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(wanted / workers / GIB))),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(bound),
        **threads_environment(share),
    }


def speculative(options: ServeOptions) -> list[str]:
    """One JSON of two options. Raises UsageError for a number of guesses that nobody makes."""
    if options.speculative_model is None:
        if options.num_speculative_tokens is not None:
            raise UsageError("--num-speculative-tokens without a draft", hint="--speculative-model ngram, or a folder")
        return []
    draft: dict[str, Any] = {"num_speculative_tokens": options.num_speculative_tokens or GUESSES}
    if options.speculative_model == "ngram":
        draft |= {"method": "ngram", **NGRAM}
    else:
        draft |= {"model": options.speculative_model}
    return ["--speculative-config", json.dumps(draft)]


def lora(modules: Sequence[str]) -> list[str]:
    """Adapters as NAME=FOLDER, and the rank that the largest of them has. Raises UsageError for what is no adapter."""
    ranks = []
    for name, folder in named_adapters(modules):
        try:
            ranks.append(int(json.loads((folder / "adapter_config.json").read_text())["r"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"--lora-modules {name}={folder}: no adapter in {folder}", hint="NAME=FOLDER") from error
    rank = next((able for able in LORA_RANKS if able >= max(ranks)), max(ranks))
    # Its own default, one adapter in a batch, has requests of different adapters wait for each other (0.32).
    return ["--enable-lora", "--max-loras", str(len(modules)), "--max-lora-rank", str(rank), "--lora-modules", *modules]


def limit_images(text: str) -> list[str]:
    """``image=2`` → vLLM's JSON. Raises UsageError."""
    limits = dict(part.partition("=")[::2] for part in text.split(","))
    if not all(count.isdigit() for count in limits.values()):
        raise UsageError(f"--limit-mm-per-prompt {text!r} is no limit", hint="--limit-mm-per-prompt image=2")
    return ["--limit-mm-per-prompt", json.dumps({kind: int(count) for kind, count in limits.items()})]


def facts(lines: Sequence[str]) -> EngineFacts:
    """Out of its log; the CPU build tells the size of the KV cache and nothing of weights and activations."""
    unit = r"([\d.,]+) (GiB)"
    capacity = numbers(r"KV cache size: ([\d,]+) tokens", lines)
    concurrency = numbers(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.,]+)x", lines)
    on_cpu = [f"{gib} GiB" for gib in numbers(r"(?:Explicitly|Auto) set \(([\d.]+)/[\d.]+\) GiB for KV cache", lines)]
    return EngineFacts(
        weights_bytes=total(sizes(rf"Model loading took {unit}", lines)),
        kv_cache_bytes=total(sizes(rf"Available KV cache memory: {unit}", lines) or sizes(unit, on_cpu)),
        activation_bytes=total(sizes(rf"{unit} for peak activation", lines)),
        kv_capacity_tokens=int(capacity[0]) if capacity else None,
        max_concurrency=concurrency[0] if concurrency else None,
    )


def image_of(version: str) -> str | None:
    """Its tags are its releases."""
    return f"vllm/vllm-openai:v{version}" if RELEASE.fullmatch(version) else None


def sequences_reserved(options: ServeOptions) -> int:
    """On a GPU it takes the share that it is given, and serves as many sequences as fit; on a CPU we ask for room for all."""
    return options.max_num_seqs if device_here() == "cpu" else 1


def version(environment: Environment) -> str | None:
    """The CPU build is another distribution, and a stand-in of ours may carry its name (``0.32.0+cpu``)."""
    frozen = environments.freeze(environment)
    found = frozen.get("vllm") or frozen.get("vllm-cpu")
    return found.removesuffix("+cpu") if found else None


BACKEND = Backend(
    name="vllm",
    title="vLLM",
    formats=("plain", "compressed-tensors", "gptq", "awq", "auto-round", "bitsandbytes"),
    needs=Needs(modules=("vllm",), extra="vllm"),
    distribution="vllm",
    version=version,
    known=("0.32.0",),
    command=command,
    sequences_reserved=sequences_reserved,
    facts=facts,
    flags={
        "max_model_len": "--max-model-len",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "tensor_parallel_size": "--tensor-parallel-size",
        "pipeline_parallel_size": "--pipeline-parallel-size",
        "gpu_memory_utilization": "--gpu-memory-utilization",
        "enable_prefix_caching": Switch(on="--enable-prefix-caching", off="--no-enable-prefix-caching"),
        "enable_chunked_prefill": Switch(on="--enable-chunked-prefill", off="--no-enable-chunked-prefill"),
        "kv_cache_dtype": "--kv-cache-dtype",
        "block_size": "--block-size",
        "enforce_eager": Switch(on="--enforce-eager"),
        "lora_modules": lora,
        "limit_mm_per_prompt": limit_images,
        # In the environment, or in one JSON together:
        "threads": Switch(),
        "speculative_model": Switch(),
        "num_speculative_tokens": Switch(),
    },
    container=Container(
        image="vllm/vllm-openai:v0.32.0", entrypoint="", options=(*NVIDIA_GPUS, *SHARED_MEMORY), of_version=image_of
    ),
    recipes={
        "cpu": Recipe(
            template="vllm-cpu.Dockerfile",
            packages=("torch", "vllm-cpu"),
            # It compiles what it serves, and counts the machine's memory nodes.
            system_packages=("g++", "libnuma1"),
            unwanted=("torchvision", "torchaudio", "torchcodec"),
        )
    },
    bounds=BOUNDS,
    metrics={
        "time_to_first_token": "vllm:time_to_first_token_seconds",
        "inter_token_latency": "vllm:inter_token_latency_seconds",
        "queue_time": "vllm:request_queue_time_seconds",
        "prefill_time": "vllm:request_prefill_time_seconds",
        "decode_time": "vllm:request_decode_time_seconds",
        "e2e_time": "vllm:e2e_request_latency_seconds",
        "prefix_cache_queries": "vllm:prefix_cache_queries_total",
        "prefix_cache_hits": "vllm:prefix_cache_hits_total",
        "preemptions": "vllm:num_preemptions_total",
        "kv_cache_usage": "vllm:kv_cache_usage_perc",
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "generation_tokens": "vllm:generation_tokens_total",
        "requests": "vllm:request_success_total",
        "http_requests": "http_requests_total",
        "time_per_output_token": "vllm:request_time_per_output_token_seconds",
    },
    failures=(
        Failure(pattern=r"(?i)address already in use", cause="the port is taken", remedy="name another one: --port"),
        Failure(pattern=r"operator torchvision::nms does not exist", cause="a torchvision of another build stands in the way",
                remedy="llmopt env create vllm, or remove torchvision, torchaudio and torchcodec from its environment"),
        Failure(pattern=r"max seq len \((\d+)\).* KV cache is needed", cause="the KV cache has no room for one context of tokens",
                remedy="a shorter --max-model-len, or a larger --gpu-memory-utilization"),
        Failure(pattern=r"is less than (?:requested memory for kv|desired GPU memory utilization)|No available memory for the cache blocks",
                cause="there is less free memory than it was told to take",
                remedy="a smaller --gpu-memory-utilization, --max-model-len or --max-num-seqs, or end what else uses that memory"),
        Failure(pattern=r"max_model_len \((\d+)\) is greater than the derived", cause="the model's own context is shorter, asked were",
                remedy="a shorter --max-model-len"),
    ),
)  # fmt: skip
