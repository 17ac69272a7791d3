"""The command as people and scripts type it."""

import json
import resource
import subprocess
import sys

import pytest

from llmopt.core.errors import ModelError
from llmopt.estimate.source import tensor_of
from unit import shards
from unit.estimate.make import GIB, QWEN, document, estimate, folder_of

WRITTEN = ("--backend", "hf", "--input-tokens", 6144, "--output-tokens", 2048, "--batch", 1, "--gpus", 1)


def test_the_commands_of_the_issue_work_as_written(folder):
    found = document(folder, "--quant", "gptq-int4-g128", *WRITTEN)["memory"]
    assert found["total_bytes"] / GIB == pytest.approx(6.52, rel=0.02)
    assert found["total_bytes"] == found["weights_bytes"] + found["kv_cache_bytes"] + found["activation_bytes"]
    found = document(folder, "--quant", "gguf-q4_k_m", "--backend", "llamacpp")["memory"]
    assert found["weights_bytes"] == pytest.approx(4.68e9, rel=0.01)


def test_one_document_and_nothing_else(folder):
    found = estimate(folder, "--json")
    json.loads(found.stdout)
    assert found.stderr == ""


def test_what_is_not_known_is_null(folder):
    found = document(folder)
    assert found["memory"]["max_context"] is None
    assert found["fits"] is None
    assert found["evidence"] == "estimated"


def test_a_table_for_people_says_whether_it_fits(folder):
    found = estimate(folder, "--quant", "gptq-int4", "--gpu", "rtx4090")
    assert found.exit_code == 0
    assert "fits GeForce RTX 4090" in found.stdout


def test_what_does_not_fit_ends_with_3_and_what_would(folder):
    found = estimate(folder, "--gpu", "rtx-4060")
    assert found.exit_code == 3
    assert "does not fit" in found.stderr
    assert "hint: --quant" in found.stderr


def test_fits_lists_quantizations_and_contexts(folder):
    rows = {
        row["quantization"]: row for row in document(folder, "--fits", "--gpu", "rtx-4070", "--backend", "vllm")["rows"]
    }
    assert not rows["bf16"]["fits"]
    assert rows["gptq-int4-g128"]["max_context"] > 1000


def test_a_known_shape_and_the_bundled_model_need_no_folder():
    assert document("llama-3.1-8b")["model"]["parameters"] == 8_030_261_248
    found = document("builtin")
    assert found["assumptions"][0] == "weights: from the headers of the files"


TOLD = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 256, "llama.feed_forward_length": 512,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.context_length": 4096,
}  # fmt: skip
TENSORS = {
    "token_embd.weight": ("Q8_0", (256, 1000)), "blk.0.attn_k.weight": ("Q4_K", (256, 128)), "blk.0.attn_output.weight": ("Q4_K", (256, 256)),
    "blk.0.ffn_down.weight": ("Q4_K", (512, 256)), "output_norm.weight": ("F32", (256,)),
}  # fmt: skip


def test_a_gguf_file_is_read_exactly(tmp_path):
    found = document(shards.gguf(tmp_path / "model.gguf", TENSORS, said=TOLD), "--context", 256)
    blocks = (256 * 128 + 256 * 256 + 512 * 256) // 256
    assert found["memory"]["weights_bytes"] == 1000 * 256 // 32 * 34 + blocks * 144 + 256 * 4
    assert found["memory"]["kv_cache_bytes"] == 256 * 2 * 2 * 64 * 2
    assert found["backend"] == "llamacpp"


def test_a_folder_with_one_gguf_is_that(tmp_path):
    shards.gguf(folder_of(tmp_path / "artifact") / "model.gguf", TENSORS, said=TOLD)
    found = document(tmp_path / "artifact")
    assert found["backend"] == "llamacpp"
    assert found["model"]["name"] == "artifact"


def test_a_gguf_that_tells_nothing_of_its_model_is_refused(tmp_path):
    found = estimate(shards.gguf(tmp_path / "model.gguf", TENSORS))
    assert found.exit_code == 1
    assert "does not tell its layers" in found.stderr


def test_the_size_alone_gives_the_weights_alone():
    found = document("--parameters", "7e9", "--quant", "nf4")["memory"]
    assert found["weights_bytes"] == pytest.approx(7e9 * 4.5 / 8, rel=0.001)
    assert found["kv_cache_bytes"] is None


def test_devices_are_listed():
    rows = json.loads(estimate("--gpu", "list", "--json").stdout)
    assert len(rows) >= 40
    assert all(row["source"] and row["date"] and row["memory_bytes"] > GIB for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (("--gpu", "h1000"), "unknown GPU 'h1000'", "h100"),
        (("--gpu", "qqqqqqq"), "unknown GPU", "--gpu list"),
        (("--quant", "gptq-int5"), "unknown quantization", "gptq-int"),
        (("--backend", "vlm"), "unknown backend", "vllm"),
        (("--vram", "24"), "needs a unit", "GiB"),
        (("--fits",), "--fits needs a GPU", "--vram"),
        (("--context", "10", "--input-tokens", "10"), "say the same twice", "--context C"),
        (("--batch", "2", "--max-num-seqs", "3"), "contradict", "one of them"),
        (("--quant", "q4_k_m", "--backend", "vllm"), "does not load", "--backend llamacpp"),
        (("--backend", "llamacpp"), "GGUF alone", "gguf-q4_k_m"),
        (("--gpus", "3", "--tensor-parallel-size", "2"), "does not divide", "--gpus 2"),
        (("--kv-cache-dtype", "fp3"), "fp3", "another"),
        (("--attn-implementation", "sdp"), "unknown --attn-implementation", "sdpa"),
        (("--format", "gguf"), "--format is of a quantization", "--quant"),
        (("--price-per-hour", "2", "--prices", "nowhere.toml"), "--prices says nothing", "--prices"),
        (("--fits", "--gpu", "h100", "--quant", "nf4"), "--quant says nothing", "--quant"),
        (("--fits", "--gpu", "h100", "--rate", "2"), "--rate says nothing", "--rate"),
        (("--parameters", "7e9", "--gpu", "h1000"), "--gpu says nothing", "--gpu"),
        (("--fits", "--gpu", "h100", "--price-per-hour", "2"), "--price-per-hour says nothing", "--price-per-hour"),
        (("--fits", "--gpu", "h100", "--num-speculative-tokens", "4"), "says nothing", "--num-speculative-tokens"),
        (("--fits", "--gpu", "h100", "--flops", "1e12"), "says nothing", "--flops"),
        (("--parameters", "7e9", "--tensor-parallel-size", "2"), "says nothing", "--tensor-parallel-size"),
        (("--parameters", "7e9", "--kv-cache-dtype", "fp8"), "says nothing", "--kv-cache-dtype"),
        (("--parameters", "7e9", "--results", "x"), "says nothing", "--results"),
        (("--parameters", "7e9", "--fits"), "says nothing", "--fits"),
        (("--backend", "vllm", "--attn-implementation", "eager"), "vllm has no", "--attn-implementation"),
        (("--backend", "hf", "--max-num-batched-tokens", "512"), "hf has no", "--max-num-batched-tokens"),
        (("--backend", "hf", "--gpu-memory-utilization", "0.5"), "hf has no", "--gpu-memory-utilization"),
        (("--parameters", "1000"), "no model's size", "7e9"),
        (("--quant", "gptq-int4-g999999"), "unknown quantization", "gptq-int4"),
        (("--num-speculative-tokens", "4", "--draft-parameters", "inf"), "no model's size", "0.5e9"),
    ],
)
def test_nonsense_is_one_line_with_a_hint(folder, arguments, words, hint):
    found = estimate(folder, *arguments)
    assert found.exit_code == 2
    error, said = found.stderr.strip().splitlines()
    assert words in error
    assert said.startswith("hint: ")
    assert hint.split()[-1] in said or hint in said


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"model_type": 7}', '{"model_type": "qwen2"}'])
def test_a_config_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    found = estimate(tmp_path)
    assert found.exit_code == 1
    assert found.stderr.startswith("error: ")
    assert "defect of llmopt" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 2


def test_no_heavy_library_is_imported(folder):
    code = (
        "import sys; sys.argv = ['llmopt', 'estimate', sys.argv[1], '--json']\n"
        "from llmopt.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'pandas', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"


def processor_s(*words):
    """Of one command, the best of five."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "llmopt", *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def test_an_estimate_takes_little_more_than_to_start(folder, tmp_path, monkeypatch):
    """A machine that is busy, or that keeps no bytecode, is slower at both."""
    monkeypatch.chdir(tmp_path)
    assert processor_s("estimate", str(folder), "--gpu", "h100", "--json") < 2.5 * processor_s("--version")


def test_no_other_command_is_imported(folder):
    code = (
        "import sys; sys.argv = ['llmopt', 'estimate', sys.argv[1], '--json']\n"
        "from llmopt.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print({'llmopt.cli.serving', 'llmopt.serve'} & set(sys.modules) or 'none', file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "none"


def test_transformers_keeps_its_own_fp8_in_eight_bits(folder):
    own = document(folder, "--quant", "fp8", "--backend", "hf")["memory"]["weights_bytes"]
    assert own == pytest.approx(2 * 2 * 152064 * 3584 + 6_525_288_448, rel=0.001)
    packed = document(folder, "--quant", "w8a8-int8", "--backend", "hf")["memory"]["weights_bytes"]
    assert packed == 2 * 7_615_616_512


def test_an_unknown_architecture_is_sized_by_its_weights_and_said_so(tmp_path):
    folder = folder_of(tmp_path / "new", {**QWEN, "model_type": "brand_new", "num_hidden_layers": 2})
    names = {
        "model.embed_tokens.weight": shards.bf16(100, 64),
        "model.layers.0.mlp.down_proj.weight": shards.bf16(64, 128),
    }
    shards.shard(folder / "model.safetensors", names)
    found = document(folder)
    assert found["memory"]["weights_bytes"] == 2 * (100 * 64 + 64 * 128)
    assert "'brand_new' is not known" in found["doubts"][0]


def test_the_index_alone_tells_the_size_of_the_weights(folder):
    index = {"metadata": {"total_size": 15_231_233_024}, "weight_map": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert document(folder)["memory"]["weights_bytes"] == 15_231_233_024


def test_the_files_know_their_type_better_than_the_config(tmp_path):
    config = {**QWEN, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64,
              "vocab_size": 20000, "tie_word_embeddings": True, "torch_dtype": "float32"}  # fmt: skip
    folder = folder_of(tmp_path / "tiny", config)
    shards.shard(folder / "model.safetensors", {"model.embed_tokens.weight": shards.bf16(20000, 64)})
    assert document(folder)["quantization"]["name"] == "bf16"


def test_a_download_that_is_not_finished_is_sized_by_the_config(folder):
    shards.shard(folder / "model-00001-of-00004.safetensors", {"model.norm.weight": shards.bf16(3584)})
    found = document(folder)
    assert found["memory"]["weights_bytes"] == 2 * 7_615_616_512
    assert "lacks a part of its weights" in found["doubts"][0]


def test_a_repository_that_was_fetched_before_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    folder_of(snapshot)
    assert document("some/model")["model"]["name"] == "some/model"
    assert estimate("other/model").exit_code == 2


def test_a_quantized_checkpoint_is_taken_as_it_is(tmp_path):
    config = QWEN | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}}
    assert document(folder_of(tmp_path / "q", config))["quantization"]["name"] == "gptq-int4-g128"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq-int4-g64"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "nf4-dq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32}}}}, "w4a16-g32"),
    ],
)  # fmt: skip
def test_quantization_configs_are_read(tmp_path, said, name):
    found = document(folder_of(tmp_path / "q", QWEN | {"quantization_config": said}))
    assert found["quantization"]["name"] == name


def test_a_quantization_config_that_is_not_known_is_named(tmp_path):
    found = estimate(folder_of(tmp_path / "q", QWEN | {"quantization_config": {"quant_method": "new", "bits": 3}}))
    assert found.exit_code == 1
    assert "'new' with 3 bits" in found.stderr


def test_where_nothing_fits_the_status_says_so(folder):
    found = estimate(folder, "--fits", "--vram", "1GiB", "--backend", "vllm")
    assert found.exit_code == 3
    assert "nothing of" in found.stderr


def test_the_list_of_devices_is_no_wider_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, estimate("--gpu", "list").stdout.splitlines())) <= 60


def test_a_quantization_that_is_not_known_stands_behind_the_one_that_is_named(tmp_path):
    folder = folder_of(tmp_path / "odd", QWEN | {"quantization_config": {"quant_method": "new"}})
    assert "'new'" in estimate(folder).stderr
    assert document(folder, "--quant", "fp8", "--backend", "vllm")["quantization"]["name"] == "fp8"


def test_a_quantization_config_that_is_no_table_is_refused(tmp_path):
    found = estimate(folder_of(tmp_path / "odd", QWEN | {"quantization_config": "fp8"}))
    assert found.exit_code == 1
    assert "is str, no table" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "trtllm", "--gpu", "m4-max"), "does not run on Apple"),
        (("--backend", "trtllm", "--gpu", "mi300x"), "NVIDIA's GPUs alone"),
        (("--backend", "vllm", "--gpu", "v100", "--quant", "bf16"), "no bfloat16"),
        (("--backend", "vllm", "--quant", "dynamic-int8"), "dynamic-int8"),
        (("--backend", "vllm", "--gpus", 3), "cannot share 28 heads"),
        (("--backend", "vllm", "--kv-cache-dtype", "q8_0"), "llama.cpp's"),
        (("--context", 100_000), "positions for 32,768 tokens"),
        (("--quant", "gptq-int4-g128", "--backend", "vllm"), "--format compressed-tensors"),
    ],
)
def test_what_cannot_be_is_doubted(folder, arguments, words):
    assert any(words in doubt for doubt in document(folder, *arguments)["doubts"])


def test_a_missing_file_of_prices_is_said_where_no_speed_is_known(folder):
    found = estimate(folder, "--vram", "24GiB", "--prices", "nowhere.toml")
    assert found.exit_code == 2
    assert "cannot be read as prices" in found.stderr


def test_a_tensor_of_a_layer_that_no_model_has_is_refused():
    with pytest.raises(ModelError, match="which no model has"):
        tensor_of("model.layers.99999999.mlp.up_proj.weight", (8, 8))
