"""The peak of tensors while transformers really generates, by torch's own accounting on the CPU, beside the estimate.

Small models of several architectures with random weights: a long prompt, a few new tokens.  Weights are not counted, for
they are exact; what is compared is the KV cache with the activations at their peak.

python benchmarks/estimate/hf_peak.py [NAME ...]
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

COMMON = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 32000,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "llama": GROUPED, "qwen2": GROUPED, "qwen3": GROUPED | {"head_dim": 128}, "gemma2": GROUPED | {"head_dim": 128, "sliding_window": 512},
    "gemma3_text": GROUPED | {"head_dim": 128, "sliding_window": 512},
    "phi3": COMMON | {"num_key_value_heads": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gpt2": {"n_embd": 512, "n_layer": 4, "n_head": 8, "vocab_size": 32000, "n_positions": 8192},
    "gpt_neox": COMMON, "mixtral": GROUPED | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": GROUPED | {"head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 384},
    "deepseek_v3": COMMON | {
        "num_key_value_heads": 8, "kv_lora_rank": 128, "q_lora_rank": 256, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64,
        "v_head_dim": 64, "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 384, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip

LOADS = ((2048, 2, 1), (512, 2, 4))  # prompt, new tokens, batch


def peak_of(config: dict[str, Any], model_type: str, prompt: int, new: int, batch: int) -> tuple[int, dict[str, Any]]:
    """(bytes above what stood before generate, the config in full)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(model_type, **config)
    settings.max_position_embeddings = max(getattr(settings, "max_position_embeddings", 0) or 0, prompt + new)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()
    ids = torch.randint(10, settings.vocab_size, (batch, prompt))
    generate = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.no_grad():
        model.generate(ids[:, :16], **generate)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
            model.generate(ids, **generate)
    level = highest = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            highest = max(highest, level)
    return highest, settings.to_dict()


def main(names: list[str]) -> None:
    from llmopt.core.formats import layout
    from llmopt.estimate.architectures import shape_of
    from llmopt.estimate.load import Load
    from llmopt.estimate.memory import Case, Devices, memory_of
    from llmopt.estimate.weights import weights_of

    warnings.filterwarnings("ignore")
    for name in names:
        for prompt, new, batch in LOADS:
            measured, config = peak_of(CASES[name], name, prompt, new, batch)
            shape, plain = shape_of(config, name), layout("bf16")
            load = Load(prompt=prompt, output=new, sequences=batch)
            memory = memory_of(
                Case(
                    shape=shape,
                    layout=plain,
                    weights=weights_of(shape, plain),
                    backend="hf",
                    load=load,
                    devices=Devices(kind="cpu"),
                )
            )
            found = memory.kv_cache_bytes + memory.activation_bytes
            print(
                f"{name:<12} {batch} x {prompt}+{new}: measured {measured / 2**20:8.1f} MiB, estimated {found / 2**20:8.1f}"
                f" ({found / measured - 1:+.1%}), {memory.peak}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
