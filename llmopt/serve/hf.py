"""transformers with continuous or static batching, behind a thin server of our own.

``transformers serve`` was tried first.  Its generating thread shares a process with
the event loop and starves it: a fast model's whole answer arrives in one chunk, so
neither TTFT nor TPOT can be known.  Ours runs the same continuous-batching engine of
transformers in a process of its own; only the HTTP half is ours.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmopt.core import environments
from llmopt.core.domain import ServeOptions, ServerCommand
from llmopt.core.environments import Environment, Needs
from llmopt.core.errors import UsageError
from llmopt.core.worker import QUIET_ENGINES, threads_environment
from llmopt.serve import (
    MODEL_IN_CONTAINER,
    OURS_IN_CONTAINER,
    Backend,
    Failure,
    LaunchContext,
    Recipe,
    engine_threads,
)
from llmopt.serve.facts import EngineFacts
from llmopt.serve.options import BY_NAME, Switch
from llmopt.serve.shims.hf_counters import BOUNDS

SERVER = Path(__file__).parent / "shims" / "hf_server.py"
FACTS = "llmopt facts: "  # as the server begins the one line that tells where memory goes
SMALLEST_BLOCK = 4
# Attention kernel → the package that brings it.
KERNELS = {"sdpa": None, "eager": None, "flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
OF_CONTINUOUS_BATCHING = ("block_size", "enable_prefix_caching", "max_num_batched_tokens")


def command(context: LaunchContext) -> ServerCommand:
    options = context.options
    require_consistent(options)
    threads = engine_threads(options)
    in_memory = context.artifact.quantization.format == "in-memory"
    model = context.artifact.base if in_memory else context.artifact.path
    name = Path(model).name
    inside = context.environment is None
    argv = [
        context.python,
        f"{OURS_IN_CONTAINER}/{SERVER.name}" if inside else str(SERVER),
        *("--model", MODEL_IN_CONTAINER if inside else model),
        *(("--served-model-name", name) if inside else ()),
        *("--host", context.host, "--port", str(context.port)),
        *(["--dynamic-int8"] if in_memory else []),
        *BACKEND.arguments(replace(options, threads=threads)),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=context.base_url,
        model=name,
        environment=QUIET_ENGINES | threads_environment(threads),
        usage_per_chunk=True,
    )


def require_consistent(options: ServeOptions) -> None:
    """Raise UsageError for no kernel, what static batching has no use for, and blocks that are too small."""
    if options.attn_implementation not in (None, *KERNELS):
        raise UsageError(
            f"hf has no attention kernel {options.attn_implementation!r}",
            hint=f"--attn-implementation {', '.join(KERNELS)}",
        )
    if options.block_size is not None and options.block_size < SMALLEST_BLOCK:
        raise UsageError(f"hf has no blocks of fewer than {SMALLEST_BLOCK} tokens", hint="--block-size 32")
    if options.batching != "static":
        return
    for name in OF_CONTINUOUS_BATCHING:
        if getattr(options, name) not in (None, False):
            raise UsageError(
                f"{BY_NAME[name].flag} is of continuous batching: a static batch has no blocks and no steps to share out",
                hint="leave it out, or --batching continuous",
            )


def require_kernel(options: ServeOptions, environment: Environment) -> None:
    """Raise UsageError for an attention kernel whose package is not in the environment."""
    name = options.attn_implementation
    package = KERNELS.get(name or "")
    if package and environments.missing(environment, Needs(modules=(package,), extra="hf")):
        raise UsageError(
            f"{name} needs the package {package}, which is not in {environment.prefix}",
            hint="install it there (it wants a GPU), or --attn-implementation sdpa",
        )


def facts(lines: Sequence[str]) -> EngineFacts:
    """The server tells them in one line of JSON; a line that another word of the engine broke into is passed over."""
    for line in reversed(lines):
        if FACTS in line:
            with contextlib.suppress(ValueError, TypeError):
                told, _ = json.JSONDecoder().raw_decode(line.partition(FACTS)[2])
                return EngineFacts(**told)
    return EngineFacts()


SHIMS = ("hf_server.py", "hf_engine.py", "hf_counters.py", "hf_memory.py", "hf_news.py", "hf_static.py")
IMAGE = Recipe(
    template="hf.Dockerfile",
    packages=(
        "torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "starlette", "uvicorn", "jinja2",
    ),
    of_format={
        "compressed-tensors": ("compressed-tensors",),
        "bitsandbytes": ("bitsandbytes",),
        "gptq": ("gptqmodel", "optimum"),
        "awq": ("gptqmodel",),
        "auto-round": ("auto-round",),
    },
    files={name: SERVER.with_name(name) for name in SHIMS},
)  # fmt: skip
HISTOGRAMS = ("time_to_first_token", "inter_token_latency", "request_queue_time", "request_prefill_time", "request_decode_time",
              "e2e_request_latency")  # fmt: skip

BACKEND = Backend(
    name="hf",
    title="transformers, continuous or static batching",
    formats=("plain", "compressed-tensors", "gptq", "awq", "auto-round", "bitsandbytes", "in-memory"),
    # What reads gptq, awq and auto-round is not among them: an environment without it still serves all the others.
    needs=Needs(modules=("torch", "transformers", "starlette", "uvicorn", "bitsandbytes", "compressed_tensors"), extra="hf"),
    distribution="transformers",
    command=command,
    sequences_reserved=lambda options: options.max_num_seqs,
    flags={
        "max_num_seqs": "--max-num-seqs",
        "max_model_len": "--max-model-len",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "threads": "--threads",
        "attn_implementation": "--attn-implementation",
        "batching": "--batching",
        "block_size": "--block-size",
        "enable_prefix_caching": Switch(on="--enable-prefix-caching"),
        "device_map": "--device-map",
        "enforce_eager": Switch(on="--enforce-eager"),
    },
    known=("5.17.0",),
    require_packages=require_kernel,
    facts=facts,
    metrics={
        "time_to_first_token": "llmopt_hf:time_to_first_token_seconds",
        "inter_token_latency": "llmopt_hf:inter_token_latency_seconds",
        "queue_time": "llmopt_hf:request_queue_time_seconds",
        "prefill_time": "llmopt_hf:request_prefill_time_seconds",
        "decode_time": "llmopt_hf:request_decode_time_seconds",
        "e2e_time": "llmopt_hf:e2e_request_latency_seconds",
        "prefix_cache_queries": "llmopt_hf:prefix_cache_queries_total",
        "prefix_cache_hits": "llmopt_hf:prefix_cache_hits_total",
        "prompt_tokens": "llmopt_hf:prompt_tokens_total",
        "generation_tokens": "llmopt_hf:generation_tokens_total",
        "requests": "llmopt_hf:request_success_total",
    },
    bounds={f"llmopt_hf:{name}_seconds": tuple(BOUNDS) for name in HISTOGRAMS},
    recipes={"cpu": IMAGE, "cuda": IMAGE},
    format_notes={
        "compressed-tensors": "transformers unpacks these weights to 16 bits when it loads them: its memory and speed here are"
        " not those of 4-bit kernels, which vLLM has",
        "in-memory": "quantized anew each time it is loaded, from 32-bit weights that are in memory until then: its peak of memory"
        " is that of fp32",
    },
    failures=(
        Failure(pattern=r"address already in use", cause="the port is taken", remedy="name another one: --port"),
        Failure(pattern=r"CUDA out of memory|OutOfMemoryError|annot allocate memory|can't allocate memory", cause="memory ran out while loading",
                remedy="a smaller quantization, or a shorter --max-model-len"),
        Failure(pattern=r"(?i)(requires?|install) `*(gptqmodel|optimum|auto-round)",
                cause="the package that reads this layout is missing",
                remedy="llmopt env create local, or quantize to compressed-tensors: --format compressed-tensors"),
        Failure(pattern=r"No package metadata was found for (\S+)|No module named '(\S+)'", cause="a package is missing",
                remedy="llmopt env create local"),
        Failure(pattern=r"Torch not compiled with CUDA enabled", cause="this torch was built without CUDA",
                remedy="leave --device-map out, or a CUDA build of torch in an environment of its own: --env"),
        Failure(pattern=r"KeyError: .*model type|does not recognize this architecture", cause="transformers does not know this architecture",
                remedy="another backend, or a newer transformers in its own environment: --env"),
    ),
)  # fmt: skip
