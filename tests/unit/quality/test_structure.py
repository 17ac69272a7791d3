import json
import math

import pytest

from llmopt.core.domain import Quantization
from llmopt.core.errors import ModelError
from llmopt.core.gguf_file import read_gguf
from llmopt.quality.declared import Declared, foreign_artifact
from llmopt.quality.structure import check_structure, quantizes_activations
from unit import shards
from unit.shards import base, bf16, f16, gguf, gptq, i32

GPTQ = Quantization(name="gptq-int4-g128", method="gptq", format="gptq", bits=4, group_size=128)
Q4_K_M = Quantization(name="gguf-q4_k_m", method="gguf", format="gguf", bits=4)
LAYER = "model.layers.1.mlp.up_proj"


def refused(folder, quantization, original, match):
    with pytest.raises(ModelError, match=match) as caught:
        check_structure(folder, quantization, original)
    assert caught.value.hint


def edit(folder, **said):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= said
    (folder / "config.json").write_text(json.dumps(config))


def blocks(count=2, kind="Q4_K", row=256):
    layers = {f"blk.{n}.ffn_up.weight": (kind, (row, 256)) for n in range(count)}
    return {"token_embd.weight": ("F32", (256, 8)), "output_norm.weight": ("F32", (256,)), **layers}


@pytest.fixture
def original(tmp_path):
    return base(tmp_path / "base")


def test_what_a_good_checkpoint_holds(tmp_path, original):
    found = check_structure(gptq(tmp_path / "out"), GPTQ, original)
    weights = 2 * 256 * 256 + 8 * 256 + 256
    stored = 2 * (32 * 256 * 4 + 2 * 32 * 4 + 2 * 256 * 2) + (8 * 256 + 256) * 2
    assert found == {
        "bits_per_weight": round(stored * 8 / weights, 3),
        "quantized_layers": 2,
        "unquantized_linears": [],
        "tensor_types": {"BF16": 2, "F16": 2, "I32": 4},
        "fallback_tensors": [],
    }


def test_a_layer_left_as_it_was_is_named(tmp_path, original):
    changes = {f"{LAYER}.{part}": None for part in ("qweight", "qzeros", "scales")} | {
        f"{LAYER}.weight": bf16(256, 256)
    }
    assert check_structure(gptq(tmp_path / "out", **changes), GPTQ, original)["unquantized_linears"] == [LAYER]


def test_weights_that_were_never_compressed(tmp_path, original):
    out = gptq(tmp_path / "out")
    (out / "model.safetensors").write_bytes((original / "model.safetensors").read_bytes())
    refused(out, GPTQ, original, "no layer in it is quantized: its weights are BF16")


def test_no_quantization_config(tmp_path, original):
    shards.config(gptq(tmp_path / "out"), vocab_size=8)
    refused(tmp_path / "out", GPTQ, original, "has no quantization_config")


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"bits": 8}, "bits 8"),
        ({"group_size": 32}, "group_size 32"),
        ({"group_size": -1}, "group_size None"),
        ({"quant_method": "awq"}, "format awq"),
        ({"quant_method": "hqq"}, "method 'hqq'"),
        ({"bits": None}, "damaged"),
    ],
)
def test_another_quantization_config_than_asked(tmp_path, original, said, match):
    edit(gptq(tmp_path / "out"), **said)
    refused(tmp_path / "out", GPTQ, original, match)


def test_wider_weights_than_it_is_called(tmp_path, original):
    refused(gptq(tmp_path / "out", **{f"{LAYER}.qweight": i32(64, 256)}), GPTQ, original, "8.0 bits per weight")


@pytest.mark.parametrize(
    ("scales", "match"),
    [(f16(2, 256, value=math.nan), "NaN or infinite"), (f16(2, 256, value=0), "zero"), (None, "no scales")],
)
def test_broken_scales(tmp_path, original, scales, match):
    refused(gptq(tmp_path / "out", **{f"{LAYER}.scales": scales}), GPTQ, original, match)


def test_a_linear_layer_that_is_missing(tmp_path, original):
    changes = {f"{LAYER}.{part}": None for part in ("qweight", "qzeros", "scales")}
    refused(gptq(tmp_path / "out", **changes), GPTQ, original, f"lacks 1 of the base's 2 linear layers: {LAYER}")


def test_an_embedding_of_another_model(tmp_path, original):
    out = gptq(tmp_path / "out", **{"model.embed_tokens.weight": bf16(9, 256)})
    refused(out, GPTQ, original, "in the base")


def test_weights_that_only_exist_in_memory_have_no_files_to_check(tmp_path, original):
    memory = Quantization(name="dynamic-int8", method="torch", format="in-memory", bits=8)
    assert check_structure(tmp_path / "nothing", memory, original)["quantized_layers"] is None


def test_a_good_gguf(tmp_path, original):
    found = check_structure(gguf(tmp_path / "model.gguf", blocks()), Q4_K_M, original)
    assert (found["quantized_layers"], found["fallback_tensors"]) == (2, [])
    assert found["tensor_types"] == {"F32": 2, "Q4_K": 2}


def test_tensors_that_fell_back_are_listed(tmp_path, original):
    file = gguf(tmp_path / "model.gguf", blocks() | {"blk.0.ffn_down.weight": ("Q5_0", (288, 256))})
    assert check_structure(file, Q4_K_M, original)["fallback_tensors"] == ["blk.0.ffn_down.weight: Q5_0"]


def test_a_gguf_by_another_name(tmp_path, original):
    file = gguf(tmp_path / "model.gguf", blocks(), file_type=7)
    refused(file, Q4_K_M, original, "its header says gguf-q8_0")


def test_a_gguf_whose_header_lies(tmp_path, original):
    refused(gguf(tmp_path / "model.gguf", blocks(kind="Q8_0")), Q4_K_M, original, "most of its weights are Q8_0")


def test_a_gguf_that_is_not_quantized(tmp_path, original):
    refused(gguf(tmp_path / "model.gguf", blocks(kind="F32")), Q4_K_M, original, "no layer in it is quantized")


def test_a_gguf_that_lacks_a_block(tmp_path, original):
    refused(gguf(tmp_path / "model.gguf", blocks(1)), Q4_K_M, original, "lacks block 1")


@pytest.mark.parametrize(("scale", "match"), [(math.nan, "NaN or infinite scales"), (0.0, "nothing but zero scales")])
def test_broken_scales_of_a_gguf(tmp_path, original, scale, match):
    refused(gguf(tmp_path / "model.gguf", blocks(), scale=scale), Q4_K_M, original, match)


@pytest.mark.parametrize("kept", [0, 3, 30, 100, -1])
def test_a_cut_gguf(tmp_path, kept):
    file = gguf(tmp_path / "model.gguf", blocks())
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        read_gguf(file)


def test_a_checkpoint_that_llmopt_did_not_make_is_described_from_its_own_words(tmp_path, original):
    found = foreign_artifact(gptq(tmp_path / "out"), original)
    assert found.quantization == GPTQ
    assert found.base == str(original)


def test_a_gguf_that_llmopt_did_not_make(tmp_path, original):
    found = foreign_artifact(gguf(tmp_path / "some.gguf", blocks()), original)
    assert (found.quantization.name, found.quantization.format) == ("gguf-q4_k_m", "gguf")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("activations", [False, True])
def test_a_name_taken_from_a_config_says_what_that_config_says(bits, floating, activations):
    said = Declared(format="compressed-tensors", bits=bits, floating=floating, activations=activations)
    assert quantizes_activations(said.name) is activations
    assert ("fp8" in said.name or "fp4" in said.name) is floating
