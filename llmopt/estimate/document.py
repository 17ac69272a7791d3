"""The document that ``llmopt estimate`` prints: figures, what they rest on, and whether it fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmopt.core.formats import Layout
from llmopt.core.units import show
from llmopt.estimate.combinations import combination_doubts
from llmopt.estimate.kept import unmatched
from llmopt.estimate.memory import Case, Memory, memory_of, working_of
from llmopt.estimate.source import Source
from llmopt.estimate.weights import Weights

EVIDENCE = "estimated"
# What is offered where something does not fit, from the widest.
STEPS = ("bf16", "fp8", "gptq-int8", "awq-int4-g128", "gptq-int4-g128", "gptq-int3-g128")
GGUF_STEPS = (
    "gguf-f16",
    "gguf-q8_0",
    "gguf-q6_k",
    "gguf-q5_k_m",
    "gguf-q4_k_m",
    "gguf-iq4_xs",
    "gguf-q3_k_m",
    "gguf-q2_k",
    "gguf-iq2_m",
)
HF_STEPS = ("bf16", "int8", "gptq-int8", "nf4", "gptq-int4-g128", "awq-int4-g128", "nf4-dq", "gptq-int3-g128")
MEMORY_KEYS = (
    "weights_bytes", "kv_cache_bytes", "activation_bytes", "total_bytes", "overhead_bytes", "per_gpu_bytes", "needed_per_gpu_bytes",
)  # fmt: skip
OWN_FORMATS = {
    "gptq": "GPTQ's own layout", "awq": "AWQ's own layout", "auto-round": "AutoRound's own layout", "fp8": "transformers' own FP8",
}  # fmt: skip
CONTEXTS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)


def estimate_document(source: Source, case: Case) -> dict[str, Any]:
    """JSON-ready; sizes in bytes."""
    memory = memory_of(case)
    shape, devices = case.shape, case.devices
    return {
        "schema": 1,
        "evidence": EVIDENCE,
        "model": {
            "name": source.name, "model_type": shape.model_type, "parameters": shape.parameters,
            "active_parameters": shape.active_parameters, "layers": shape.layers, "experts": shape.experts or None,
            "vision_parameters": shape.vision or None,
        },
        "quantization": {
            "name": case.layout.name, "format": case.layout.format, "bits_per_weight": case.weights.bits_per_weight,
            "file_bytes": case.weights.file_bytes, "types": case.weights.types,
        },
        "backend": case.backend,
        "load": {
            "sequences": case.load.sequences, "input_tokens": case.load.prompt, "output_tokens": case.load.output,
            "context": case.load.context, "kv_cache_dtype": case.kv_dtype or "auto",
        },
        "devices": {
            "name": devices.name or None, "count": devices.count, "tensor_parallel_size": devices.tensor_parallel,
            "memory_bytes": devices.memory_bytes,
        },
        "memory": memory_table(memory),
        "fits": whether(case, memory),
        "assumptions": assumptions(source, case, memory),
        "doubts": doubts(source, case),
    }  # fmt: skip


def size_document(source: Source, layout: Layout, weights: Weights) -> dict[str, Any]:
    """Of a model that is known by its size alone: its weights, and nothing else."""
    table = dict.fromkeys((*MEMORY_KEYS, "max_context", "max_concurrency"))
    return {
        "schema": 1, "evidence": EVIDENCE,
        "model": {"name": source.name, "model_type": None, "parameters": source.shape.parameters},
        "quantization": {"name": layout.name, "format": layout.format, "bits_per_weight": weights.bits_per_weight, "file_bytes": weights.bytes},
        "memory": table | {"weights_bytes": weights.bytes, "evidence": EVIDENCE},
        "fits": None,
        "assumptions": [f"weights: {source.shape.parameters:,} parameters, all of them quantized"],
        "doubts": ["KV cache, activations and what stays in 16 bits are not known without a config.json"],
    }  # fmt: skip


def memory_table(memory: Memory) -> dict[str, Any]:
    return {
        **{key: getattr(memory, key) for key in MEMORY_KEYS},
        "max_context": memory.max_context,
        "max_concurrency": memory.max_concurrency,
        "evidence": EVIDENCE,
    }


def whether(case: Case, memory: Memory) -> bool | None:
    """Whether the load fits the devices; ``None`` where their memory is not known."""
    if memory.max_concurrency is None:
        return None
    return memory.max_concurrency >= case.load.sequences


def assumptions(source: Source, case: Case, memory: Memory) -> list[str]:
    exact = source.weights is case.weights
    bits = case.weights.bits_per_weight
    basis = (
        "from the headers of the files"
        if exact
        else f"{case.shape.parameters:,} parameters by the config, {bits:g} bits each"
    )
    working = working_of(case)
    found = [
        f"weights: {basis}",
        f"KV cache: {case.load.sequences} × {case.load.context:,} tokens, all sequences at their full length",
        f"activations: {working.words}",
        f"peak: {memory.peak}"
        + (
            f", when the KV cache held {case.load.prompt:,} tokens: activations are what comes on top of the whole cache"
            if memory.peak == "prefill" and case.backend == "hf"
            else ""
        ),
    ]
    if case.backend == "hf" and case.load.prompt > 1:
        older = case.load.sequences * case.load.prompt * case.shape.vocabulary * 6
        found.append(
            f"logits of the last position alone; transformers before 4.45 kept those of all: up to {show(older, 'bytes')} more"
        )
    if memory.host_bytes:
        found.append(
            f"llama.cpp leaves the input embedding in main memory: {show(memory.host_bytes, 'bytes')} of the weights"
        )
    if case.weights.fallbacks:
        found.append(f"{case.weights.fallbacks} tensors have rows that 256 does not divide and get a wider type")
    return found


def doubts(source: Source, case: Case) -> list[str]:
    found = list(case.shape.notes) + combination_doubts(case)
    if case.weights is not source.weights and (odd := unmatched(case.shape, case.layout.kept)):
        found.append(
            f"the quantization_config keeps {odd[0]!r}, which is not known here: the weights may be larger than this"
        )
    if case.layout.name != source.stored.name and case.layout.format in OWN_FORMATS:
        found.append(
            f"sized in {OWN_FORMATS[case.layout.format]}; llmopt quantize may write another for the engine: --format compressed-tensors"
        )
    if case.backend == "hf" and case.layout.format == "compressed-tensors" and case.layout.bits < case.layout.rest:
        found.append("transformers unpacks compressed-tensors to 16 bits before its first step: counted so")
    if case.backend == "hf" and any(t.role == "conv" for t in case.shape.tensors):
        found.append(
            "recurrent layers need more without their own kernels (mamba-ssm, flash-linear-attention) in transformers"
        )
    if case.shape.experts and case.layout.format == "bitsandbytes":
        found.append("transformers 5 keeps fused experts in 16 bits under bitsandbytes; counted as quantized")
    return found


def ways_out(source: Source, case: Case) -> str:
    """What would fit instead: the next narrower quantization, or a shorter context."""
    for name in steps(case.backend):
        layout, weights = source.in_layout(name, None)
        if weights.bytes < case.weights.bytes:
            smaller = memory_of(replace(case, layout=layout, weights=weights))
            if (smaller.max_concurrency or 0) >= case.load.sequences:
                return f"--quant {name} fits ({show(smaller.needed_per_gpu_bytes, 'bytes')} per GPU)"
    memory = memory_of(case)
    if memory.max_context:
        return f"--context {memory.max_context} fits"
    return "no quantization here is small enough: more GPUs (--gpus 2 --tensor-parallel-size 2), or a larger one"


def steps(backend: str) -> tuple[str, ...]:
    return {"llamacpp": GGUF_STEPS, "hf": HF_STEPS}.get(backend, STEPS)


def fits_document(source: Source, case: Case) -> dict[str, Any]:
    """Which quantizations hold which contexts on the devices."""
    rows = []
    for name in steps(case.backend):
        layout, weights = source.in_layout(name, None)
        memory = memory_of(replace(case, layout=layout, weights=weights))
        longest = memory.max_context or 0
        rows.append({
            "quantization": layout.name, "bits_per_weight": weights.bits_per_weight, "weights_bytes": weights.bytes,
            "fits": longest > 0, "max_context": longest, "max_concurrency": memory.max_concurrency,
            "contexts": [n for n in CONTEXTS if n <= longest],
        })  # fmt: skip
    return {
        "schema": 1, "evidence": EVIDENCE, "model": {"name": source.name, "parameters": source.shape.parameters},
        "backend": case.backend, "sequences": case.load.sequences,
        "devices": {"name": case.devices.name or None, "count": case.devices.count, "memory_bytes": case.devices.memory_bytes},
        "rows": rows, "doubts": doubts(source, case),
    }  # fmt: skip
