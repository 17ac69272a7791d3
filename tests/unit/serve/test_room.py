import json
from dataclasses import replace

import pytest

from llmopt.core.domain import ServeOptions
from llmopt.core.errors import UsageError
from llmopt.serve import backend, room
from unit.make import artifact

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_size": 4096, "max_position_embeddings": 131072, "dtype": "bfloat16",
}  # fmt: skip  # 131,072 bytes a token
GIB = 1 << 30


@pytest.fixture
def model(tmp_path):
    made = artifact(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return replace(made, size_bytes=4 * GIB)


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory is free, of the machine and of each of its GPUs."""

    def set_free(main, gpu=0, gpus=1):
        monkeypatch.setattr(room, "free_memory_bytes", lambda: main)
        monkeypatch.setattr(room, "free_gpu_bytes", lambda count=None: gpu * (count or gpus))

    return set_free


def check(model, **options):
    room.require_room(backend("hf"), model, ServeOptions(backend="hf", **options))


def test_weights_and_the_cache_of_all_sequences_fit(model, free):
    free(8 * GIB)
    check(model, max_model_len=8192, max_num_seqs=4)


def test_a_cache_that_does_not_fit_is_said_with_the_numbers(model, free):
    free(8 * GIB)
    with pytest.raises(UsageError, match=r"4\.00 GiB for 32768 tokens × 4 sequences") as caught:
        check(model, max_model_len=32768, max_num_seqs=4)
    assert "8.00 GiB of memory are free" in str(caught.value)
    assert caught.value.hint.startswith("--max-model-len 8192 at most")


def test_what_is_advised_fits(model, free):
    free(8 * GIB)
    check(model, max_model_len=8192, max_num_seqs=4)
    with pytest.raises(UsageError):
        check(model, max_model_len=8193, max_num_seqs=4)


def test_weights_alone_may_be_too_large(model, free):
    free(3 * GIB)
    with pytest.raises(UsageError) as caught:
        check(model, max_model_len=16)
    assert caught.value.hint == "a smaller quantization"


def test_weights_that_do_not_fit_are_said_without_a_context_and_without_a_config(model, tmp_path, free):
    free(3 * GIB)
    with pytest.raises(UsageError, match="for the weights alone"):
        check(model)
    with pytest.raises(UsageError, match="for the weights alone"):
        check(replace(model, path=str(tmp_path / "none"), base=str(tmp_path / "none")), max_model_len=16)


@pytest.mark.parametrize(
    ("engine", "words"),
    [("vllm", ("--cpu-offload-gb=8",)), ("vllm", ("--cpu_offload_gb", "1")), ("vllm", ("--offload-group-size", "8")),
     ("llamacpp", ("--load-mode", "mmap")), ("llamacpp", ("-lm=mmap",))],
)  # fmt: skip
def test_weights_that_may_lie_elsewhere_need_not_fit(model, free, engine, words):
    free(3 * GIB)
    room.require_room(backend(engine), model, ServeOptions(backend=engine, extra_args=words))
    with pytest.raises(UsageError, match="for the weights alone") as caught:
        room.require_room(backend(engine), model, ServeOptions(backend=engine))
    assert ("mmap" in caught.value.hint) == (engine == "llamacpp")


@pytest.mark.parametrize(
    ("engine", "words"),
    [("vllm", ("--cpu-offload-gb=0",)), ("vllm", ("--cpu-offload-gb", "none")), ("vllm", ("--cpu-offload-gb=0.5",)),
     ("vllm", ("--download-dir=/offload/mmap",)), ("llamacpp", ("--no-kv-offload",)), ("llamacpp", ("--no-mmap",)),
     ("llamacpp", ("--load-mode", "mlock")), ("llamacpp", ("--load-mode",))],
)  # fmt: skip
def test_a_word_that_only_sounds_like_it_leaves_the_weights_where_they_are(model, free, engine, words):
    free(3 * GIB)
    with pytest.raises(UsageError, match="for the weights alone"):
        room.require_room(backend(engine), model, ServeOptions(backend=engine, extra_args=words))


def test_a_gigabyte_on_each_gpu_counts_for_each(model, free):
    free(64 * GIB, gpu=GIB, gpus=2)
    words = ServeOptions(backend="vllm", tensor_parallel_size=2, extra_args=("--cpu-offload-gb", "1"))
    room.require_room(backend("vllm"), model, words)
    with pytest.raises(UsageError, match=r"would need 3\.00 GiB for the weights"):
        room.require_room(backend("vllm"), model, replace(words, tensor_parallel_size=1))


@pytest.mark.parametrize(
    ("engine", "words"), [("llamacpp", ("--load-mode", "mmap")), ("vllm", ("--cpu-offload-gb=8",))]
)
def test_a_cache_must_fit_wherever_the_weights_lie(model, free, engine, words):
    free(3 * GIB)
    options = ServeOptions(backend=engine, max_model_len=131072, max_num_seqs=4, extra_args=words)
    with pytest.raises(UsageError, match="of memory are free"):
        room.require_room(backend(engine), model, options)


def test_a_server_that_loads_nothing_needs_no_room(model, free):
    free(GIB)
    room.require_room(backend("scripted"), model, ServeOptions(backend="scripted"))


def test_only_the_gpus_that_are_asked_for_are_counted(model, free):
    free(64 * GIB, gpu=3 * GIB, gpus=8)
    with pytest.raises(UsageError, match=r"3\.00 GiB of memory are free"):
        room.require_room(backend("vllm"), model, ServeOptions(backend="vllm"))
    room.require_room(backend("vllm"), model, ServeOptions(backend="vllm", tensor_parallel_size=2))


def test_ray_reserves_what_vllm_reserves(monkeypatch):
    monkeypatch.setattr("llmopt.serve.vllm.device_here", lambda: "cpu")
    assert backend("rayserve").sequences_reserved(ServeOptions(backend="rayserve", max_num_seqs=4)) == 4


def test_a_smaller_type_of_the_cache_makes_room(model, free):
    free(8 * GIB)
    options = ServeOptions(backend="llamacpp", max_model_len=16384, max_num_seqs=4)
    with pytest.raises(UsageError):
        room.require_room(backend("llamacpp"), model, options)
    room.require_room(backend("llamacpp"), model, replace(options, kv_cache_dtype="q4_0"))


def test_a_context_beyond_the_models_own_is_refused(model, free):
    free(1 << 50)
    with pytest.raises(UsageError, match="positions for 131072 tokens"):
        check(model, max_model_len=131073)


def test_a_scaled_rope_has_more_positions(model, tmp_path, free):
    free(1 << 50)
    scaled = CONFIG | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(scaled))
    check(model, max_model_len=4 * 131072)
    with pytest.raises(UsageError, match="positions for 524288 tokens"):
        check(model, max_model_len=4 * 131072 + 1)


def test_the_base_is_asked_where_the_artifact_has_no_config(model, tmp_path, free):
    free(5 * GIB)
    moved = replace(model, path=str(tmp_path / "gguf"), base=model.path)
    with pytest.raises(UsageError, match="KV cache of"):
        check(moved, max_model_len=131072)


def test_nothing_is_claimed_of_a_model_that_tells_nothing(model, tmp_path, free):
    free(5 * GIB)
    check(replace(model, path=str(tmp_path / "none"), base=str(tmp_path / "none")), max_model_len=131072)


def test_what_a_gpu_lacks_main_memory_does_not_give(model, free):
    free(64 * GIB, gpu=5 * GIB)
    with pytest.raises(UsageError, match=r"5\.00 GiB of memory are free"):
        check(model, max_model_len=32768, max_num_seqs=4)


def test_but_it_does_where_layers_may_lie_there(model, free):
    free(64 * GIB, gpu=5 * GIB)
    check(model, max_model_len=32768, max_num_seqs=4, device_map="auto")
    room.require_room(backend("llamacpp"), model, ServeOptions(backend="llamacpp", max_model_len=32768))
