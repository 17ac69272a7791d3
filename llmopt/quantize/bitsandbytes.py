"""NF4 (Dettmers et al. 2023, QLoRA, section 3), with or without double quantization, and LLM.int8 through bitsandbytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.quantize.checks import give_freed_memory_back, in_our_words, load_model, require_causal_lm, shard_size
from llmopt.quantize.steps import step, without_bars

METHODS = ("nf4", "nf4-dq", "fp4", "int8")


def run(model: str, out: str, settings: dict[str, Any], samples: str) -> dict[str, Any]:
    """Quantize ``model`` into the folder ``out``; needs no samples. Runs in a worker.

    ``settings["method"]`` is one of ``nf4 nf4-dq fp4 int8``.  The weights are quantized as they are read, shard by
    shard: the model is never whole in 16 bits.
    """
    without_bars()
    give_freed_memory_back(piece_by_piece=True)
    require_causal_lm(model)
    quantization = configuration(settings)
    layers = json.loads((Path(model) / "config.json").read_text()).get("num_hidden_layers", 1)
    step(0, layers + 1, "reading and quantizing")
    own = {"device_map": settings["device_map"]} if settings.get("device_map") else {}
    with in_our_words("bitsandbytes"):
        network = load_model(model, quantization_config=quantization, **own)
        step(layers, layers + 1, "quantized")
        network.save_pretrained(out, **shard_size(settings))
    step(layers + 1, layers + 1, "saved")
    return {"quantized_layers": quantized_layers(network)}


def configuration(settings: dict[str, Any]) -> Any:
    """transformers' configuration of a method; raises UsageError for one that is not bitsandbytes'."""
    import torch
    from transformers import BitsAndBytesConfig

    method = settings["method"]
    if method not in METHODS:
        raise UsageError(f"bitsandbytes makes no {method!r}", hint=f"known: {', '.join(METHODS)}")
    if method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method.removesuffix("-dq"),
        bnb_4bit_use_double_quant=method.endswith("-dq"),
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def quantized_layers(network: Any) -> int:
    return sum(type(module).__name__ in ("Linear4bit", "Linear8bitLt") for module in network.modules())
