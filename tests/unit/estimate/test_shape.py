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
        ({"num_attention_heads": 29}, "do not divide hidden_size"),
        ({"layer_types": ["full_attention"] * 3}, "kind that is not known"),
        ({"layer_types": ["strange"] * 28}, "kind that is not known"),
        ({"text_config": 7}, "text_config is int"),
        ({"model_type": None}, "names no model_type"),
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
    "tie_word_embeddings",
    "layers_block_type",
)
JUNK = (0, -1, 1.5, "x", [], {}, [1, 2], True, 1e308, float("nan"), 2**70, {"a": 1}, ["x"] * 40)


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
