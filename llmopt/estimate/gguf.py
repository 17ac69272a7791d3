"""A GGUF file as a model: its weights exactly, its shape out of the metadata in its header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmopt.core.errors import ModelError
from llmopt.core.formats import NAMED, Layout
from llmopt.core.gguf_file import GgufFile, read_gguf
from llmopt.estimate.shape import Role, Shape, Tensor
from llmopt.estimate.source import Source
from llmopt.estimate.weights import Weights

# Keys of the metadata, without the architecture before them, → config.json's.
KEYS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.sliding_window": "sliding_window", "context_length": "max_position_embeddings",
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "attention.kv_lora_rank": "kv_lora_rank",
    "attention.value_length_mla": "v_head_dim", "rope.dimension_count": "qk_rope_head_dim",
    "ssm.state_size": "ssm_state_size",
}  # fmt: skip
PARTS = {
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_qkv": "qkv", "attn_output": "o", "ffn_up": "up", "ffn_gate": "gate",
    "ffn_down": "down", "ffn_up_exps": "up", "ffn_gate_exps": "gate", "ffn_down_exps": "down", "ffn_gate_inp": "router",
    "token_embd": "embed", "output": "head", "ssm_conv1d": "conv", "ssm_out": "ssm_out", "ffn_up_shexp": "shared_up",
    "ffn_gate_shexp": "shared_gate", "ffn_down_shexp": "shared_down",
}  # fmt: skip
ROLES: dict[str, Role] = {"embed": "embedding", "head": "head", "router": "router", "conv": "conv"}


def open_gguf(file: Path) -> Source:
    """Raises ModelError for a file that is cut, or tells too little of its model."""
    found = read_gguf(file)
    architecture = found.metadata.get("general.architecture")
    config = config_of(found, str(architecture))
    if not {"num_hidden_layers", "hidden_size", "num_attention_heads"} <= config.keys():
        raise ModelError(f"{file} does not tell its layers, width and heads", hint="is it a language model's GGUF?")
    tensors = tuple(tensor_of(t.name, t.shape) for t in found.tensors)
    shape = Shape(
        model_type=str(architecture), config=config, tensors=tensors, tied=not any(t.part == "head" for t in tensors)
    )
    sizes: dict[str, int] = {}
    for tensor in found.tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.bytes
    total = sum(sizes.values())
    name = f"gguf-{(found.file_type or 'unknown').lower()}"
    stored = NAMED.get(name) or Layout(name=name, format="gguf", bits=total * 8 / max(1, shape.parameters))
    weights = Weights(
        bytes=total,
        file_bytes=file.stat().st_size,
        bits_per_weight=round(total * 8 / max(1, shape.parameters), 3),
        types=sizes,
    )
    return Source(name=file.name, shape=shape, stored=stored, weights=weights)


def config_of(found: GgufFile, architecture: str) -> dict[str, Any]:
    config: dict[str, Any] = {"model_type": architecture}
    for key, name in KEYS.items():
        value = found.metadata.get(f"{architecture}.{key}")
        if isinstance(value, list):  # one number for each layer: the widest
            value = max(value, default=None)
        if isinstance(value, (int, float)) and value:
            config[name] = int(value)
    if "kv_lora_rank" in config:
        whole = found.metadata.get(f"{architecture}.attention.key_length_mla")
        config["qk_nope_head_dim"] = int(whole or 0) - config.get("qk_rope_head_dim", 0)
    else:
        config.pop("qk_rope_head_dim", None)
    return config


def tensor_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """``shape`` has the row length first."""
    words = name.split(".")
    layer = int(words[1]) if words[0] == "blk" else None
    stem = words[2] if layer is not None else words[0]
    part = PARTS.get(stem, stem)
    columns, rows, stack = (*shape, 1, 1)[:3]
    role: Role = ROLES.get(part, "expert" if stem.endswith("_exps") else "linear")
    if (rows == 1 and stack == 1) or name.endswith("bias"):
        role = "bias" if name.endswith("bias") else "norm"
    return Tensor(part=part, role=role, rows=rows, columns=columns, stack=stack, layer=layer)
