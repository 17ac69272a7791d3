"""Configs and cases for the tests of estimate."""

import json
from dataclasses import replace

from typer.testing import CliRunner

from llmopt.cli import app
from llmopt.core.formats import layout
from llmopt.estimate.architectures import shape_of
from llmopt.estimate.load import Load
from llmopt.estimate.memory import Case, Devices
from llmopt.estimate.weights import weights_of

# Qwen2.5-7B
QWEN = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408, "first_k_dense_replace": 1, "max_position_embeddings": 163840,
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
GIB = 1 << 30


def case(config=QWEN, quant="bf16", backend="hf", prompt=2048, output=0, sequences=1, **more):
    shape, wanted = shape_of(config, "config.json"), layout(quant)
    load = Load(prompt=prompt, output=output, sequences=sequences)
    return Case(
        shape=shape, layout=wanted, weights=weights_of(shape, wanted), backend=backend, load=load,
        kv_dtype=more.pop("kv_dtype", None), devices=Devices(**more),
    )  # fmt: skip


def with_attention(asked, attention):
    return replace(asked, load=replace(asked.load, attention=attention))


def with_slots(asked, slots):
    return replace(asked, load=replace(asked.load, max_num_seqs=slots))


def folder_of(path, config=QWEN):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def estimate(*arguments):
    return CliRunner().invoke(app, ["estimate", *map(str, arguments)])


def document(*arguments):
    found = estimate(*arguments, "--json")
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)
