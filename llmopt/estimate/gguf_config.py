"""The metadata of a GGUF's header in the words of a config.json, layer by layer where it tells its layers."""

from __future__ import annotations

import math
from typing import Any

from llmopt.core.errors import ModelError
from llmopt.estimate.shape import LARGEST, MOST_HEADS, MOST_LAYERS

# Keys of the metadata, without the architecture before them, → config.json's.
KEYS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.sliding_window": "sliding_window", "context_length": "max_position_embeddings",
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "attention.kv_lora_rank": "kv_lora_rank",
    "attention.value_length_mla": "v_head_dim", "rope.dimension_count": "qk_rope_head_dim",
    "ssm.state_size": "ssm_state_size", "full_attention_interval": "full_attention_interval",
    "attention.shared_kv_layers": "num_kv_shared_layers",
}  # fmt: skip
# llama.cpp's names of architectures → config.json's, where they differ.
CONFIG_TYPES = {
    "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next", "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text", "qwen2vl": "qwen2", "qwen3vl": "qwen3", "qwen3vlmoe": "qwen3_moe",
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "llama4": "llama4_text", "gpt-oss": "gpt_oss", "phi2": "phi",
    "starcoder": "gpt_bigcode", "command-r": "cohere", "hunyuan-dense": "hunyuan_v1_dense", "glm4moe": "glm4_moe",
    "ernie4_5-moe": "ernie4_5_moe", "granitehybrid": "granitemoehybrid", "minimax-m2": "minimax_m2", "mistral3": "mistral",
    "deepseek2": "deepseek_v3", "gptneox": "gpt_neox", "falcon-h1": "falcon_h1", "nemotron_h_moe": "nemotron_h",
}  # fmt: skip
# Every how many layers one attends to all, of architectures whose files do not say it (llama-model.cpp, set_swa_pattern).
SLIDES = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "llama4": 4, "exaone4": 4, "olmo2": 4}
LLAMA4_CHUNK = 8192
EVERY_FOURTH = ("qwen3next", "qwen35", "qwen35moe")


def config_of(metadata: dict[str, Any], architecture: str, place: str) -> dict[str, Any]:
    """Raises ModelError for numbers that no model has."""
    config: dict[str, Any] = {"model_type": CONFIG_TYPES.get(architecture, architecture)}
    for key, name in KEYS.items():
        value = metadata.get(f"{architecture}.{key}")
        numbers = [whole(place, key, v) for v in (value if isinstance(value, list) else [value])]
        if widest := max(numbers, default=0):  # of numbers for each layer the widest
            config[name] = widest
    for name, most in (("num_hidden_layers", MOST_LAYERS), ("num_attention_heads", MOST_HEADS)):
        if config.get(name, 0) > most:
            raise ModelError(f"{place}: {name} is {config[name]:,}, which no model has", hint="fetch or copy it again")
    check_heads(metadata, architecture, place)
    narrow = whole(place, "key_length_mla", metadata.get(f"{architecture}.attention.key_length_mla"))
    if "kv_lora_rank" in config and narrow:
        config["qk_nope_head_dim"] = narrow - config.get("qk_rope_head_dim", 0)
    else:
        config.pop("qk_rope_head_dim", None)
        if config.pop("kv_lora_rank", None):  # of an older conversion: llama.cpp keeps keys and values of all heads
            config["v_head_dim"] = whole(place, "value_length", metadata.get(f"{architecture}.attention.value_length"))
    layers = config.get("num_hidden_layers", 0)
    if architecture == "llama4" and metadata.get("llama4.attention.sliding_window") != 0:
        config["sliding_window"] = LLAMA4_CHUNK  # llama.cpp takes that, whatever the file says, unless it says 0
    if kinds := layer_types(metadata, architecture, layers, config.get("sliding_window")):
        config["layer_types"] = kinds
    if "sliding_window" in config and "sliding_attention" not in kinds:
        del config["sliding_window"]  # llama.cpp attends to all there, whatever the file says
    return config


def check_heads(metadata: dict[str, Any], architecture: str, place: str) -> None:
    """Raises ModelError where a layer's heads do not share its heads of keys evenly."""
    told = [metadata.get(f"{architecture}.attention.head_count{which}") for which in ("", "_kv")]
    layers = max((len(heads) for heads in told if isinstance(heads, list)), default=1)
    queries, keys = (heads if isinstance(heads, list) else [heads] * layers for heads in told)
    for of_queries, of_keys in zip(queries, keys, strict=False):
        if of_queries and of_keys and of_queries % of_keys:
            raise ModelError(
                f"{place}: {of_keys} heads of keys for {of_queries} heads, which no model has",
                hint="fetch or copy it again",
            )


def layer_types(metadata: dict[str, Any], architecture: str, layers: int, window: int | None) -> list[str]:
    """What each layer keeps of its tokens; empty where nothing says so and all attend to all."""
    heads = metadata.get(f"{architecture}.attention.head_count_kv")
    if isinstance(heads, list) and len(heads) >= layers and 0 in heads[:layers]:  # hybrids: no heads, no keys
        return ["full_attention" if count else "mamba" for count in heads[:layers]]
    interval = metadata.get(f"{architecture}.full_attention_interval") or 4
    if architecture in EVERY_FOURTH and isinstance(interval, int):
        return ["linear_attention" if number % interval else "full_attention" for number in range(1, layers + 1)]
    pattern = metadata.get(f"{architecture}.attention.sliding_window_pattern") or SLIDES.get(architecture)
    if not window or not isinstance(pattern, (int, list)) or (architecture == "exaone4" and layers < 64):
        return ["full_attention"] * layers if architecture == "llama4" else []
    if isinstance(pattern, list):
        slides = pattern[:layers] + [False] * (layers - len(pattern))
    else:
        slides = [bool(number % int(pattern)) for number in range(1, layers + 1)]
    return ["sliding_attention" if narrow else "full_attention" for narrow in slides]


def whole(place: str, key: str, value: Any) -> int:
    """A count, 0 where there is none. Raises ModelError."""
    if value is None:
        return 0
    if (
        not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not 0 <= value < LARGEST
        or value != int(value)
    ):
        raise ModelError(f"{place}: {key} is {value!r}, which no model has", hint="fetch or copy it again")
    return int(value)


def uneven(metadata: dict[str, Any], architecture: str) -> bool:
    """Whether layers have different numbers of heads, which are counted as those of the widest."""
    heads = metadata.get(f"{architecture}.attention.head_count_kv")
    return isinstance(heads, list) and len({count for count in heads if count}) > 1
