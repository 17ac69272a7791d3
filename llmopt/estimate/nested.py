"""The language model inside a config: multimodal models keep it in a part of their own."""

from __future__ import annotations

from typing import Any

from llmopt.core.errors import ModelError
from llmopt.estimate.shape import BY_HAND

LANGUAGE = ("thinker_config", "text_config", "llm_config", "language_config")
# The outer level alone tells these in several published configs.
OUTER = ("tie_word_embeddings", "torch_dtype", "dtype", "vocab_size")
# What transformers (5.17) takes where such a part leaves it out, as LLaVA-1.5 and Pixtral do; a config of its own must say it.
DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 131072,
    },
}  # fmt: skip


def language_part(config: dict[str, Any], place: str) -> tuple[dict[str, Any], str]:
    """The config of the language model, which multimodal ones keep inside, and its type. Raises ModelError."""
    inner: dict[str, Any] = config
    for name in LANGUAGE:
        found = inner.get(name)
        if found is not None and not isinstance(found, dict):
            raise ModelError(f"{place}: {name} is {type(found).__name__}, no table", hint="restore the file")
        inner = found or inner
    model_type = inner.get("model_type") or config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"{place} names no model_type", hint=f"add it, or {BY_HAND}")
    if inner is config:
        return config, model_type
    outer = {k: config[k] for k in OUTER if k in config}
    return DEFAULTS.get(model_type, {}) | outer | inner, model_type
