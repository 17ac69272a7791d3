"""Combinations of engine, device and format that do not load or share out: figures of them are doubted."""

from __future__ import annotations

from typing import cast

from llmopt.core.domain import Format, Quantization
from llmopt.core.kv_cache import positions
from llmopt.core.loading import seen
from llmopt.estimate.activations import STEPWISE, attention_widths
from llmopt.estimate.memory import Case

NVIDIA_ALONE = ("trtllm",)
ON_APPLE = ("hf", "llamacpp")
# Older than compute capability 8: without bfloat16, which vLLM refuses there.
WITHOUT_BF16 = ("V100", "T4 ", "RTX 2080")
OF_GGML = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")  # types of a KV cache that llama.cpp alone has


def combination_doubts(case: Case) -> list[str]:
    backend, devices, found = case.backend, case.devices, []
    name, layout = devices.name, case.layout
    if name.startswith("Apple") and backend not in ON_APPLE:
        found.append(f"{backend} does not run on {name}: --backend llamacpp or hf")
    elif backend in NVIDIA_ALONE and ("Instinct" in name or "Radeon" in name or "Gaudi" in name or "Arc " in name):
        found.append(f"{backend} runs on NVIDIA's GPUs alone, not on {name}")
    if backend in STEPWISE and layout.name == "bf16" and any(word in f"{name} " for word in WITHOUT_BF16):
        found.append(f"{name} computes no bfloat16, {backend} asks for it: --quant fp16")
    kind = "cpu" if devices.kind == "cpu" else "cuda"
    format = cast(Format, layout.format)
    entry = seen(backend, kind, Quantization(name=layout.name, method="", format=format, bits=layout.bits))
    if entry is not None and not entry.loads:
        found.append(
            f"{backend} does not load {layout.name} ({entry.evidence})" + (f": {entry.note}" if entry.note else "")
        )
    elif layout.format == "in-memory" and backend != "hf":
        found.append(f"{layout.name} is made in transformers' memory: {backend} has no file of it to load")
    if case.kv_dtype in OF_GGML and backend != "llamacpp":
        found.append(f"a KV cache of {case.kv_dtype} is llama.cpp's: {backend} has none")
    heads = attention_widths(case.shape)[0]
    if backend in STEPWISE and heads % devices.tensor_parallel:
        found.append(f"{devices.tensor_parallel} GPUs cannot share {heads} heads: {backend} refuses to start")
    limit = positions(case.shape.config)
    if limit is not None and case.load.context > limit:
        found.append(
            f"the model has positions for {limit:,} tokens, {case.load.context:,} were asked for: engines refuse them, or it talks"
            " nonsense beyond"
        )
    return found
