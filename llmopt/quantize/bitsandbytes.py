"""NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3) through bitsandbytes."""

from __future__ import annotations

from typing import Any


def run(model: str, out: str, settings: dict[str, Any], calibration: str) -> dict[str, Any]:
    """Quantize ``model`` into the folder ``out``; needs no calibration text. Runs in a worker."""
    import torch
    from transformers import BitsAndBytesConfig

    from llmopt.quantize.checks import load_model

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings["type"],
        bnb_4bit_use_double_quant=settings["double_quantization"],
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    load_model(model, quantization_config=config).save_pretrained(out)
    return {}
