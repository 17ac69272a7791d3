"""The proof of an artifact: how far it is from its base on the same token ids, in the engine that will serve it.

``structure`` looks at the files (no engine), ``comparison`` runs base and artifact in a worker, ``tasks`` hands over to
lm-eval.  How to add an engine:

1. Write a function ``FORMAT_logits(source: Source) -> Logits`` in ``llmopt/quality/``; it runs in a worker and imports the
   engine inside.
2. Add one line to ``ENGINES``: what its environment must have, and where that function lies.
3. Run ``make test``: the contract tests prove artifacts in every line of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmopt.core.domain import Artifact, Quantization
from llmopt.core.environments import Needs
from llmopt.core.errors import UsageError, nearest

WINDOW_TOKENS = 512
MAX_TOKENS = 16_384
FUNCTION = "llmopt.quality.comparison:compare"
IMPORT_FUNCTION = "llmopt.quality.comparison:import_engine"
TRANSFORMERS = ("torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One line of the table. ``reference``: the engine that runs the base, so that the difference is the quantization's.

    ``formats`` are those it reads, each with the modules that this takes beside ``modules``.  ``windows_at_once``: how many
    windows of text are run beside each other.
    """

    name: str
    logits: str
    reference: str
    distribution: str
    extra: str
    modules: tuple[str, ...]
    formats: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kv_cache_dtypes: tuple[str, ...] = ("auto",)
    windows_at_once: int = 1


# Reading the logits of a window out of cyllama takes one core half as long as computing them takes all of them.
LLAMA_CPP_WINDOWS = 2
LLAMA_CPP_KV = ("auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
VLLM_KV = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")
ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            name="hf",
            logits="llmopt.quality.logits:hf_logits",
            reference="hf",
            distribution="transformers",
            extra="local",
            modules=TRANSFORMERS,
            formats={
                "plain": (),
                "in-memory": (),
                "compressed-tensors": ("compressed_tensors",),
                "bitsandbytes": ("bitsandbytes",),
                "gptq": ("optimum", "gptqmodel"),
                "awq": ("gptqmodel",),
                "auto-round": ("auto_round",),
            },
        ),
        Engine(
            name="llamacpp",
            logits="llmopt.quality.logits:llamacpp_logits",
            reference="hf",
            distribution="cyllama",
            extra="local",
            modules=(*TRANSFORMERS, "cyllama"),
            formats={"gguf": ()},
            kv_cache_dtypes=LLAMA_CPP_KV,
            windows_at_once=LLAMA_CPP_WINDOWS,
        ),
        Engine(
            name="vllm",
            logits="llmopt.quality.vllm:vllm_logits",
            reference="vllm",
            distribution="vllm",
            extra="vllm",
            modules=("torch", "vllm"),
            formats={"plain": (), "compressed-tensors": (), "gptq": (), "awq": (), "auto-round": ()},
            kv_cache_dtypes=VLLM_KV,
        ),
    )
}


def engine_for(quantization: Quantization, name: str | None = None, kv_cache_dtype: str = "auto") -> Engine:
    """The engine of the proof: the one asked for, else llama.cpp for GGUF and transformers for everything else.

    Raises UsageError for an engine that is none, does not read this format or has no such KV cache.
    """
    format = quantization.format
    chosen = name or ("llamacpp" if format == "gguf" else "hf")
    if chosen not in ENGINES:
        raise UsageError(f"no proof runs in {chosen!r}", hint=nearest(chosen, list(ENGINES)))
    engine = ENGINES[chosen]
    if format not in engine.formats:
        able = [e.name for e in ENGINES.values() if format in e.formats]
        raise UsageError(
            f"{chosen} does not prove {quantization.name}: it reads no {format}", hint=f"--backend {' or '.join(able)}"
        )
    if kv_cache_dtype not in engine.kv_cache_dtypes:
        raise UsageError(
            f"{chosen} has no KV cache of type {kv_cache_dtype!r}",
            hint=f"known there: {', '.join(engine.kv_cache_dtypes)}",
        )
    return engine


def needs(quantization: Quantization, engine: Engine | None = None) -> Needs:
    """What an environment must have to run the proof of such an artifact."""
    engine = engine or engine_for(quantization)
    return Needs(modules=(*engine.modules, *engine.formats[quantization.format]), extra=engine.extra)


def arguments(
    artifact: Artifact,
    text: Path,
    tokens: int,
    *,
    engine: Engine,
    kv_cache_dtype: str,
    scratch: Path,
    reference: Path | None = None,
) -> dict[str, Any]:
    """The arguments of ``compare`` for this artifact, ready for the worker."""
    return {
        "base": artifact.base,
        "artifact": artifact.path,
        "format": artifact.quantization.format,
        "engine": engine.name,
        "kv_cache_dtype": kv_cache_dtype,
        "text": str(text),
        "max_tokens": tokens,
        "scratch": str(scratch),
        "reference": str(reference or ""),
    }
