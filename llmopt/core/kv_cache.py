"""How large the KV cache of a model is, from its config.json: the arithmetic that decides which context fits.

A token leaves one key and one value in each layer, of ``kv heads × head width`` numbers each; grouped-query and
multi-query attention have fewer heads for them than for queries.  A layer that attends to a window keeps no more tokens
than that, a recurrent one none.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from typing import Any

GIB = 1 << 30
# Bytes of one number as engines name its type; scales that a group of numbers shares are counted where the group is known.
WIDTHS = {
    "float32": 4.0,
    "f32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "half": 2.0,
    "f16": 2.0,
    "bf16": 2.0,
    "float64": 8.0,
}
WIDTHS |= {"q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32}
WIDTHS |= dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e4m3fn", "fp8_e5m2", "fp8_inc", "fp8_per_token_head"), 1.0)
WIDTHS |= dict.fromkeys(("int8", "int8_per_token_head"), 1.0)
WIDTHS |= dict.fromkeys(("int4", "int4_per_token_head", "ultraquant_4bit", "turboquant_4bit_nc"), 0.5)
WIDTHS |= dict.fromkeys(("nvfp4", "nvfp4_4over6", "fp4_e2m1"), 9 / 16)  # one byte of scale for 16 numbers
MOST_STRETCHED = 1e6  # RoPE's factor, likewise
MOST_LAYERS = 10_000  # beyond that a config is damaged
UNKNOWN_TYPE = "bfloat16"  # of a config that names none; the largest that a KV cache usually has
# What a layer keeps of its tokens, by its name in ``layer_types``: all, a window, or a state of fixed size (or nothing).
WHOLE = ("full_attention", "attention")
WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
STATES = ("linear_attention", "conv", "mamba", "mamba2", "recurrent", "mlp", "moe")
RECURRENT = ("mamba", "mamba2", "falcon_mamba")  # types without any attention
PATTERN_LETTERS = {"M": "mamba", "*": "full_attention", "-": "mlp", "E": "moe"}  # of Nemotron-H
# Every how many layers one attends to all, of models whose older configs leave it to their code.
PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
EVERY_FOURTH = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
QWEN_WHOLE = 28  # its first layers attend to all
# Whose cache each engine keeps otherwise, or whose layers differ in more than their window.
NOT_KNOWN = ("global_head_dim", "num_global_key_value_heads")
# Where a config says how many positions there are, and the types of RoPE whose length is in it already (vLLM 0.32).
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions",
             "max_sequence_length", "max_seq_length", "seq_len")  # fmt: skip
SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def positions(config: dict[str, Any]) -> int | None:
    """The longest context that the model has positions for, as vLLM derives it; ``None`` where the config does not say."""
    text = config.get("text_config") or config
    # Command-R's own limit goes before all others.
    own = first(text, "model_max_length") or 0
    known = [own] if own > 0 else [found for name in POSITIONS if (found := first(text, name) or 0) > 0]
    return int(min(known) * rope_factor(text)) if known else None


def rope_factor(text: dict[str, Any]) -> float:
    """By how much RoPE is stretched beyond the positions that the config names; Gemma 3 names them stretched."""
    ropes = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(ropes, dict) or "gemma3" in str(text.get("model_type")):
        return 1.0
    nested = [rope for rope in ropes.values() if isinstance(rope, dict)]  # one for each type of layer
    factors = [
        rope.get("factor")
        for rope in nested or [ropes]
        if (rope.get("rope_type") or rope.get("type")) not in SCALED_ALREADY
    ]
    told = [factor for factor in factors if isinstance(factor, (int, float)) and 0 < factor < MOST_STRETCHED]
    return float(told[-1]) if told else 1.0


def kv_cache_bytes(
    config: dict[str, Any], tokens: int, dtype: str | None = None, *, latent: bool | None = None
) -> int | None:
    """Bytes that one sequence of ``tokens`` takes over all layers, with a cache of ``dtype`` (default: the model's own).

    ``latent``: of multi-head latent attention the narrow row is kept (vLLM, SGLang, llama.cpp), or the keys and values of
    all heads (transformers).  ``None`` where the config does not say, or nobody says which of the two, and for a type or a
    kind of layer that is not known here.
    """
    text = config.get("text_config") or config
    per_layer = bytes_of_a_layer(text, dtype, latent=latent)
    windows = layer_windows(text)
    if per_layer is None or windows is None:
        return None
    return round(per_layer * sum(tokens if window is None else min(tokens, window) for window in windows))


def longest_context(config: dict[str, Any], room: int, limit: int, dtype: str | None = None) -> int:
    """The most tokens, up to ``limit``, whose cache takes ``room`` bytes or less; the config must tell its size."""
    return max(0, bisect.bisect_right(range(limit + 1), room, key=lambda n: kv_cache_bytes(config, n, dtype) or 0) - 1)


def bytes_of_a_layer(text: dict[str, Any], dtype: str | None, *, latent: bool | None = None) -> float | None:
    """Of one token; of a model without attention 0."""
    if text.get("model_type") in RECURRENT:
        return 0.0
    heads = first(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    hidden = first(text, "hidden_size", "n_embd", "d_model")
    number = number_width(dtype, text)
    if heads is None or number is None or any(text.get(name) for name in NOT_KNOWN):
        return None
    if rank := first(text, "kv_lora_rank"):
        return latent_row(text, rank, heads, latent=latent, number=number)
    width = first(text, "head_dim", "attention_head_dim", "kv_channels") or (hidden // heads if hidden else None)
    # Keys and values differ in their width where latent attention is kept expanded.
    return kv_heads(text, heads) * (width + (first(text, "v_head_dim") or width)) * number if width else None


def kv_heads(text: dict[str, Any], heads: int) -> int:
    """Heads that keep keys and values."""
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        return 1
    inner = text.get("attn_config")  # DBRX and MPT
    inner = first(inner, "kv_n_heads") if isinstance(inner, dict) else None
    names = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
    return first(text, *names) or inner or heads


def latent_row(text: dict[str, Any], rank: int, heads: int, *, latent: bool | None, number: float) -> float | None:
    """Of one token under multi-head latent attention (DeepSeek-V2, section 2.1)."""
    rope, plain, value = (first(text, name) for name in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    if latent is None or rope is None or plain is None or value is None:
        return None
    return (rank + rope if latent else heads * (plain + rope + value)) * number


def layer_windows(text: dict[str, Any]) -> list[int | None] | None:
    """The tokens that each layer keeps at most, ``None`` for all of them; nothing where the config does not say."""
    layers = first(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    kinds = layer_kinds(text, layers) if layers and layers <= MOST_LAYERS else None
    if kinds is None:
        return None
    windows: list[int | None] = []
    for kind in kinds[: max(0, len(kinds) - (first(text, "num_kv_shared_layers") or 0))]:
        if kind in WHOLE:
            windows.append(None)
        elif kind in STATES:
            windows.append(0)
        elif window := first(text, WINDOWED.get(kind, "")):
            windows.append(window)
        else:
            return None
    return windows


def is_attention(kind: str) -> bool:
    return kind in WHOLE or kind in WINDOWED


def layer_kinds(text: dict[str, Any], layers: int) -> list[str] | None:
    """What each layer is, in the words of ``layer_types``; ``None`` for words that are not known here."""
    kinds = text.get("layer_types") or text.get("layers_block_type")
    pattern = text.get("hybrid_override_pattern")
    if not kinds and isinstance(pattern, str):
        kinds = [PATTERN_LETTERS.get(letter, letter) for letter in pattern]
    if not kinds:
        return implied_kinds(text, layers)
    if not isinstance(kinds, list) or len(kinds) < layers:
        return None
    if not all(isinstance(kind, str) and (is_attention(kind) or kind in STATES) for kind in kinds):
        return None
    # Nemotron-H counts its layers by the list alone.
    return kinds if text.get("model_type") == "nemotron_h" else kinds[:layers]


def implied_kinds(text: dict[str, Any], layers: int) -> list[str]:
    """Of a config without ``layer_types``, as transformers fills them in (5.17)."""
    kind = str(text.get("model_type"))
    if kind in RECURRENT:
        return ["mamba"] * layers
    if period := first(text, "attn_layer_period"):  # Jamba
        offset = first(text, "attn_layer_offset") or 0
        return chosen(layers, [i for i in range(layers) if i % period == offset], "mamba")
    if "attn_layer_indices" in text or kind == "bamba":
        return chosen(layers, listed(text, "attn_layer_indices"), "mamba")
    if "full_attn_idxs" in text:  # LFM2
        return chosen(layers, listed(text, "full_attn_idxs") or range(layers), "conv")
    if interval := first(text, "full_attention_interval") or (4 if kind in EVERY_FOURTH else None):
        return chosen(layers, range(interval - 1, layers, interval), "linear_attention")
    if "attn_type_list" in text or kind == "minimax":
        whole = listed(text, "attn_type_list") or [i % 2 for i in range(1, layers + 1)]
        return chosen(layers, [i for i, attends in enumerate(whole) if attends], "linear_attention")
    if kind == "granitemoehybrid":
        return ["mamba"] * layers
    if kind == "llama4_text":
        rope = listed(text, "no_rope_layers") or [(i + 1) % 4 for i in range(layers)]
        return chosen(layers, [i for i, turned in enumerate(rope) if not turned], "chunked_attention")
    return ["full_attention" if window is None else "sliding_attention" for window in implied_windows(text, layers)]


def chosen(layers: int, attending: Iterable[int], other: str) -> list[str]:
    places = set(attending)
    return ["full_attention" if layer in places else other for layer in range(layers)]


def implied_windows(text: dict[str, Any], layers: int) -> list[int | None]:
    window, kind = first(text, "sliding_window"), str(text.get("model_type"))
    if window is None or not text.get("use_sliding_window", not kind.startswith("qwen")):
        return [None] * layers
    if pattern := first(text, "sliding_window_pattern") or PATTERNS.get(kind):
        return [window if number % pattern else None for number in range(1, layers + 1)]
    whole = text.get("max_window_layers", QWEN_WHOLE) if kind.startswith("qwen") else 0
    return [None if number < whole else window for number in range(layers)]


def number_width(dtype: str | None, config: dict[str, Any]) -> float | None:
    """Bytes of one number of the cache; ``None`` for a type that is not known."""
    if dtype is None or dtype == "auto":
        dtype = str(config.get("dtype") or config.get("torch_dtype") or UNKNOWN_TYPE)
    return WIDTHS.get(dtype.removeprefix("torch."))


def first(config: dict[str, Any], *names: str) -> int | None:
    """The first of these that is a number other than 0; words and lists are nobody's size."""
    found = (config.get(name) for name in names)
    numbers = (value for value in found if isinstance(value, (int, float)) and value and math.isfinite(value))
    return next((int(value) for value in numbers), None)


def listed(config: dict[str, Any], name: str) -> list[Any]:
    """A list under that name; empty for anything else."""
    found = config.get(name)
    return found if isinstance(found, list) else []
