"""Whether the context that was asked for fits into memory: said before an engine starts, from the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmopt.core.domain import Artifact, ServeOptions
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.kv_cache import kv_bytes_per_token
from llmopt.core.machine import free_gpu_bytes, free_memory_bytes
from llmopt.core.units import show
from llmopt.core.weights import read_json
from llmopt.serve import Backend


def require_room(backend: Backend, artifact: Artifact, options: ServeOptions) -> None:
    """Raise UsageError when weights and KV cache need more than is free, or the model's own context is shorter.

    Passes where the model's config does not tell the size of its KV cache.
    """
    config = model_config(artifact)
    context = options.max_model_len
    if context is None:
        return
    longest = (config.get("text_config") or config).get("max_position_embeddings")
    if longest is not None and context > longest:
        raise UsageError(
            f"--max-model-len {context}: this model has positions for {longest} tokens",
            hint=f"--max-model-len {longest}",
        )
    per_token = kv_bytes_per_token(config, options.kv_cache_dtype)
    if per_token is None:
        return
    sequences = backend.sequences_reserved(options)
    free = free_bytes(backend, options)
    cache = per_token * context * sequences
    if artifact.size_bytes + cache <= free:
        return
    fits = max(0, free - artifact.size_bytes) // (per_token * sequences)
    raise UsageError(
        f"{show(free, 'bytes')} of memory are free, {backend.name} would need {show(artifact.size_bytes + cache, 'bytes')}: "
        f"weights of {show(artifact.size_bytes, 'bytes')}, and a KV cache of {per_token:,} bytes × {context} tokens"
        f" × {sequences} sequence{'s' if sequences > 1 else ''}",
        hint=f"--max-model-len {fits} at most, or fewer --max-num-seqs" if fits else "a smaller quantization",
    )


def free_bytes(backend: Backend, options: ServeOptions) -> int:
    """Of the GPUs where there are any, and of main memory too where the engine may leave layers there."""
    on_gpu = free_gpu_bytes()
    spreads = options.device_map is not None or "gpu_layers" in backend.flags
    return on_gpu if on_gpu and not spreads else on_gpu + free_memory_bytes()


def context_bytes(artifact: Artifact, options: ServeOptions) -> int | None:
    """The KV cache of the full context of all sequences; ``None`` where the config does not tell its size."""
    config = model_config(artifact)
    per_token = kv_bytes_per_token(config, options.kv_cache_dtype)
    context = options.max_model_len or (config.get("text_config") or config).get("max_position_embeddings")
    return per_token * context * options.max_num_seqs if per_token and context else None


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
