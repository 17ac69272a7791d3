from dataclasses import replace

import pytest

from llmopt.core.errors import UsageError
from llmopt.estimate.memory import memory_of, working_of
from unit.estimate.make import DEEPSEEK, GIB, MIXTRAL, QWEN, case, with_attention

KV_OF_A_TOKEN = 57_344  # Qwen2.5-7B: 2 × 28 layers × 4 heads × 128 × 2 bytes


# Qwen's own readings (Qwen2.5 Speed Benchmark, transformers on A100s), GiB with 2,048 new tokens.
@pytest.mark.parametrize(
    ("quant", "prompt", "reading"),
    [
        *(("bf16", 6144, 15.38), ("gptq-int8", 6144, 9.43), ("gptq-int4", 6144, 6.52), ("awq-int4", 6144, 6.39)),
        *(("bf16", 30720, 19.97), ("gptq-int4", 30720, 11.11), ("bf16", 1, 14.38)),
    ],
)
def test_published_readings_are_met(quant, prompt, reading):
    found = memory_of(case(quant=quant, prompt=prompt, output=2048)).total_bytes / GIB
    assert found == pytest.approx(reading, rel=0.02)


def test_the_total_is_the_sum_of_its_parts():
    found = memory_of(case())
    assert found.total_bytes == found.weights_bytes + found.kv_cache_bytes + found.activation_bytes


def test_the_peak_is_at_the_end_when_the_answer_is_long():
    found = memory_of(case(prompt=16, output=16000))
    assert found.peak == "decode"
    assert found.kv_cache_bytes == 16016 * KV_OF_A_TOKEN


def test_the_cache_is_that_of_the_whole_context_when_the_peak_is_before_it_is_full():
    found = memory_of(case(prompt=6144, output=2048))
    assert found.peak == "prefill"
    assert found.kv_cache_bytes == 8192 * KV_OF_A_TOKEN
    shorter = memory_of(case(prompt=6144, output=1))  # the same prefill, and so the same peak
    assert shorter.total_bytes == found.total_bytes


def test_every_gpu_has_its_own_activations():
    one, three = memory_of(case(count=1)), memory_of(case(count=3))
    assert three.activation_bytes == 3 * one.activation_bytes
    assert three.weights_bytes == one.weights_bytes


def test_more_sequences_take_more_cache():
    found = memory_of(case(backend="vllm", sequences=8, prompt=1024))
    assert found.kv_cache_bytes == 8 * 1024 * KV_OF_A_TOKEN


def test_a_cache_of_whole_blocks_is_rounded_up():
    assert memory_of(case(backend="vllm", prompt=17)).kv_cache_bytes == 32 * KV_OF_A_TOKEN


def test_more_gpus_than_heads_of_keys_hold_copies():
    four = memory_of(case(backend="vllm", count=4, tensor_parallel=4)).kv_cache_bytes
    assert memory_of(case(backend="vllm", count=8, tensor_parallel=8)).kv_cache_bytes == 2 * four


def test_latent_attention_is_kept_narrow_by_vllm_and_wide_by_transformers():
    narrow = memory_of(case(DEEPSEEK, backend="vllm", prompt=1600)).kv_cache_bytes
    wide = memory_of(case(DEEPSEEK, prompt=1600)).kv_cache_bytes
    assert narrow == 1600 * 27 * (512 + 64) * 2
    assert wide == 1600 * 27 * 16 * (128 + 64 + 128) * 2


def test_a_quantized_cache_is_smaller():
    plain = memory_of(case(backend="vllm", kv_dtype=None)).kv_cache_bytes
    assert memory_of(case(backend="vllm", kv_dtype="fp8")).kv_cache_bytes == plain / 2


def test_eager_attention_holds_all_scores():
    sdpa, eager = case(prompt=8192), with_attention(case(prompt=8192), "eager")
    assert memory_of(eager).activation_bytes - memory_of(sdpa).activation_bytes > 28 * 8192**2 * 4


# The compute buffers that llama.cpp names in its log, for 512 tokens with flash attention.
def test_llama_cpp_reserves_the_logits_of_a_step():
    found = memory_of(case(quant="gguf-q4_k_m", backend="llamacpp", prompt=4096)).activation_bytes
    assert found == pytest.approx(304 * 2**20, rel=0.01)


def test_transformers_unpacks_compressed_tensors():
    assert memory_of(case(quant="w4a16")).weights_bytes == memory_of(case()).weights_bytes
    assert memory_of(case(quant="w4a16", backend="vllm")).weights_bytes < memory_of(case()).weights_bytes / 2


def test_llama_cpp_keeps_a_step_beside_the_window():
    windowed = QWEN | {"model_type": "gemma3_text", "layer_types": ["sliding_attention"] * 28, "sliding_window": 1024,
                       "head_dim": 128}  # fmt: skip
    found = memory_of(case(windowed, quant="gguf-q4_k_m", backend="llamacpp", prompt=8192)).kv_cache_bytes
    assert found == 1536 * KV_OF_A_TOKEN  # its log of Gemma 3: 1,536 cells


def test_llama_cpp_has_no_windows_of_most_models():
    windowed = QWEN | {"model_type": "mistral", "sliding_window": 1024}
    found = memory_of(case(windowed, quant="gguf-q4_k_m", backend="llamacpp", prompt=8192)).kv_cache_bytes
    assert found == 8192 * KV_OF_A_TOKEN


def test_the_cache_has_the_type_that_is_computed_in():
    stored = QWEN | {"torch_dtype": "float32"}
    assert memory_of(case(stored, quant="bf16", backend="vllm")).kv_cache_bytes == 2048 * KV_OF_A_TOKEN
    assert memory_of(case(stored, quant="fp32", backend="vllm")).kv_cache_bytes == 2 * 2048 * KV_OF_A_TOKEN


def test_without_a_device_nothing_is_said_of_what_fits():
    found = memory_of(case())
    assert found.max_context is None
    assert found.max_concurrency is None


def test_the_longest_context_is_the_last_that_fits():
    asked = case(backend="vllm", memory_bytes=24 * GIB)
    longest = memory_of(asked).max_context
    at = memory_of(case(backend="vllm", prompt=longest, memory_bytes=24 * GIB))
    assert at.needed_per_gpu_bytes <= 0.9 * 24 * GIB
    assert (
        longest == 32768
        or memory_of(case(backend="vllm", prompt=longest + 16, memory_bytes=24 * GIB)).max_concurrency == 0
    )


def test_where_the_weights_do_not_fit_no_context_does():
    found = memory_of(case(memory_bytes=8 * GIB))
    assert (found.max_context, found.max_concurrency) == (0, 0)


def test_an_engine_of_fixed_steps_samples_for_all_that_it_may_serve():
    """As vLLM's log says of Llama-3-8B: 1.19 GiB at its peak."""
    llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
    asked = case(llama, backend="vllm")
    asked = replace(asked, load=replace(asked.load, step_tokens=8192))  # its default then
    assert memory_of(asked).activation_bytes / GIB == pytest.approx(1.19, rel=0.05)


def test_what_an_engine_reserves_stands_beside_the_total():
    found = memory_of(case(backend="vllm", memory_bytes=80 * GIB))
    assert found.per_gpu_bytes == pytest.approx(0.9 * 80 * GIB, rel=0.001)
    assert found.total_bytes < 20 * GIB


def test_an_engine_that_is_not_known_is_named():
    with pytest.raises(UsageError, match="unknown backend 'vlm'") as caught:
        memory_of(case(backend="vlm"))
    assert "vllm" in caught.value.hint


def test_a_cache_type_that_is_not_known_is_named():
    with pytest.raises(UsageError, match="fp3"):
        memory_of(case(kv_dtype="fp3"))


def test_states_of_recurrent_layers_do_not_grow_with_the_context():
    mamba = {"model_type": "mamba", "hidden_size": 2560, "intermediate_size": 5120, "num_hidden_layers": 64,
             "state_size": 16, "conv_kernel": 4, "vocab_size": 50280, "time_step_rank": 160, "use_conv_bias": True}  # fmt: skip
    short, long = (memory_of(case(mamba, backend="vllm", prompt=n)).kv_cache_bytes for n in (100, 10_000))
    assert short == long > 0


def test_sliding_layers_keep_no_more_than_their_window():
    windowed = QWEN | {"layer_types": ["sliding_attention"] * 28, "sliding_window": 1024}
    assert memory_of(case(windowed, backend="vllm", prompt=8192)).kv_cache_bytes == 1024 * KV_OF_A_TOKEN


def test_gpus_that_share_layers_share_their_activations():
    of_each = []
    for count in (1, 8):
        asked = case(backend="vllm", count=count, tensor_parallel=count)
        asked = replace(asked, load=replace(asked.load, step_tokens=8192, max_num_seqs=1))
        of_each.append(memory_of(asked).activation_bytes / count)
    assert of_each[0] - of_each[1] == 8192 * 3 * 18944 * 7 / 8 * 2


@pytest.mark.parametrize(
    ("memory", "name", "tokens", "sequences"),
    [(191, "MI300X", 16384, 1024), (80, "H100 SXM5", 8192, 1024), (80, "A100 SXM4", 2048, 256), (24, "L4", 2048, 256)],
)
def test_vllm_chooses_its_steps_by_the_gpu(memory, name, tokens, sequences):
    asked = case(backend="vllm", memory_bytes=memory * GIB, name=name)
    assert working_of(asked).words == f"steps of {tokens:,} tokens at most, {sequences} sequences sampled"


def test_the_sequences_that_were_asked_for_are_those_of_a_step():
    asked = case(backend="vllm")
    asked = replace(asked, load=replace(asked.load, max_num_seqs=1))
    assert "1 sequences" in working_of(asked).words


def test_llama_cpp_leaves_the_embedding_of_an_untied_model_in_main_memory():
    """Its log of Llama-3.1-8B in Q4_K_M: CUDA0 4,403 MiB, CPU_Mapped 282."""
    llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
    found = memory_of(case(llama, quant="gguf-q4_k_m", backend="llamacpp"))
    assert found.host_bytes / 2**20 == pytest.approx(282, rel=0.01)
    assert (found.weights_bytes - found.host_bytes) / 2**20 == pytest.approx(4403, rel=0.01)
    assert found.needed_per_gpu_bytes == found.total_bytes - found.host_bytes + found.overhead_bytes
    assert memory_of(case(llama, quant="gguf-q4_k_m", backend="llamacpp", kind="cpu")).host_bytes == 0


def test_an_old_falcon_has_the_heads_of_keys_that_it_names():
    falcon = {"model_type": "falcon", "hidden_size": 8192, "n_layer": 60, "n_head": 128, "n_head_kv": 8,
              "new_decoder_architecture": True, "parallel_attn": True, "bias": False, "vocab_size": 65024}  # fmt: skip
    assert memory_of(case(falcon, backend="vllm")).kv_cache_bytes == 2048 * 60 * 2 * 8 * 64 * 2


def test_lightning_layers_have_a_state():
    minimax = MIXTRAL | {"model_type": "minimax", "head_dim": 128, "attn_type_list": [0] * 32}
    assert memory_of(case(minimax, backend="vllm")).kv_cache_bytes == 32 * 32 * 128 * 128 * 4
