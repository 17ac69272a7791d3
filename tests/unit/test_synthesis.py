"""Checkpoints with random weights: refused where quality is asked, whole where speed is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmopt import demo
from llmopt.core.artifacts import open_model
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.synthetic import MARK, is_synthetic, shapes
from llmopt.core.weights import require_finite
from llmopt.pipeline import proving, synthesis
from llmopt.report.progress import Reporter


@pytest.fixture
def config(tmp_path: Path) -> Path:
    shape = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "vocab_size": 4096,
    }
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(shape))
    return file


@pytest.mark.engine
def test_a_checkpoint_of_any_config(config: Path, tmp_path: Path) -> None:
    made = synthesis.synthesize(str(config), tmp_path / "m", Reporter(quiet=True), layers=2)
    model = open_model(tmp_path / "m")
    # Embedding, and for each layer q, k, v, o, gate, up, down and two norms; one norm at the end. The head is tied.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert model.parameters == made["parameters"] == 4096 * 64 + 2 * layer + 64
    assert is_synthetic(tmp_path / "m")
    assert not list(tmp_path.glob("**/*.log"))


@pytest.mark.engine
def test_its_quality_is_refused_by_name(config: Path, tmp_path: Path) -> None:
    synthesis.synthesize(str(config), tmp_path / "m", Reporter(quiet=True))
    with pytest.raises(UsageError, match="random weights") as caught:
        proving.require_meaning(tmp_path / "m")
    assert "--no-proof" in (caught.value.hint or "")


@pytest.mark.engine
def test_a_config_of_no_language_model_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelError, match="no causal language model"):
        synthesis.synthesize(str(tmp_path / "config.json"), tmp_path / "m", Reporter(quiet=True))
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "m.log"}  # the log that the error names


def test_the_bundled_model_is_not_synthetic() -> None:
    assert not is_synthetic(demo.MODEL)


def test_a_mark_that_cannot_be_read_is_no_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    assert not is_synthetic(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({MARK: True}))
    assert is_synthetic(tmp_path)


@pytest.mark.parametrize("name", list(shapes()))
def test_every_shape_divides_into_heads(name: str) -> None:
    shape = synthesis.config_of(name)
    assert shape["hidden_size"] % shape["num_attention_heads"] == 0
    assert shape["num_attention_heads"] % shape["num_key_value_heads"] == 0


def test_an_unknown_shape_names_those_that_are_there() -> None:
    with pytest.raises(UsageError, match=r"no config at qwen2\.5-7") as caught:
        synthesis.config_of("qwen2.5-7")
    assert "qwen2.5-7b" in (caught.value.hint or "")


def test_more_layers_than_there_are() -> None:
    with pytest.raises(UsageError, match="has 28 layers"):
        synthesis.with_layers(synthesis.config_of("qwen2.5-7b"), 29)


def test_a_tokenizer_larger_than_the_vocabulary() -> None:
    with pytest.raises(ModelError, match="4096 ids, the config's vocabulary 100"):
        synthesis.require_room_in_vocabulary({"vocab_size": 100}, demo.MODEL)


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there already"):
        synthesis.synthesize("qwen2.5-7b", tmp_path, Reporter(quiet=True))


MIXED = {
    "model_type": "deepseek_v3", "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 4096, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip


@pytest.mark.engine
def test_the_same_seed_gives_the_same_bytes_of_a_mixture_of_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXED))
    for name in ("a", "b"):
        synthesis.synthesize(str(tmp_path / "config.json"), tmp_path / name, Reporter(quiet=True))
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second
    require_finite([tmp_path / "a" / "model.safetensors"], lambda *_: None)


@pytest.mark.engine
def test_the_config_of_a_quantized_model_makes_a_plain_one(config: Path, tmp_path: Path) -> None:
    shape = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(shape))
    synthesis.synthesize(str(config), tmp_path / "m", Reporter(quiet=True), layers=1)
    assert open_model(tmp_path / "m").parameters


def test_the_tokenizer_beside_the_config_is_taken_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert synthesis.tokenizer_folder("config.json", None) == Path()
    assert synthesis.tokenizer_folder(".", None) == Path()
    assert synthesis.tokenizer_folder("qwen2.5-7b", None) == demo.MODEL


@pytest.mark.parametrize(
    "config", [{"n_layer": 12}, {"text_config": {"num_hidden_layers": 12, "layer_types": ["a"] * 12}}]
)
def test_layers_are_found_under_their_other_names(config: dict[str, object]) -> None:
    cut = synthesis.with_layers(config, 3)
    assert cut in ({"n_layer": 3}, {"text_config": {"num_hidden_layers": 3, "layer_types": ["a"] * 3}})


def test_a_config_without_layers() -> None:
    with pytest.raises(UsageError, match="does not say how many layers"):
        synthesis.with_layers({}, 1)


def test_a_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="no tokenizer at"):
        synthesis.require_room_in_vocabulary({"vocab_size": 100}, tmp_path)


def test_files_of_a_few_bytes(config: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shard-size must be 1 MiB"):
        synthesis.synthesize(str(config), tmp_path / "m", Reporter(quiet=True), shard_bytes=10)
