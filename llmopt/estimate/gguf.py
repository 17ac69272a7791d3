"""A GGUF file as a model: its weights exactly, its shape out of the metadata in its header."""

from __future__ import annotations

import re
from pathlib import Path

from llmopt.core.errors import ModelError
from llmopt.core.formats import NAMED, Layout
from llmopt.core.gguf_file import GgufFile, read_gguf
from llmopt.estimate.architectures import is_known
from llmopt.estimate.gguf_config import config_of, uneven
from llmopt.estimate.shape import MOST_LAYERS, Role, Shape, Tensor
from llmopt.estimate.source import Source
from llmopt.estimate.weights import Weights

PARTS = {
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_qkv": "qkv", "attn_output": "o", "ffn_up": "up", "ffn_gate": "gate",
    "ffn_down": "down", "ffn_up_exps": "up", "ffn_gate_exps": "gate", "ffn_down_exps": "down", "ffn_gate_inp": "router",
    "token_embd": "embed", "output": "head", "ssm_conv1d": "conv", "ssm_out": "ssm_out", "ffn_up_shexp": "shared_up",
    "ffn_gate_shexp": "shared_gate", "ffn_down_shexp": "shared_down",
}  # fmt: skip
ROLES: dict[str, Role] = {"embed": "embedding", "head": "head", "router": "router", "conv": "conv"}
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # as llama.cpp's gguf-split names them


def open_gguf(file: Path) -> Source:
    """Raises ModelError for a file that is cut, lacks another of its parts, or tells too little of its model."""
    files = shards(file)
    parts = [read_gguf(one) for one in files]
    check_parts(file, parts)
    found = parts[0]
    architecture = str(found.metadata.get("general.architecture"))
    config = config_of(found.metadata, architecture, str(file))
    if not {"num_hidden_layers", "hidden_size", "num_attention_heads"} <= config.keys():
        raise ModelError(f"{file} does not tell its layers, width and heads", hint="is it a language model's GGUF?")
    entries = [tensor for part in parts for tensor in part.tensors]
    if not entries:
        raise ModelError(f"{file} has no weights: it is a vocabulary alone", hint="name the file of the model")
    tensors = tuple(tensor_of(t.name, t.shape, file) for t in entries)
    tied = not any(t.part == "head" for t in tensors)
    notes = notes_of(found, architecture, str(config["model_type"]))
    shape = Shape(model_type=architecture, config=config, tensors=tensors, tied=tied, notes=notes)
    sizes: dict[str, int] = {}
    for tensor in entries:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.bytes
    total = sum(sizes.values())
    name = f"gguf-{(found.file_type or 'unknown').lower()}"
    stored = NAMED.get(name) or Layout(name=name, format="gguf", bits=total * 8 / max(1, shape.parameters))
    weights = Weights(
        bytes=total,
        file_bytes=sum(one.stat().st_size for one in files),
        bits_per_weight=round(total * 8 / max(1, shape.parameters), 3),
        types=sizes,
        embedding=0 if tied else sum(t.bytes for t in entries if t.name == "token_embd.weight"),
    )
    return Source(name=file.name, shape=shape, stored=stored, weights=weights)


def shards(file: Path) -> list[Path]:
    """All files of the model, by the name of one of them."""
    match = SHARD.fullmatch(file.name)
    if match is None:
        return [file]
    files = [file.with_name(f"{match[1]}-{n:05d}-of-{match[3]}.gguf") for n in range(1, int(match[3]) + 1)]
    if not files or int(match[2]) not in range(1, len(files) + 1):
        raise ModelError(
            f"{file} is named as part {int(match[2])} of {len(files)}, which cannot be",
            hint="keep the names that they were published with: NAME-00001-of-00002.gguf",
        )
    missing = [one.name for one in files if not one.is_file()]
    if missing:
        raise ModelError(
            f"{file} is one of {len(files)} parts, {missing[0]} is missing", hint="fetch all parts into one folder"
        )
    return files


def check_parts(file: Path, parts: list[GgufFile]) -> None:
    count = parts[0].metadata.get("split.count")
    if isinstance(count, int) and count > 1 and count != len(parts):
        raise ModelError(
            f"{file} says that it is one of {count} parts, {len(parts)} found",
            hint="keep the names that they were published with: NAME-00001-of-00002.gguf",
        )


def notes_of(found: GgufFile, architecture: str, model_type: str) -> tuple[str, ...]:
    notes = []
    if not is_known(model_type):
        notes.append(
            f"the architecture {architecture!r} is not known here: weights are the file's, KV cache and activations a plain decoder's"
        )
    if uneven(found.metadata, architecture):
        notes.append("layers have different numbers of key heads: the KV cache is counted with the most of them")
    return tuple(notes)


def tensor_of(name: str, shape: tuple[int, ...], file: Path) -> Tensor:
    """``shape`` has the row length first."""
    words = name.split(".")
    layer = None
    if words[0] == "blk" and len(words) > 2:
        if not words[1].isdecimal() or int(words[1]) >= MOST_LAYERS:
            raise ModelError(f"{file} has a tensor {name!r}, which no model has", hint="fetch or copy it again")
        layer = int(words[1])
    stem = words[2] if layer is not None else words[0]
    part = PARTS.get(stem, stem)
    columns, rows, stack = (*shape, 1, 1)[:3]
    role: Role = ROLES.get(part, "expert" if stem.endswith("_exps") else "linear")
    if (rows == 1 and stack == 1) or name.endswith("bias"):
        role = "bias" if name.endswith("bias") else "norm"
    return Tensor(part=part, role=role, rows=rows, columns=columns, stack=stack, layer=layer)
