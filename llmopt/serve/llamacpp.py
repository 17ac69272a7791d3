"""llama.cpp's own server, with parallel slots.

An environment that the user names goes first, then the ``llama-server`` on PATH, then the one that ``llmopt env create
llamacpp --build`` compiled; else the same server out of the xllamacpp wheel, in a process of its own
(shims/llamacpp_server.py), which takes the same words.
``python -m llama_cpp.server`` is never used: it serialises requests, and by default a new one kills the running stream.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmopt.core import environments
from llmopt.core.domain import ServeOptions, ServerCommand
from llmopt.core.environments import Environment, Needs
from llmopt.core.errors import MissingEnvironment, UsageError
from llmopt.core.worker import QUIET_ENGINES
from llmopt.serve import Backend, Container, Failure, LaunchContext, engine_threads, gguf_file
from llmopt.serve.adapters import joined, named_adapters
from llmopt.serve.facts import EngineFacts, sizes, total
from llmopt.serve.options import Switch

SERVER = Path(__file__).parent / "shims" / "llamacpp_server.py"
WHEEL = "xllamacpp"
IMAGES = "ghcr.io/ggml-org/llama.cpp"
DEFAULT_CONTEXT = 1024
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
UNQUANTIZED_KV_TYPES = KV_TYPES[:3]
ATTENTION = {"flash_attention": "on", "flash_attention_2": "on", "eager": "off"}


def command(context: LaunchContext) -> ServerCommand:
    """The context is given per slot: llama.cpp divides ``-c`` by ``-np``."""
    options = context.options
    require_consistent(options)
    # In its image the entry point is the server.
    own = server_of(context.environment) if context.environment else None
    argv = [
        *([] if context.environment is None else [str(own)] if own else [context.python, str(SERVER)]),
        *("-m", str(Path(context.model) / gguf_file(context.artifact).name)),
        *("--host", context.host, "--port", str(context.port)),
        *("-c", str(options.max_num_seqs * (options.max_model_len or DEFAULT_CONTEXT))),
        "--metrics",
        *speculative(options, own),
        *BACKEND.arguments(replace(options, threads=engine_threads(options))),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=context.base_url,
        model=Path(context.artifact.path).name,
        environment=QUIET_ENGINES,
    )


def own_server() -> Path | None:
    """The user's own, or the one that we compiled."""
    return environments.tool("llama-server")


def server_of(environment: Environment) -> Path | None:
    """The program that is started; ``None`` where it is the wheel's. Raises MissingEnvironment for a named one without both."""
    if environment.origin != "user" or not environment.prefix.is_dir():
        return own_server()
    found = environments.tool_in(environment, "llama-server")
    if found is None and environments.missing(environment, Needs(modules=(WHEEL,), extra="llamacpp")):
        raise MissingEnvironment(
            f"{environment.prefix} has neither llama-server nor {WHEEL}",
            hint=f"pip install {WHEEL} there, or leave --env out",
        )
    return found


def require_consistent(options: ServeOptions) -> None:
    """Raise UsageError for a KV cache that llama.cpp has not, or only with flash attention."""
    dtype = options.kv_cache_dtype
    if dtype not in (None, *KV_TYPES):
        raise UsageError(f"llamacpp has no KV cache of {dtype}", hint=f"--kv-cache-dtype {', '.join(KV_TYPES)}")
    if options.attn_implementation not in (None, *ATTENTION):
        raise UsageError(
            f"llamacpp has no --attn-implementation {options.attn_implementation}", hint=" or ".join(ATTENTION)
        )
    if ATTENTION.get(options.attn_implementation or "") == "off" and dtype not in (None, *UNQUANTIZED_KV_TYPES):
        raise UsageError(
            f"llamacpp quantizes values of the KV cache ({dtype}) with flash attention alone",
            hint="leave --attn-implementation out",
        )


def speculative(options: ServeOptions, server: Path | None) -> list[str]:
    """A draft model, or guesses out of the prompt itself. Raises UsageError for a draft that is not there."""
    draft, guesses = options.speculative_model, options.num_speculative_tokens
    if draft is None:
        if guesses is not None:
            raise UsageError(
                "--num-speculative-tokens without a draft", hint="--speculative-model ngram, or a GGUF file"
            )
        return []
    if draft == "ngram":
        return ["--spec-type", "ngram-simple", *(["--spec-ngram-simple-size-m", str(guesses)] if guesses else [])]
    file = Path(draft) / "model.gguf" if Path(draft).is_dir() else Path(draft)
    if not file.is_file():
        raise UsageError(
            f"--speculative-model {draft}: no GGUF file", hint="a GGUF file, an artifact's folder, or ngram"
        )
    renamed = server is None or "--spec-draft-n-max" in usage(server)
    longest = "--spec-draft-n-max" if renamed else "--draft-max"
    # Newer ones load the draft and never ask it, unless the way of guessing is named too (build 0c1e570).
    way = ["--spec-type", "draft-simple"] if renamed else []
    return ["-md", str(file), *way, *([longest, str(guesses)] if guesses else [])]


def usage(server: Path) -> str:
    """What this file says of its own options: they are renamed now and then."""
    return told_usage(server, server.stat().st_mtime_ns)


@functools.cache
def told_usage(server: Path, changed_ns: int) -> str:
    try:
        told = subprocess.run([str(server), "--help"], capture_output=True, text=True, timeout=30, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout + told.stderr


def kv_cache_type(dtype: str) -> list[str]:
    quantized = dtype not in UNQUANTIZED_KV_TYPES
    return ["-ctk", dtype, "-ctv", dtype, *(["-fa", "on"] if quantized else [])]


def adapters(modules: Sequence[str]) -> list[str]:
    """NAME=FILE of GGUF adapters; llama.cpp numbers them and applies all to every request. Raises UsageError."""
    files = [place for _, place in named_adapters(modules)]
    for file in files:
        if not file.is_file():
            raise UsageError(f"--lora-modules: {file} is no GGUF adapter", hint="NAME=FILE.gguf")
    return ["--lora", joined(map(str, files))]


def version(environment: Environment) -> str | None:
    """What ``llama-server`` says of itself; ``None`` where the wheel is used."""
    own = server_of(environment)
    return f"llama-server {environments.tool_version(own) or 'of unknown version'}" if own else None


def image_of(version: str) -> str | None:
    """Its tags are the numbers of its builds, which a build of our own does not have (``0.5.0-dev (build 1, …)``)."""
    build = re.match(r"llama-server (\d{4,})\b", version)
    return f"{IMAGES}:server-b{build[1]}" if build else None


def facts(lines: Sequence[str]) -> EngineFacts:
    """Out of its log, over all devices and a draft model; repacked weights are in memory beside the mapped file.

    Newer servers tell sizes at ``-lv 4`` alone, and that is not asked for unasked: there they also list every kept prompt
    with each request, which took 2.3 ms and 52 kB of log a request after 300 of them (build 0c1e570). ``--extra-arg=-lv
    --extra-arg=4`` asks for it.
    """
    size = r"size =\s+([\d.]+) (MiB|GiB|KiB)"
    slots = next((m for line in lines if (m := re.search(r"n_slots = (\d+), n_ctx_slot = (\d+)", line))), None)
    return EngineFacts(
        weights_bytes=total(sizes(f"model buffer {size}", lines)),
        kv_cache_bytes=total(sizes(f"KV buffer {size}", lines)),
        activation_bytes=total(sizes(f"(?:compute|output) buffer {size}", lines)),
        kv_capacity_tokens=int(slots[1]) * int(slots[2]) if slots else None,
        max_concurrency=float(slots[1]) if slots else None,
    )


BACKEND = Backend(
    name="llamacpp",
    title="llama.cpp server",
    formats=("gguf",),
    needs=Needs(modules=() if own_server() else (WHEEL,), extra="llamacpp"),
    distribution=WHEEL,
    command=command,
    sequences_reserved=lambda options: options.max_num_seqs,
    facts=facts,
    flags={
        "max_num_seqs": "-np",
        "threads": "-t",
        "gpu_layers": "-ngl",
        "max_num_batched_tokens": lambda tokens: ["-b", str(tokens), "-ub", str(tokens)],
        "kv_cache_dtype": kv_cache_type,
        "attn_implementation": lambda kernel: ["-fa", ATTENTION[kernel]],
        # Its second store, in main memory, keeps prompts whose slot was taken by another.
        "enable_prefix_caching": lambda on: ["--cache-prompt"] if on else ["--no-cache-prompt", "--cache-ram", "0"],
        "lora_modules": adapters,
        # In ``-c``, and composed from two options:
        "max_model_len": Switch(),
        "speculative_model": Switch(),
        "num_speculative_tokens": Switch(),
    },
    version=version,
    known=("2026.10.11549", "llama-server 0.5.0-dev (build 1, commit 0c1e570)"),
    adapter_form=None,
    # For processors: it is given no GPU.
    container=Container(
        image=f"{IMAGES}:server-b11176",
        devices=("cpu",),
        of_version=image_of,
        on_cuda=f"{IMAGES}:server-cuda-b11176",
        probe="curl",
    ),
    # Sums and no histograms: times are over all requests, and queries of the prefix cache are what was found and what not.
    metrics={
        "prefill_time": "llamacpp:prompt_seconds_total",
        "decode_time": "llamacpp:tokens_predicted_seconds_total",
        "prefix_cache_hits": "llamacpp:prompt_tokens_cached_total",
        "prefix_cache_misses": "llamacpp:prompt_tokens_total",
        "running": "llamacpp:requests_processing",
        "waiting": "llamacpp:requests_deferred",
        "prompt_tokens": "llamacpp:prompt_tokens_total",
        "generation_tokens": "llamacpp:tokens_predicted_total",
    },
    failures=(
        Failure(pattern=r"couldn't bind HTTP server socket|(?i:address already in use)", cause="the port is taken",
                remedy="name another one: --port"),
        Failure(pattern=r"failed to load lora adapter '([^']*)'", cause="an adapter is no GGUF file, or not of this model",
                remedy="convert it: python convert_lora_to_gguf.py FOLDER --base MODEL (of llama.cpp), then NAME=FILE.gguf"),
        Failure(pattern=r"(?:failed|unable) to allocate (?!.*pinned)", cause="memory ran out while loading",
                remedy="a smaller quantization, or a shorter --max-model-len"),
        Failure(pattern=r"(?:invalid argument|unrecognized arguments): (.+)", cause="this llama-server does not know",
                remedy="leave it out, or another version: llmopt env create llamacpp --build"),
        Failure(pattern=r"error loading model: (.+)|failed to load model", cause="llama.cpp does not load this file", remedy="quantize again"),
    ),
)  # fmt: skip
