"""What a GGUF's header tells of its model, and headers that tell nonsense."""

import struct

import pytest

from llmopt.core.errors import ModelError
from llmopt.core.formats import layout
from llmopt.estimate.gguf import open_gguf
from llmopt.estimate.load import Load
from llmopt.estimate.memory import Case, cache_bytes
from unit import shards

TENSORS = {"token_embd.weight": ("Q8_0", (256, 64)), "blk.0.attn_output.weight": ("Q8_0", (4096, 256))}
TOKENS = 32768
OF_A_LAYER = TOKENS * 2 * 8 * 64 * 2  # 8 heads of keys, 64 wide, in 16 bits


def header(architecture, layers=24, **more):
    own = {"block_count": layers, "embedding_length": 256, "attention.head_count": 64, "attention.head_count_kv": 8,
           "attention.key_length": 64}  # fmt: skip
    return {"general.architecture": architecture} | {f"{architecture}.{k}": v for k, v in (own | more).items()}


def cache_of(path, said, tensors=TENSORS):
    source = open_gguf(shards.gguf(path / "model.gguf", tensors, said=said))
    asked = Case(
        shape=source.shape, layout=layout("gguf-q8_0"), weights=source.weights, backend="llamacpp",
        load=Load(prompt=TOKENS),
    )  # fmt: skip
    return cache_bytes(asked, TOKENS, 1, 256)


def test_windows_of_every_second_layer(tmp_path):
    found = cache_of(tmp_path, header("gpt-oss", **{"attention.sliding_window": 128}))
    assert found == pytest.approx(12 * OF_A_LAYER * (1 + 768 / TOKENS))


def test_a_pattern_that_the_file_lists(tmp_path):
    said = {"attention.sliding_window": 512, "attention.sliding_window_pattern": [1, 1, 1, 0] * 6}
    assert cache_of(tmp_path, header("gemma3n", **said)) == pytest.approx(OF_A_LAYER * (6 + 18 * 1024 / TOKENS))


def test_llama_4_is_chunked_though_its_files_do_not_say_so(tmp_path):
    assert cache_of(tmp_path, header("llama4")) == pytest.approx(OF_A_LAYER * (6 + 18 * 8704 / TOKENS))


def test_a_window_that_llama_cpp_does_not_keep(tmp_path):
    assert cache_of(tmp_path, header("llama", **{"attention.sliding_window": 4096})) == 24 * OF_A_LAYER


def test_every_fourth_layer_attends(tmp_path):
    assert cache_of(tmp_path, header("qwen3next", 48)) == 12 * OF_A_LAYER


@pytest.mark.parametrize("architecture", ["nemotron_h", "jamba"])
def test_layers_without_heads_of_keys_keep_none(tmp_path, architecture):
    heads = [8 if layer in (4, 12, 20, 40) else 0 for layer in range(52)]
    assert cache_of(tmp_path, header(architecture, 52, **{"attention.head_count_kv": heads})) == 4 * OF_A_LAYER


def test_an_architecture_that_is_not_known_is_doubted(tmp_path):
    source = open_gguf(shards.gguf(tmp_path / "model.gguf", TENSORS, said=header("qwen9")))
    assert "'qwen9' is not known" in source.shape.notes[0]


def test_all_parts_of_a_model_are_counted(tmp_path):
    first = shards.gguf(tmp_path / "m-00001-of-00002.gguf", TENSORS, said=header("llama") | {"split.count": 2})
    second = shards.gguf(tmp_path / "m-00002-of-00002.gguf", {"blk.1.attn_output.weight": ("Q8_0", (4096, 256))})
    of_each = [open_gguf(file).weights for file in (first, second)]
    assert of_each[0].bytes == of_each[1].bytes == 34 * (256 * 64 + 2 * 4096 * 256) // 32
    assert of_each[0].file_bytes == first.stat().st_size + second.stat().st_size


def test_a_missing_part_is_named(tmp_path):
    file = shards.gguf(tmp_path / "m-00001-of-00002.gguf", TENSORS, said=header("llama") | {"split.count": 2})
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf is missing"):
        open_gguf(file)
    with pytest.raises(ModelError, match="one of 2 parts"):
        open_gguf(file.rename(tmp_path / "renamed.gguf"))


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "m-00002-of-00001.gguf"])
def test_a_part_that_cannot_be_is_refused(tmp_path, name):
    with pytest.raises(ModelError, match="which cannot be"):
        open_gguf(shards.gguf(tmp_path / name, TENSORS, said=header("llama")))


def test_latent_attention_of_an_older_file_keeps_all_heads(tmp_path):
    """DeepSeek-V2-Lite before key_length_mla: keys 192 wide and values 128 of each of its heads."""
    said = {"attention.head_count": 16, "attention.head_count_kv": 16, "attention.kv_lora_rank": 512,
            "attention.key_length": 192, "attention.value_length": 128, "rope.dimension_count": 64}  # fmt: skip
    assert cache_of(tmp_path, header("deepseek2", 27, **said)) == TOKENS * 27 * 16 * (192 + 128) * 2


NESTED = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000 + struct.pack("<IQ", 4, 0)
WORDS = struct.pack("<IIQ", 9, 8, 2) + 2 * (struct.pack("<Q", 1) + b"a")


@pytest.mark.parametrize(
    "said",
    [
        {"general.alignment": 0}, {"general.alignment": [32]}, {"llama.context_length": float("inf")},
        {"llama.block_count": float("nan")}, {"llama.block_count": 1 << 31}, {"llama.block_count": -5},
        {"llama.attention.head_count_kv": -8}, {"llama.attention.head_count": 1 << 31}, {"general.architecture": [1]},
        {"odd": NESTED}, {"llama.attention.head_count_kv": WORDS}, {"llama.attention.head_count_kv": 48},
        {"llama.attention.head_count_kv": [8, 48]},
    ],
)  # fmt: skip
def test_a_header_that_tells_nonsense_is_refused(tmp_path, said):
    with pytest.raises(ModelError):
        open_gguf(shards.gguf(tmp_path / "model.gguf", TENSORS, said=header("llama") | said))


@pytest.mark.parametrize("name", ["blk.x.weight", "blk.99999999.attn_q.weight"])
def test_a_tensor_of_no_layer_is_refused(tmp_path, name):
    file = shards.gguf(tmp_path / "model.gguf", {name: ("Q8_0", (256, 64))}, said=header("llama"))
    with pytest.raises(ModelError, match="which no model has"):
        open_gguf(file)


def test_a_tensor_type_that_is_not_known_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setitem(shards.GGML, "NEW", (99, 32, 17, None))
    file = shards.gguf(tmp_path / "model.gguf", TENSORS | {"x": ("NEW", (256, 64))}, said=header("llama"))
    with pytest.raises(ModelError, match="tensors of type 99, not known here"):
        open_gguf(file)


def test_a_vocabulary_alone_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="no weights"):
        open_gguf(shards.gguf(tmp_path / "vocab.gguf", {}, said=header("llama")))
