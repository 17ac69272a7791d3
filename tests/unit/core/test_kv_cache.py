import pytest

from llmopt.core.kv_cache import kv_bytes_per_token

GROUPED = {
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_size": 3584,
    "dtype": "bfloat16",
}


def test_grouped_queries_share_keys_and_values():
    assert kv_bytes_per_token(GROUPED) == 2 * 28 * 4 * 128 * 2  # 57,344: Qwen2.5-7B


def test_without_groups_every_head_has_its_own():
    config = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "torch_dtype": "float16"}
    assert kv_bytes_per_token(config) == 2 * 32 * 4096 * 2


def test_multi_query_has_one_head():
    config = {"n_layer": 2, "n_head": 8, "n_embd": 512, "multi_query": True}
    assert kv_bytes_per_token(config) == 2 * 2 * 64 * 2


def test_the_width_of_a_head_may_be_its_own():
    assert kv_bytes_per_token(GROUPED | {"head_dim": 256}) == 2 * 28 * 4 * 256 * 2


def test_the_text_part_of_a_multimodal_model_counts():
    assert kv_bytes_per_token({"text_config": GROUPED, "num_hidden_layers": 99}) == kv_bytes_per_token(GROUPED)


@pytest.mark.parametrize(
    ("dtype", "share"), [("auto", 1), ("fp8_e5m2", 1 / 2), ("float32", 2), ("q8_0", 34 / 64), ("q4_0", 18 / 64)]
)
def test_the_type_of_the_cache_decides_its_size(dtype, share):
    assert kv_bytes_per_token(GROUPED, dtype) == round(kv_bytes_per_token(GROUPED) * share)


@pytest.mark.parametrize("config", [{}, GROUPED | {"kv_lora_rank": 512}])
def test_what_a_config_does_not_tell_is_not_guessed(config):
    assert kv_bytes_per_token(config) is None
