"""Hand-made safetensors and GGUF files: every byte is the test's."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

Tensor = tuple[str, tuple[int, ...], bytes]


def shard(file: Path, tensors: dict[str, Tensor], **header: Any) -> Path:
    """A safetensors file of name → (dtype, shape, bytes); ``header`` overrides entries of the header."""
    entries: dict[str, Any] = {}
    place = 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
    text = json.dumps(entries | header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
    return file


def bf16(*shape: int, value: int = 0x3F80) -> Tensor:
    """A tensor full of one bf16 number, by its bits; 0x3F80 is 1.0."""
    return "BF16", shape, struct.pack("<H", value) * math.prod(shape)


def f16(*shape: int, value: float = 1.0) -> Tensor:
    return "F16", shape, struct.pack("<e", value) * math.prod(shape)


def i32(*shape: int) -> Tensor:
    return "I32", shape, bytes(4 * math.prod(shape))


def config(folder: Path, **fields: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["Tiny"]} | fields))


def tokenizer(folder: Path, ids: int) -> None:
    vocabulary = {f"t{number}": number for number in range(ids)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))


def base(folder: Path) -> Path:
    """A model of two linear layers of 256 × 256 and an embedding of 8 rows."""
    config(folder, vocab_size=8, num_hidden_layers=2)
    tokenizer(folder, 8)
    layers = {f"model.layers.{n}.mlp.up_proj.weight": bf16(256, 256) for n in range(2)}
    shard(
        folder / "model.safetensors",
        {"model.embed_tokens.weight": bf16(8, 256), "model.norm.weight": bf16(256), **layers},
    )
    return folder


def gptq(folder: Path, **changes: Any) -> Path:
    """A GPTQ checkpoint of ``base``: 4 bits, groups of 128. ``changes``: tensors by name, ``None`` takes one away."""
    said = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    config(folder, vocab_size=8, quantization_config=said)
    tokenizer(folder, 8)
    tensors: dict[str, Any] = {"model.embed_tokens.weight": bf16(8, 256), "model.norm.weight": bf16(256)}
    for n in range(2):
        layer = f"model.layers.{n}.mlp.up_proj"
        tensors |= {f"{layer}.qweight": i32(32, 256), f"{layer}.qzeros": i32(2, 32), f"{layer}.scales": f16(2, 256)}
    kept = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    shard(folder / "model.safetensors", kept)
    return folder


# ggml type → (number, weights of a block, bytes of a block, where in it the scale lies).
GGML = {"F32": (0, 1, 4, None), "Q8_0": (8, 32, 34, 0), "Q4_K": (12, 256, 144, 0), "Q5_0": (6, 32, 22, 0)}


def gguf(
    file: Path,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    file_type: int = 15,
    scale: float = 1.0,
    said: dict[str, Any] | None = None,
) -> Path:
    """A GGUF file of name → (type, shape with the row length first); every block has this scale; ``said``: more metadata."""
    said = said or {}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2 + len(said))
    for key, value in said.items():
        head += text(key) + told(value)
    head += text("general.file_type") + struct.pack("<II", 4, file_type)
    head += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    data = b""
    for name, (kind, shape) in tensors.items():
        number, block, size, at = GGML[kind]
        one = bytearray(size)
        if at is not None:
            one[at : at + 2] = struct.pack("<e", scale)
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        head += struct.pack("<IQ", number, len(data))
        data += bytes(one) * (math.prod(shape) // block)
        data += bytes(-len(data) % 32)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(head + bytes(-len(head) % 32) + data)
    return file


def told(value: Any) -> bytes:
    """A value of the metadata with its type before it; bytes as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, list):
        return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return struct.pack("<Ii", 5, value) if value < 0 else struct.pack("<II", 4, value)


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()
