"""How large the KV cache of a model is, from its config.json: the arithmetic that decides which context fits.

A token leaves one key and one value in each layer, of ``kv heads × head width`` numbers each; grouped-query and
multi-query attention have fewer heads for them than for queries.
"""

from __future__ import annotations

from typing import Any

GIB = 1 << 30
# Bytes of one number as engines name its type; llama.cpp's types share a scale among 32 numbers.
WIDTHS = {"float32": 4.0, "f32": 4.0, "float16": 2.0, "bfloat16": 2.0, "half": 2.0, "f16": 2.0, "bf16": 2.0}
WIDTHS |= {"q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32}
UNKNOWN_TYPE = "bfloat16"  # of a config that names none; the largest that a KV cache usually has


def kv_bytes_per_token(config: dict[str, Any], dtype: str | None = None) -> int | None:
    """Bytes that one token of one sequence takes over all layers, with a cache of ``dtype`` (default: the model's own).

    ``None`` where the config does not say, and for multi-head latent attention, whose cache each engine keeps otherwise.
    Sliding windows are not taken off.
    """
    text = config.get("text_config") or config
    layers = first(text, "num_hidden_layers", "n_layer", "num_layers")
    heads = first(text, "num_attention_heads", "n_head")
    hidden = first(text, "hidden_size", "n_embd", "d_model")
    if layers is None or heads is None or "kv_lora_rank" in text:
        return None
    kv_heads = 1 if text.get("multi_query") else first(text, "num_key_value_heads", "num_kv_heads") or heads
    width = first(text, "head_dim") or (hidden // heads if hidden else None)
    if width is None:
        return None
    return round(2 * layers * kv_heads * width * number_width(dtype, text))


def number_width(dtype: str | None, config: dict[str, Any]) -> float:
    """Bytes of one number of the cache; any kind of fp8 takes one."""
    if dtype is None or dtype == "auto":
        dtype = str(config.get("dtype") or config.get("torch_dtype") or UNKNOWN_TYPE)
    dtype = dtype.removeprefix("torch.")
    return 1.0 if dtype.startswith(("fp8", "float8", "int8")) else WIDTHS.get(dtype, WIDTHS[UNKNOWN_TYPE])


def first(config: dict[str, Any], *names: str) -> int | None:
    return next((int(config[name]) for name in names if config.get(name)), None)
