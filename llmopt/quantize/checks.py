"""What every quantizer that loads through transformers checks first; runs inside a worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmopt.core.errors import ModelError


def require_causal_lm(model: str) -> None:
    """Raise ModelError at once, before any weight is read, for an architecture that transformers does not know."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = json.loads((Path(model) / "config.json").read_text())["model_type"]
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"transformers knows no causal language model of type {model_type!r}",
            hint="check model_type in config.json; custom code is not run unless asked for",
        )


def load_model(model: str, **options: Any) -> Any:
    """The model on the CPU or the visible GPU, in bf16, from safetensors only, without running its own code."""
    import torch
    from transformers import AutoModelForCausalLM

    require_causal_lm(model)
    options.setdefault("device_map", "auto" if torch.cuda.is_available() else "cpu")
    return AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False, **options
    )
