"""Engines that do not run here: what their descriptions make of our options, and of their logs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from llmopt import serve
from llmopt.core.domain import Artifact, Quantization, ServeOptions
from llmopt.core.environments import Environment
from llmopt.core.errors import ServerError, UsageError
from llmopt.pipeline.hosting import shell_line
from llmopt.serve import LaunchContext
from llmopt.serve.container import in_container
from llmopt.serve.options import require_known
from llmopt.serve.process import require_device

GIB = 1 << 30
LOGS = Path(__file__).parents[2] / "logs" / "described"
MODEL = Artifact(
    path="/models/seven", quantization=Quantization(name="bf16", method="none", format="plain", bits=16), base="/models/seven",
    base_fingerprint="f", size_bytes=1, bits_per_weight=16, key="k",
)  # fmt: skip
HERE = Environment(python=Path("/opt/venv/bin/python"), prefix=Path("/opt/venv"), origin="user")


def command(name, *, container=False, **options):
    context = LaunchContext(
        artifact=MODEL,
        options=ServeOptions(backend=name, **options),
        environment=None if container else HERE,
        host="127.0.0.1",
        port=8123,
        folder="/scratch",
    )
    return in_container(serve.backend(name), context) if container else serve.backend(name).command(context)


def after(argv, flag):
    return argv[argv.index(flag) + 1]


def settings(told):
    """The one file of a command."""
    [text] = told.files.values()
    return yaml.safe_load(text)


# --- options ---------------------------------------------------------------------------------------------------------


def test_sglang_turns_what_is_switched_off_into_its_own_words():
    argv = command("sglang", enable_prefix_caching=False, enable_chunked_prefill=False).argv
    assert "--disable-radix-cache" in argv
    assert after(argv, "--chunked-prefill-size") == "-1"


def test_sglang_gets_the_numbers_of_a_draft_together():
    argv = command("sglang", speculative_model="/models/draft", num_speculative_tokens=4).argv
    assert after(argv, "--speculative-algorithm") == "STANDALONE"
    assert after(argv, "--speculative-num-steps") == "4"
    assert after(argv, "--speculative-num-draft-tokens") == "5"


@pytest.mark.parametrize("name", ["sglang", "trtllm", "tgi", "rayserve", "triton"])
def test_guesses_that_nobody_makes_are_refused(name):
    with pytest.raises(UsageError, match="--num-speculative-tokens without a draft"):
        command(name, num_speculative_tokens=3)


def test_tensorrt_llm_gets_its_cache_in_its_file_and_the_rest_as_words():
    told = command("trtllm", enable_prefix_caching=False, kv_cache_dtype="fp8", max_model_len=512, enforce_eager=True)
    assert settings(told)["kv_cache_config"] == {"enable_block_reuse": False, "dtype": "fp8"}
    assert settings(told)["cuda_graph_config"] is None
    assert after(told.argv, "--max_seq_len") == "512"
    assert after(told.argv, "--extra_llm_api_options") in told.files


def test_tgi_leaves_room_for_an_answer_and_takes_no_draft_model():
    argv = command("tgi", max_model_len=512).argv
    assert (after(argv, "--max-total-tokens"), after(argv, "--max-input-tokens")) == ("512", "511")
    with pytest.raises(UsageError, match="tgi takes no draft model"):
        command("tgi", speculative_model="/models/draft")


def test_tgi_guesses_where_only_the_way_is_named():
    assert after(command("tgi", speculative_model="ngram").argv, "--speculate") == "3"
    assert after(command("tgi", speculative_model="ngram", num_speculative_tokens=5).argv, "--speculate") == "5"


@pytest.mark.parametrize("option", [{"speculative_model": "ngram"}, {"attn_implementation": "paged"}])
def test_tgi_takes_no_step_shorter_than_a_prompt_that_it_does_not_cut(option):
    with pytest.raises(UsageError, match="--max-num-batched-tokens 256"):
        command("tgi", max_num_batched_tokens=256, max_model_len=512, **option)
    command("tgi", max_num_batched_tokens=511, max_model_len=512, **option)
    command("tgi", max_num_batched_tokens=256, max_model_len=512)


def test_sglang_bounds_a_step_by_the_size_of_a_piece():
    assert after(command("sglang", max_num_batched_tokens=2048).argv, "--chunked-prefill-size") == "2048"
    with pytest.raises(UsageError, match="exclude each other"):
        command("sglang", max_num_batched_tokens=2048, enable_chunked_prefill=False)


@pytest.mark.parametrize(("kind", "policy"), [("int8", "8"), ("auto", "0"), ("fp8_e5m2", "17")])
def test_lmdeploy_has_a_number_for_each_kind_of_cache(kind, policy):
    assert after(command("lmdeploy", kv_cache_dtype=kind).argv, "--quant-policy") == policy


def test_lmdeploy_refuses_a_kind_of_cache_that_it_has_not():
    with pytest.raises(UsageError, match="lmdeploy has no KV cache of q8_0"):
        command("lmdeploy", kv_cache_dtype="q8_0")


@pytest.mark.parametrize(
    ("option", "backend"),
    [({"enforce_eager": True}, "pytorch"), ({"kv_cache_dtype": "fp8"}, "pytorch"), ({"kv_cache_dtype": "int8"}, None)],
)
def test_lmdeploy_takes_the_engine_that_has_the_option(option, backend):
    argv = command("lmdeploy", **option).argv
    assert (after(argv, "--backend") if "--backend" in argv else None) == backend


@pytest.mark.parametrize("name", ["rayserve", "triton"])
def test_vllm_inside_gets_its_arguments_under_its_own_names(name):
    told = command(name, speculative_model="ngram", limit_mm_per_prompt="image=2", enable_prefix_caching=True)
    if name == "rayserve":
        arguments = settings(told)["applications"][0]["args"]["llm_configs"][0]["engine_kwargs"]
    else:
        arguments = json.loads(told.files["/scratch/models/seven/1/model.json"])
    assert arguments["speculative_config"]["method"] == "ngram"
    assert arguments["limit_mm_per_prompt"] == {"image": 2}
    assert arguments["enable_prefix_caching"] is True


@pytest.mark.parametrize("name", ["sglang", "trtllm", "tgi", "lmdeploy", "rayserve", "triton"])
def test_an_option_that_it_lacks_is_refused_by_name(name):
    with pytest.raises(UsageError, match=f"{name} has no --gpu-layers") as caught:
        require_known(serve.backend(name), ServeOptions(backend=name, gpu_layers=3))
    assert "llamacpp" in caught.value.hint


# --- containers ------------------------------------------------------------------------------------------------------


def test_files_of_a_command_are_mounted_where_it_looks_for_them():
    told = command("trtllm", container=True)
    assert "/scratch:/llmopt:ro" in told.argv
    assert after(told.argv, "--extra_llm_api_options") == "/llmopt/trtllm.yaml"
    assert list(told.files) == ["/scratch/trtllm.yaml"]


def test_adapters_and_a_draft_are_mounted_where_they_lie(tmp_path):
    (tmp_path / "style").mkdir()
    argv = command(
        "sglang", container=True, lora_modules=(f"style={tmp_path}/style",), speculative_model=str(tmp_path)
    ).argv
    assert f"{tmp_path}/style:{tmp_path}/style:ro" in argv
    assert f"{tmp_path}:{tmp_path}:ro" in argv
    assert f"style={tmp_path}/style" in argv


@pytest.mark.parametrize("word", ["style", "style=", "=/adapters", "style=/no/such/adapter"])
@pytest.mark.parametrize("name", ["sglang", "llamacpp"])
def test_an_adapter_without_a_name_or_a_place_is_refused_and_mounts_nothing(name, word):
    with pytest.raises(UsageError, match=f"--lora-modules {word}"):
        command(name, container=True, lora_modules=(word,))


def test_the_launcher_of_tgi_is_its_images_entry_point():
    argv = command("tgi", container=True).argv
    assert argv[argv.index(serve.backend("tgi").container.image) + 1] == "--model-id"


def test_an_image_has_a_tag_that_stands_still():
    for name in serve.BACKENDS:
        if container := serve.backend(name).container:
            tag = container.image.rpartition(":")[2]
            assert any(character.isdigit() for character in tag), container.image


def test_the_container_is_removed_by_its_name():
    told = command("lmdeploy", container=True)
    assert told.cleanup == ("docker", "rm", "--force", after(told.argv, "--name"))


# --- what it says of itself ------------------------------------------------------------------------------------------


def facts(name):
    return serve.backend(name).facts((LOGS / f"{name}.log").read_text().splitlines())


def test_sglangs_ranks_are_added_up_and_their_tokens_are_not():
    found = facts("sglang")
    assert found.weights_bytes == round(14.66 * GIB)
    assert found.kv_cache_bytes == round(4 * 29.55 * GIB)
    assert (found.kv_capacity_tokens, found.max_concurrency) == (2212864, 2212864 / 32768)


def test_tensorrt_llms_last_word_on_its_cache_counts():
    found = facts("trtllm")
    assert found.kv_cache_bytes == round(52.5 * GIB)
    assert (found.kv_capacity_tokens, found.activation_bytes) == (983040, round(1.12 * GIB))


@pytest.mark.parametrize("label", ["", "[RANK {}] "])
def test_tensorrt_llms_ranks_are_added_up_and_their_tokens_are_not(label):
    once = (LOGS / "trtllm.log").read_text().splitlines()
    lines = [re.sub(r"\[(?:I|INFO)\] ", rf"\g<0>{label.format(rank)}", line) for line in once for rank in (0, 1)]
    both = serve.backend("trtllm").facts(lines)
    assert both.kv_cache_bytes == round(2 * 52.5 * GIB)
    assert both.weights_bytes == pytest.approx(2 * 14.31 * GIB, abs=2)
    assert both.activation_bytes == pytest.approx(2 * 1.12 * GIB, abs=2)
    assert both.kv_capacity_tokens == 983040


def test_tgi_tells_its_room_in_tokens():
    assert facts("tgi").kv_capacity_tokens == 801568


def test_vllm_inside_triton_says_what_vllm_says():
    assert facts("triton").kv_capacity_tokens == 994384


def test_a_log_without_a_word_of_memory_gives_no_number():
    for name in ("sglang", "trtllm", "tgi", "lmdeploy", "rayserve", "triton"):
        found = serve.backend(name).facts(["INFO: all is well"])
        assert (found.weights_bytes, found.kv_cache_bytes, found.kv_capacity_tokens) == (None, None, None)


# --- where it runs ---------------------------------------------------------------------------------------------------


def test_an_engine_for_gpus_is_refused_before_it_is_started_where_there_is_none(monkeypatch):
    monkeypatch.setattr("llmopt.serve.process.devices", lambda: ("cpu",))
    with pytest.raises(ServerError, match="trtllm needs an NVIDIA GPU") as caught:
        require_device(serve.backend("trtllm"))
    assert "--dry-run" in caught.value.hint


def test_one_that_also_runs_on_a_cpu_is_not(monkeypatch):
    monkeypatch.setattr("llmopt.serve.process.devices", lambda: ("cpu",))
    require_device(serve.backend("vllm"))


def test_but_its_image_is_for_a_gpu_alone(monkeypatch):
    monkeypatch.setattr("llmopt.serve.process.devices", lambda: ("cpu",))
    with pytest.raises(ServerError, match="vllm in its image needs an NVIDIA GPU") as caught:
        require_device(serve.backend("vllm"), in_image=True)
    assert caught.value.hint.startswith("leave --container out")
    require_device(serve.backend("llamacpp"), in_image=True)


def test_an_image_that_is_given_gpus_is_said_to_be_for_them():
    for backend in map(serve.backend, serve.BACKENDS):
        if backend.container:
            assert ("--gpus" in backend.container.options) == (backend.container.devices == ("cuda",))
            assert set(backend.container.devices) <= set(backend.devices)


def test_the_shell_line_writes_the_files_that_the_command_reads(tmp_path):
    context = LaunchContext(
        artifact=MODEL, options=ServeOptions(backend="trtllm"), environment=HERE, host="127.0.0.1", port=8123,
        folder=str(tmp_path / "it's here"),
    )  # fmt: skip
    told = serve.backend("trtllm").command(context)
    writing, _, starting = shell_line(told).rpartition("\n")
    subprocess.run(["sh", "-c", writing], check=True)
    assert {path: Path(path).read_text() for path in told.files} == told.files
    assert "trtllm-serve /models/seven" in starting


def test_llama_cpp_is_its_images_entry_point_and_finds_the_file_inside():
    argv = command("llamacpp", container=True).argv
    assert argv[argv.index(serve.backend("llamacpp").container.image) + 1 :][:2] == ("-m", "/model/model.gguf")
