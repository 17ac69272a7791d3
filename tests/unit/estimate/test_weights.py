import pytest

from llmopt.core import gguf_mix
from llmopt.core.errors import ModelError
from llmopt.core.formats import layout
from llmopt.core.gguf_mix import Quantized, Traits, tensor_types
from llmopt.core.gguf_types import FILE_TYPES
from llmopt.estimate.architectures import shape_of
from llmopt.estimate.kept import unmatched
from llmopt.estimate.source import stored_layout
from llmopt.estimate.weights import weights_of
from unit.estimate.make import MIXTRAL, QWEN

SHAPE = shape_of(QWEN, "config.json")
LLAMA = Traits(architecture="llama", layers=32, group=4, experts=1, tied=False)


def bytes_of(quant):
    return weights_of(SHAPE, layout(quant)).bytes


def test_sixteen_bits_are_two_bytes_a_parameter():
    assert bytes_of("bf16") == 2 * SHAPE.parameters


def test_embeddings_head_and_norms_stay_in_sixteen_bits():
    kept = 2 * (2 * 152064 * 3584)
    assert bytes_of("nf4") - kept == pytest.approx(6_525_288_448 * 4.5 / 8, rel=1e-3)


def test_scales_zeros_and_group_indices_are_counted():
    assert bytes_of("gptq-int4-g128") > bytes_of("awq-int4-g128") > 2 * 2 * 152064 * 3584 + 6_525_288_448 / 2


# That the repositories of these files list, in 10^9 bytes.
SIZES = [("q8_0", 8.10), ("q6_k", 6.25), ("q5_k_m", 5.44), ("q4_k_m", 4.68), ("q3_k_m", 3.81), ("q2_k", 3.02)]


@pytest.mark.parametrize(("kind", "size"), SIZES)
def test_gguf_files_have_their_published_sizes(kind, size):
    assert weights_of(SHAPE, layout(f"gguf-{kind}")).file_bytes == pytest.approx(size * 1e9, rel=0.005)


def test_a_mixture_of_eight_has_its_own_rules():
    found = weights_of(shape_of(MIXTRAL, "config.json"), layout("gguf-q4_k_m")).file_bytes
    assert found == pytest.approx(28.45e9, rel=0.005)


def test_rows_that_no_block_divides_get_a_wider_type():
    narrow = shape_of(QWEN | {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}, "config.json")
    found = weights_of(narrow, layout("gguf-q4_k_m"))
    assert "Q5_0" in found.types
    assert found.fallbacks > 0


def one(category, name, layer=0, **more):
    """The type of the last of a model's tensors of one category, one in each layer up to ``layer``."""
    tensors = [Quantized(category=category, row=4096, layer=number, **more) for number in range(32)]
    return tensor_types(tensors, name, LLAMA)[layer]


def test_the_first_and_every_third_layer_get_more_bits():
    assert [one(gguf_mix.DOWN, "q4_k_m", layer) for layer in range(8)] == ["Q6_K"] * 4 + [
        "Q4_K",
        "Q4_K",
        "Q6_K",
        "Q4_K",
    ]


def test_the_head_gets_more_bits_and_the_embedding_none():
    assert one(gguf_mix.HEAD, "q4_k_m") == "Q6_K"
    assert one(gguf_mix.EMBEDDING, "q4_k_m") == "Q4_K"


def test_norms_and_routers_are_never_quantized():
    assert one(gguf_mix.KEPT, "q2_k") == "F32"


@pytest.mark.parametrize("name", FILE_TYPES)
def test_every_file_type_has_a_size_between_its_main_type_and_its_head(name):
    found = weights_of(SHAPE, layout(f"gguf-{name}"))
    assert 1.1 < found.bits_per_weight <= 32


GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "head_dim": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_local_experts": 32, "num_experts_per_tok": 4,
    "sliding_window": 128, "vocab_size": 201088, "tie_word_embeddings": False,
}  # fmt: skip


def stored(config, said):
    shape = shape_of(config, "config.json")
    return shape, weights_of(shape, stored_layout({"quantization_config": said}))


def test_mxfp4_is_of_experts_alone():
    """gpt-oss-20b: its three files have 13.76 GB."""
    assert stored(GPT_OSS, {"quant_method": "mxfp4"})[1].bytes == pytest.approx(13.76e9, rel=0.002)


@pytest.mark.parametrize(
    ("kept", "parts"),
    [
        (["re:.*self_attn.*", "lm_head"], ("q", "k", "v", "o")), (["model.layers.*.self_attn"], ("q", "k", "v", "o")),
        (["re:.*mlp\\.(gate|up|gate_up|down)_proj.*"], ("gate", "up", "down")),
    ],
)  # fmt: skip
def test_what_a_checkpoint_keeps_stays_in_sixteen_bits(kept, parts):
    said = {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": kept}
    shape, found = stored(QWEN, said)
    own = sum(t.elements for t in shape.tensors if t.part in parts)
    assert found.bytes - bytes_of("awq-int4-g128") == pytest.approx(own * (16 - 4.15625) / 8, rel=1e-6)


def test_a_layer_that_is_kept_is_no_other_whose_number_begins_so():
    said = {"quant_method": "fp8", "ignored_layers": ["model.layers.1"]}
    of_a_layer = sum(t.elements for t in SHAPE.tensors if t.layer == 1 and t.role == "linear")
    assert stored(QWEN, said)[1].bytes - bytes_of("fp8") == pytest.approx(of_a_layer, rel=1e-3)


CT = {"quant_method": "fp8"}


@pytest.mark.parametrize("outer", ["language_model.model.layers.", "model.language_model.layers."])
def test_names_of_multimodal_checkpoints_are_those_of_the_language_model(outer):
    kept = [f"{outer}{layer}.self_attn.{x}_proj" for layer in range(28) for x in "qkvo"]
    found = stored(QWEN, CT | {"ignore": kept})[1].bytes
    assert found == stored(QWEN, CT | {"ignore": ["re:.*self_attn.*"]})[1].bytes > bytes_of("fp8")


def test_a_pattern_in_a_multimodal_expression_too():
    kept = ["re:model\\.language_model\\.layers\\.0\\.self_attn\\..*"]
    assert stored(QWEN, CT | {"ignore": kept})[1].bytes > bytes_of("fp8")


def test_a_pattern_that_keeps_nothing_is_named():
    patterns = (
        "thinker.model.layers.0.mlp",
        "model.layers.0.mlp",
        "lm_head",
        "visual.blocks.0.attn.qkv",
        "model.layers.0.mlp.gate",
    )
    assert unmatched(SHAPE, patterns) == ["thinker.model.layers.0.mlp"]


def test_a_name_alone_is_a_list_of_one():
    assert stored_layout({"quantization_config": CT | {"ignore": "lm_head"}}).kept == ("lm_head",)


def test_what_is_no_list_of_names_is_refused():
    with pytest.raises(ModelError, match="ignore is 5, no list"):
        stored_layout({"quantization_config": CT | {"ignore": 5}})


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ModelError, match=r"keeps 're:\(\('"):
        stored_layout({"quantization_config": {"quant_method": "fp8", "ignore": ["re:(("]}})
