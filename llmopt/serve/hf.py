"""transformers with continuous batching, behind a thin server of our own.

``transformers serve`` was tried first.  Its generating thread shares a process with
the event loop and starves it: a fast model's whole answer arrives in one chunk, so
neither TTFT nor TPOT can be known.  Ours runs the same continuous-batching engine of
transformers in a process of its own; only the HTTP half is ours.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmopt.core.domain import ServerCommand
from llmopt.core.environments import Needs
from llmopt.core.worker import QUIET_ENGINES, threads_environment
from llmopt.serve import Backend, Failure, LaunchContext, engine_threads

SERVER = Path(__file__).parent / "shims" / "hf_server.py"


def command(context: LaunchContext) -> ServerCommand:
    options = context.options
    threads = engine_threads(options)
    in_memory = context.artifact.quantization.format == "in-memory"
    model = context.artifact.base if in_memory else context.artifact.path
    argv = [
        context.python,
        str(SERVER),
        *("--model", model),
        *("--host", context.host, "--port", str(context.port)),
        *(["--dynamic-int8"] if in_memory else []),
        *BACKEND.arguments(replace(options, threads=threads)),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=f"http://{context.host}:{context.port}/v1",
        model=Path(model).name,
        environment=QUIET_ENGINES | threads_environment(threads),
        usage_per_chunk=True,
    )


BACKEND = Backend(
    name="hf",
    title="transformers, continuous batching",
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
    },
    format_notes={
        "compressed-tensors": "transformers unpacks these weights to 16 bits when it loads them: its memory and speed here are"
        " not those of 4-bit kernels, which vLLM has",
        "in-memory": "quantized anew each time it is loaded, from 32-bit weights that are in memory until then: its peak of memory"
        " is that of fp32",
    },
    failures=(
        Failure(pattern=r"address already in use", cause="the port is taken", remedy="name another one: --port"),
        Failure(pattern=r"(?i)out of memory|Cannot allocate memory", cause="memory ran out while loading",
                remedy="a smaller quantization, or a shorter --max-model-len"),
        Failure(pattern=r"(?i)(requires?|install) `*(gptqmodel|optimum|auto-round)",
                cause="the package that reads this layout is missing",
                remedy="llmopt env create local, or quantize to compressed-tensors: --format compressed-tensors"),
        Failure(pattern=r"No package metadata was found for (\S+)|No module named '(\S+)'", cause="a package is missing",
                remedy="llmopt env create local"),
        Failure(pattern=r"KeyError: .*model type|does not recognize this architecture", cause="transformers does not know this architecture",
                remedy="another backend, or a newer transformers in its own environment: --env"),
    ),
)  # fmt: skip
