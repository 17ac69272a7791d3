import contextlib

import pytest

from llmopt.core.errors import ModelError
from llmopt.estimate.architectures import FAMILIES, shape_of
from unit.estimate.make import DEEPSEEK, MIXTRAL, QWEN


def parameters(config):
    return shape_of(config, "config.json").parameters


def test_a_dense_model_has_the_parameters_of_its_card():
    assert parameters(QWEN) == 7_615_616_512


def test_a_mixture_has_all_of_its_experts_and_passes_few():
    shape = shape_of(MIXTRAL, "config.json")
    assert shape.parameters == 46_702_792_704
    assert shape.active_parameters == pytest.approx(12.9e9, rel=0.02)


def test_latent_attention_and_shared_experts_are_counted():
    assert parameters(DEEPSEEK) == 15_706_484_224


def test_tied_embeddings_are_counted_once():
    assert parameters(QWEN) - parameters(QWEN | {"tie_word_embeddings": True}) == 152064 * 3584


def test_the_language_model_inside_a_multimodal_one_is_taken():
    shape = shape_of(
        {"model_type": "llava", "text_config": QWEN, "vision_config": {"model_type": "strange"}}, "config.json"
    )
    assert shape.parameters == 7_615_616_512
    assert "vision_config is not counted" in shape.notes[0]


def test_a_vision_tower_of_the_usual_kind_is_counted_apart():
    tower = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "image_size": 896,
    }
    shape = shape_of({"model_type": "gemma3", "text_config": QWEN, "vision_config": tower}, "config.json")
    assert shape.vision == pytest.approx(417e6, rel=0.02)  # SigLIP so400m


def test_an_architecture_that_is_not_known_is_refused_with_its_name():
    with pytest.raises(ModelError, match="'strange_new' is not known") as caught:
        shape_of(QWEN | {"model_type": "strange_new"}, "config.json")
    assert "--parameters" in caught.value.hint


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"hidden_size": None}, "names no hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_hidden_layers": -3}, "num_hidden_layers is -3"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"intermediate_size": 1e300}, "intermediate_size is 1e"),
        ({"num_attention_heads": 29, "num_key_value_heads": 29}, "do not divide hidden_size"),
        ({"layer_types": ["full_attention"] * 3}, "kind that is not known"),
        ({"layer_types": ["strange"] * 28}, "kind that is not known"),
        ({"text_config": 7}, "text_config is int"),
        ({"model_type": None}, "names no model_type"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000"),
        ({"sliding_window": -5}, "sliding_window is -5"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"num_kv_shared_layers": 40}, "40 of 28 layers"),
        ({"rope_scaling": {"type": "linear", "factor": -3}}, "RoPE is -3"),
        ({"rope_scaling": {"type": "linear", "factor": 1e308}}, "RoPE is 1e"),
        ({"max_position_embeddings": -7}, "max_position_embeddings is -7"),
        ({"model_max_length": -5}, "model_max_length is -5"),
        ({"num_key_value_heads": 5}, "5 heads of keys for 28"),
        ({"num_key_value_heads": 56}, "56 heads of keys for 28"),
    ],
)
def test_odd_numbers_are_named(damage, words):
    with pytest.raises(ModelError, match=words):
        shape_of(QWEN | damage, "config.json")


KEYS = (
    "layer_types",
    "sliding_window",
    "head_dim",
    "text_config",
    "vision_config",
    "model_max_length",
    "tie_word_embeddings",
    "layers_block_type",
)
JUNK = (0, -1, 1.5, "x", [], {}, [1, 2], True, 1e308, float("nan"), 2**70, {"a": 1}, ["x"] * 40, [["a"]] * 40)


@pytest.mark.parametrize("key", [*QWEN, *KEYS])
def test_no_junk_in_any_key_is_a_crash(key):
    for junk in JUNK:
        with contextlib.suppress(ModelError):
            assert shape_of(QWEN | {key: junk}, "config.json").parameters > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_config_is_refused_by_every_family(name):
    if name == "gemma3_text":
        pytest.skip("its published configs leave nearly everything to transformers' defaults")
    with pytest.raises(ModelError, match="names no"):
        shape_of({"model_type": name}, "config.json")


@pytest.mark.parametrize("told", [{"num_experts_per_tok": "8"}, {"num_experts_per_tok": -2}, {"num_experts_per_tok": 9}])  # fmt: skip
def test_experts_of_a_token_that_no_model_has(told):
    with pytest.raises(ModelError):
        shape_of(MIXTRAL | told, "config.json")


def test_experts_of_a_token_that_are_not_told_are_doubted():
    assert "does not tell" in shape_of(MIXTRAL | {"num_experts_per_tok": None}, "config.json").notes[0]


def test_dbrx_tells_its_experts_in_a_part_of_its_own():
    dbrx = {
        "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352, "max_seq_len": 32768,
        "attn_config": {"kv_n_heads": 8}, "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    }  # fmt: skip
    assert shape_of(dbrx, "config.json").active_parameters / 1e9 == pytest.approx(36, rel=0.03)


def test_a_nested_config_may_leave_its_familys_defaults_out():
    llava = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    assert shape_of(llava, "config.json").parameters == pytest.approx(6.74e9, rel=0.001)


SIGHT = {"model_type": "qwen2_5_vl", "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048,
         "patch_size": 14, "spatial_merge_size": 2}  # fmt: skip


def test_a_tower_with_gates_and_what_leads_to_the_language_model():
    """Qwen2.5-VL-3B: 668.7 M beside its language model."""
    assert shape_of(QWEN | {"vision_config": SIGHT}, "config.json").vision == pytest.approx(668.7e6, rel=0.005)


def test_of_a_tower_that_does_not_tell_its_type_the_outer_level_does():
    """As Qwen2.5-VL is published."""
    published = {name: value for name, value in SIGHT.items() if name != "model_type"} | {"hidden_act": "silu"}
    found = shape_of(QWEN | {"model_type": "qwen2_5_vl", "vision_config": published}, "config.json")
    assert found.vision == pytest.approx(668.7e6, rel=0.005)
    assert not any("projector left out" in note for note in found.notes)


@pytest.mark.parametrize(
    "odd", [{"hidden_size": 1e300}, {"patch_size": 0.5}, {"intermediate_size": None, "mlp_ratio": "4"}]
)
def test_an_odd_tower_is_not_counted_and_that_is_said(odd):
    found = shape_of(QWEN | {"vision_config": SIGHT | odd}, "config.json")
    assert found.vision == 0
    assert "not counted" in found.notes[0]
