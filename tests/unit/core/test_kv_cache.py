import pytest

from llmopt.core.kv_cache import kv_cache_bytes, longest_context, positions

GROUPED = {
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_size": 3584,
    "dtype": "bfloat16",
}
# config.json of google/gemma-3-27b-it, as far as it tells of the cache.
GEMMA = {
    "text_config": {
        "model_type": "gemma3_text", "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
        "hidden_size": 5376, "head_dim": 128, "sliding_window": 1024,
    },
    "dtype": "bfloat16",
}  # fmt: skip
GIB = 1 << 30


def per_token(config, dtype=None):
    return kv_cache_bytes(config, 1, dtype)


def test_grouped_queries_share_keys_and_values():
    assert per_token(GROUPED) == 2 * 28 * 4 * 128 * 2  # 57,344: Qwen2.5-7B


def test_without_groups_every_head_has_its_own():
    config = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "torch_dtype": "float16"}
    assert per_token(config) == 2 * 32 * 4096 * 2


def test_multi_query_has_one_head():
    config = {"n_layer": 2, "n_head": 8, "n_embd": 512, "multi_query": True}
    assert per_token(config) == 2 * 2 * 64 * 2


def test_the_width_of_a_head_may_be_its_own():
    assert per_token(GROUPED | {"head_dim": 256}) == 2 * 28 * 4 * 256 * 2


def test_the_text_part_of_a_multimodal_model_counts():
    assert per_token({"text_config": GROUPED, "num_hidden_layers": 99}) == per_token(GROUPED)


@pytest.mark.parametrize(
    ("dtype", "share"),
    [
        *(("auto", 1), ("fp8_e5m2", 1 / 2), ("float32", 2), ("q8_0", 34 / 64), ("q4_0", 18 / 64)),
        *(("int4", 1 / 4), ("nvfp4", 9 / 32), ("int4_per_token_head", 1 / 4)),
    ],
)
def test_the_type_of_the_cache_decides_its_size(dtype, share):
    assert per_token(GROUPED, dtype) == round(per_token(GROUPED) * share)


def test_a_window_bounds_what_its_layers_keep():
    assert kv_cache_bytes(GEMMA, 131072) == (10 * 131072 + 52 * 1024) * 2 * 16 * 128 * 2  # 10.4 GiB, not 62
    assert kv_cache_bytes(GEMMA, 1000) == 62 * 1000 * 2 * 16 * 128 * 2


def test_layers_are_of_the_types_that_the_config_names():
    types = ["full_attention", "sliding_attention", "chunked_attention", "linear_attention"]
    config = GROUPED | {
        "num_hidden_layers": 4,
        "layer_types": types,
        "sliding_window": 100,
        "attention_chunk_size": 200,
    }
    assert kv_cache_bytes(config, 1000) == (1000 + 100 + 200 + 0) * 2 * 4 * 128 * 2


def test_a_window_that_is_not_used_bounds_nothing():
    config = GROUPED | {"model_type": "qwen2", "sliding_window": 100}
    assert kv_cache_bytes(config, 1000) == kv_cache_bytes(GROUPED, 1000)
    used = config | {"use_sliding_window": True, "max_window_layers": 21}
    assert kv_cache_bytes(used, 1000) == (21 * 1000 + 7 * 100) * 2 * 4 * 128 * 2


def test_the_longest_context_is_the_last_that_fits():
    longest = longest_context(GEMMA, 5 * GIB, 131072)
    assert kv_cache_bytes(GEMMA, longest) <= 5 * GIB < kv_cache_bytes(GEMMA, longest + 1)
    assert longest_context(GEMMA, 11 * GIB, 131072) == 131072
    assert longest_context(GEMMA, 1, 131072) == 0


def test_a_type_that_is_not_known_is_not_guessed():
    assert kv_cache_bytes(GROUPED, 1, "fp3_strange") is None


STRANGE = GROUPED | {"layer_types": ["strange_attention"] * 28}


@pytest.mark.parametrize("config", [{}, GROUPED | {"kv_lora_rank": 512}, STRANGE])
def test_what_a_config_does_not_tell_is_not_guessed(config):
    assert per_token(config) is None


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"n_positions": 1024}, 1024),  # GPT-2
        ({"model_max_length": -5, "max_position_embeddings": -1}, None),  # damaged
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": None}}, 4096),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),  # Command-R
        ({"text_config": {"max_position_embeddings": 2048}}, 2048),
        ({"model_type": "gemma3_text", "max_position_embeddings": 131072,
          "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, 131072),
        ({}, None),
    ],
)  # fmt: skip
def test_positions_are_counted_as_vllm_does(config, longest):
    assert positions(config) == longest
