"""Whether the context that was asked for fits into memory: said before an engine starts, from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmopt.core.domain import Artifact, ServeOptions
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.kv_cache import GIB, kv_cache_bytes, longest_context, positions
from llmopt.core.machine import free_gpu_bytes, free_memory_bytes
from llmopt.core.units import show
from llmopt.core.weights import read_json
from llmopt.serve import Backend

MORE_GPUS = ", or a larger --tensor-parallel-size where there are more GPUs"
MAPPED = "; --extra-arg=--load-mode --extra-arg=mmap reads from disk what does not fit, slowly"
# Engines' own options by which weights lie elsewhere: read from disk token by token (llama.cpp; --mmap before it had modes),
# some of every group of layers in main memory (vLLM, SGLang), or so many GiB of each GPU's there.
MODES, GROUP, OFFLOAD = ("--load-mode", "-lm"), ("--offload-group-size",), ("--cpu-offload-gb",)


def require_room(backend: Backend, artifact: Artifact, options: ServeOptions) -> None:
    """Raise UsageError when weights and KV cache need more than is free, or the model's own context is shorter.

    The weights alone are looked at where no context is asked for, or the config does not tell the size of its KV cache.
    """
    require_positions(backend, artifact, options)
    if backend.distribution == "llmopt":
        return
    free = free_bytes(backend, options)
    weights = weights_to_hold(artifact, options)
    if weights > free:
        raise UsageError(
            f"{show(free, 'bytes')} of memory are free, {backend.name} would need {show(weights, 'bytes')} for the weights alone",
            hint="a smaller quantization"
            + MORE_GPUS * ("tensor_parallel_size" in backend.flags)
            + MAPPED * ("gpu_layers" in backend.flags),
        )
    config = model_config(artifact)
    context = options.max_model_len
    if context is None:
        return
    sequences = backend.sequences_reserved(options)
    each = kv_cache_bytes(config, context, options.kv_cache_dtype)
    if each is None or weights + each * sequences <= free:
        return
    fits = longest_context(config, (free - weights) // sequences, context, options.kv_cache_dtype)
    raise UsageError(
        f"{show(free, 'bytes')} of memory are free, {backend.name} would need"
        f" {show(weights + each * sequences, 'bytes')}: weights of {show(weights, 'bytes')}, and a KV cache"
        f" of {show(each, 'bytes')} for {context} tokens × {sequences} sequence{'s' if sequences > 1 else ''}",
        hint=f"--max-model-len {fits} at most, or fewer --max-num-seqs" if fits else "a smaller quantization",
    )


def weights_to_hold(artifact: Artifact, options: ServeOptions) -> int:
    """Bytes of the weights that must lie in the memory that an engine computes from; the others it was told to keep elsewhere."""
    given = options.extra_args
    if "--mmap" in given or value_of(given, MODES) == "mmap" or number_of(given, GROUP):
        return 0
    each_gib = number_of(given, OFFLOAD)
    gpus = (options.tensor_parallel_size or 1) * (options.pipeline_parallel_size or 1)
    return artifact.size_bytes - round(min(artifact.size_bytes, each_gib * gpus * GIB))


def value_of(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """What an engine's option was given last, as ``NAME VALUE`` or ``NAME=VALUE``; ``None`` where it was not given."""
    found = None
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in names:  # vLLM and SGLang take either
            found = value if equals else next(iter(arguments[place + 1 :]), "")
    return found


def number_of(arguments: Sequence[str], names: Sequence[str]) -> float:
    """0 where it was not given, or is no number above 0."""
    try:
        number = float(value_of(arguments, names) or 0)
    except ValueError:
        return 0.0
    return number if number > 0 else 0.0


def require_positions(backend: Backend, artifact: Artifact, options: ServeOptions) -> None:
    """Raise UsageError when the model's own context is shorter, on whatever machine; the scripted one loads nothing."""
    context, longest = options.max_model_len, positions(model_config(artifact))
    if backend.distribution != "llmopt" and context is not None and longest is not None and context > longest:
        raise UsageError(
            f"--max-model-len {context}: this model has positions for {longest} tokens",
            hint=f"--max-model-len {longest}",
        )


def free_bytes(backend: Backend, options: ServeOptions) -> int:
    """Of the GPUs that it takes, where there are any, and of main memory too where the engine may leave layers there."""
    if options.device_map is not None or "gpu_layers" in backend.flags:
        return free_gpu_bytes() + free_memory_bytes()
    taken = (options.tensor_parallel_size or 1) * (options.pipeline_parallel_size or 1)
    return free_gpu_bytes(taken) or free_memory_bytes()


def context_bytes(artifact: Artifact, options: ServeOptions) -> int | None:
    """The KV cache of the full context of all sequences; ``None`` where the config does not tell its size."""
    config = model_config(artifact)
    context = options.max_model_len or positions(config)
    each = kv_cache_bytes(config, context, options.kv_cache_dtype) if context else None
    return each * options.max_num_seqs if each else None


def model_config(artifact: Artifact) -> dict[str, Any]:
    """The config.json of the artifact, or of its base where it has none of its own; empty without either."""
    for folder in (artifact.path, artifact.base):
        file = Path(folder) / "config.json"
        if file.exists():
            try:
                return read_json(file)
            except ModelError:
                return {}
    return {}
