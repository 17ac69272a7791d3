"""What llama.cpp holds otherwise than other engines."""

from __future__ import annotations

from typing import Any

from llmopt.core.kv_cache import WINDOWED
from llmopt.estimate.activations import UBATCH

WINDOW_CELLS = 256  # it pads the cache of sliding layers so: 1,536 cells for Gemma 3's window of 1,024
# Types whose windows it knows (llama-model.cpp, n_swa); of all others every layer attends to all, and keeps all tokens:
# Mistral is its plain "llama", and windows of Phi-3 are switched off there.
SLIDING = (
    "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "cohere2", "gpt_oss", "llama4", "llama4_text", "exaone4",
    "olmo3", "olmo2", "smallthinker", "mimo_v2_flash", "gemma4", "gemma4_text", "afmoe",
)  # fmt: skip


def as_cached(config: dict[str, Any], step_tokens: int | None) -> dict[str, Any]:
    """The config with the windows that it keeps: with a step's tokens beside them, in cells of 256, or none at all."""
    if config.get("model_type") not in SLIDING:
        kinds = config.get("layer_types")
        whole = ["full_attention" if kind in WINDOWED else kind for kind in kinds] if isinstance(kinds, list) else kinds
        return config | dict.fromkeys(WINDOWED.values()) | {"layer_types": whole}
    step = step_tokens or UBATCH
    return config | {
        name: -(-(config[name] + step) // WINDOW_CELLS) * WINDOW_CELLS
        for name in WINDOWED.values()
        if isinstance(config.get(name), int) and config[name]
    }
