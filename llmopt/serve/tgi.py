"""Hugging Face's text-generation-inference. Described from the documentation and source of 3.3; never run here.

It takes no name for the model: a request asks for ``tgi``, every other name is that of an adapter.  It has no
``ignore_eos``.  Prefix caching and the attention kernel are asked for in its environment alone.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from llmopt.core.domain import ServeOptions, ServerCommand
from llmopt.core.environments import Environment, Needs
from llmopt.core.errors import UsageError
from llmopt.core.worker import QUIET_ENGINES
from llmopt.serve import Backend, Container, Failure, LaunchContext, program
from llmopt.serve.adapters import joined
from llmopt.serve.container import NVIDIA_GPUS, SHARED_MEMORY
from llmopt.serve.facts import EngineFacts, numbers
from llmopt.serve.options import Switch

START_S = 900.0
PROGRAM = "text-generation-launcher"
GUESSES = 3


def command(context: LaunchContext) -> ServerCommand:
    """In the image the launcher is the entry point, which also prepares its libraries: only its options follow there."""
    require_consistent(context.options)
    argv = [
        *([context.program(PROGRAM)] if context.environment else []),
        *("--model-id", context.model),
        *("--hostname", context.host, "--port", str(context.port)),
        *("--usage-stats", "off"),
        *speculative(context.options),
        *BACKEND.arguments(context.options),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=context.base_url,
        model="tgi",
        environment=QUIET_ENGINES | asked_by_variable(context.options),
        ready_timeout_s=START_S,
    )


def asked_by_variable(options: ServeOptions) -> dict[str, str]:
    found = {}
    if options.enable_prefix_caching is not None:
        found["PREFIX_CACHING"] = "1" if options.enable_prefix_caching else "0"
    if options.attn_implementation:
        found["ATTENTION"] = options.attn_implementation
    return found


def speculative(options: ServeOptions) -> list[str]:
    """It looks guesses up in the prompt, or takes heads of the checkpoint; another model cannot draft. Raises UsageError."""
    if options.speculative_model is None:
        if options.num_speculative_tokens is not None:
            raise UsageError("--num-speculative-tokens without a draft", hint="--speculative-model ngram")
        return []
    if options.speculative_model != "ngram":
        raise UsageError("tgi takes no draft model", hint="--speculative-model ngram --num-speculative-tokens 3")
    return ["--speculate", str(options.num_speculative_tokens or GUESSES)]


def require_consistent(options: ServeOptions) -> None:
    """Raise UsageError for a step that has no room for the longest prompt, where prompts are not cut into pieces.

    It cuts them with flashinfer or flashdecoding alone, and not where it guesses (3.3); where the model has only other
    kernels, its own error tells.
    """
    whole = options.speculative_model is not None or options.attn_implementation == "paged"
    step, context = options.max_num_batched_tokens, options.max_model_len
    if whole and step is not None and context is not None and step < context - 1:
        raise UsageError(
            f"--max-num-batched-tokens {step}: tgi takes a prompt of up to {context - 1} tokens (--max-model-len {context}) in one"
            " step where it guesses, or with paged attention",
            hint=f"--max-num-batched-tokens {context - 1}",
        )


def version(environment: Environment) -> str | None:
    told = [program(environment, PROGRAM), "--version"]
    try:
        said = subprocess.run(told, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"text-generation-launcher (\S+)", said)
    return found[1] if found else None


def facts(lines: Sequence[str]) -> EngineFacts:
    """It tells the room of its KV cache in tokens, and no bytes."""
    tokens = numbers(r"Setting max batch total tokens to (\d+)", lines)
    return EngineFacts(kv_capacity_tokens=int(tokens[-1]) if tokens else None)


BACKEND = Backend(
    name="tgi",
    title="Text Generation Inference",
    formats=("plain", "compressed-tensors", "gptq", "awq"),
    needs=Needs(modules=(), programs=(PROGRAM,), extra="tgi"),
    distribution="text-generation-server",
    devices=("cuda", "rocm"),
    command=command,
    version=version,
    facts=facts,
    flags={
        # Prompt and output together; the prompt must leave room for one token.
        "max_model_len": lambda tokens: ["--max-total-tokens", str(tokens), "--max-input-tokens", str(tokens - 1)],
        "max_num_seqs": "--max-batch-size",
        "max_num_batched_tokens": "--max-batch-prefill-tokens",
        "kv_cache_dtype": "--kv-cache-dtype",
        "tensor_parallel_size": "--num-shard",
        "gpu_memory_utilization": "--cuda-memory-fraction",
        "enforce_eager": lambda on: ["--cuda-graphs", "0"] if on else [],
        "lora_modules": lambda adapters: ["--lora-adapters", joined(adapters)],
        # In one word together, and in its environment:
        "speculative_model": Switch(),
        "num_speculative_tokens": Switch(),
        "enable_prefix_caching": Switch(),
        "attn_implementation": Switch(),
    },
    container=Container(
        image="ghcr.io/huggingface/text-generation-inference:3.3.5", options=(*NVIDIA_GPUS, *SHARED_MEMORY)
    ),
    metrics={
        "queue_time": "tgi_request_queue_duration",
        "e2e_time": "tgi_request_duration",
        "running": "tgi_batch_current_size",
        "waiting": "tgi_queue_size",
    },
    failures=(
        Failure(pattern=r"Not enough memory to handle (\d+) prefill tokens", cause="memory has no room for so many tokens of a prompt",
                remedy="a smaller --max-num-batched-tokens, or --max-model-len"),
        Failure(pattern=r"`max_input_tokens` must be < `max_total_tokens`", cause="no room is left for an answer",
                remedy="a longer --max-model-len"),
        Failure(pattern=r"`max_batch_prefill_tokens` must be >= `max_input_tokens`", cause="one step has no room for the longest prompt",
                remedy="a larger --max-num-batched-tokens, or a shorter --max-model-len"),
        Failure(pattern=r"ShardCannotStart", cause="the part that loads the model failed", remedy="the first error of its log tells why"),
    ),
)  # fmt: skip
