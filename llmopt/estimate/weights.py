"""Bytes of the weights: of each tensor by its role and the quantization's layout, or exactly from the files' headers."""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.core import gguf_mix
from llmopt.core.formats import Layout
from llmopt.core.gguf_mix import Quantized, Traits
from llmopt.core.gguf_types import BITS, FILE_TYPES, written_type
from llmopt.estimate.kept import is_kept
from llmopt.estimate.shape import Reader, Shape, Tensor

QUANTIZED = ("linear", "expert")
# llama.cpp's words for our parts; everything else that is a matrix counts as another.
CATEGORIES = {
    "embed": gguf_mix.EMBEDDING, "embed_per_layer": gguf_mix.EMBEDDING, "head": gguf_mix.HEAD,
    "q": gguf_mix.QUERY, "k": gguf_mix.KEY, "v": gguf_mix.VALUE, "qkv": gguf_mix.FUSED, "o": gguf_mix.OUTPUT,
    "up": gguf_mix.UP, "gate_up": gguf_mix.UP, "gate": gguf_mix.GATE, "down": gguf_mix.DOWN,
    "shared_up": gguf_mix.UP, "shared_gate_up": gguf_mix.UP, "shared_gate": gguf_mix.GATE, "shared_down": gguf_mix.DOWN,
}  # fmt: skip
# llama.cpp's names of architectures, where its rules ask for them.
ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2"}
KEPT_IN_F32 = ("norm", "bias", "router", "conv", "state", "position")
# The vocabulary in a GGUF's header: each token with its length and type, merges beside them (39 bytes a token in the
# published files of Qwen2.5 and Llama 3); a tensor's entry is its name, sizes and place, and its data are padded to 32.
BYTES_PER_TOKEN, BYTES_PER_TENSOR, KEY_VALUES = 39, 80, 8192
SMALL_VOCABULARY, SHORT_TOKEN = 16384, 29  # whose tokens and merges are shorter: the bundled model's 5,120
# safetensors: an entry of the header for each tensor, and how many tensors a quantized matrix becomes.
BYTES_PER_ENTRY = 110
TENSORS_OF_A_LINEAR = {"gptq": 4, "auto-round": 4, "awq": 3, "bitsandbytes": 4, "compressed-tensors": 3}
NESTED_BYTES = 1300  # of a matrix under double quantization: its table of 256 numbers, and what describes it


@dataclass(frozen=True, kw_only=True)
class Weights:
    """``bytes`` in memory, ``file_bytes`` on disk; ``types``: how many bytes lie in which type, for people.

    ``embedding``: of a GGUF's input embedding that is not the head too.
    """

    bytes: int
    file_bytes: int
    bits_per_weight: float
    types: dict[str, int]
    fallbacks: int = 0
    embedding: int = 0


def sizes_of(shape: Shape, layout: Layout) -> list[tuple[Tensor, str, float]]:
    """Each tensor with its type and its bytes; llama.cpp keeps a vision tower in another file."""
    if layout.format != "gguf":
        # MXFP4 is for experts, where there are any.
        roles = ("expert",) if layout.format == "mxfp4" and shape.experts else QUANTIZED
        return [(t, *plain_size(t, layout, t.role in roles and not is_kept(t, layout.kept))) for t in shape.tensors]
    tensors = [t for t in shape.tensors if t.role != "vision"]
    if layout.gguf not in FILE_TYPES:  # of a file that does not tell it
        return [(t, layout.name, t.elements * layout.bits / 8) for t in tensors]
    types = gguf_mix.tensor_types(
        [as_quantized(t) for t in tensors], layout.gguf, traits(shape), matrix=FILE_TYPES[layout.gguf].needs_imatrix
    )
    return [(t, kind, t.elements * BITS[kind] / 8) for t, kind in zip(tensors, types, strict=True)]


def plain_size(tensor: Tensor, layout: Layout, linear: bool) -> tuple[str, float]:
    bits = layout.linear_bits(tensor.columns, tensor.rows) if linear else layout.rest
    if layout.format == "in-memory" and tensor.role == "head":
        bits = layout.bits  # torch's dynamic quantization takes every nn.Linear
    return layout.name if linear else f"{layout.rest}-bit", tensor.elements * bits / 8


def by_type(sizes: list[tuple[Tensor, str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for _, kind, size in sizes:
        found[kind] = found.get(kind, 0.0) + size
    return found


def weights_of(shape: Shape, layout: Layout) -> Weights:
    """From the shape alone."""
    if layout.format == "gguf":
        return gguf_weights(shape, layout)
    sizes = by_type(sizes_of(shape, layout))
    quantized = sum(t.stack for t in shape.tensors if t.role in QUANTIZED)
    if layout.double:
        sizes[layout.name] = sizes.get(layout.name, 0.0) + NESTED_BYTES * quantized
    total = round(sum(sizes.values()))
    entries = len(shape.tensors) + quantized * (TENSORS_OF_A_LINEAR.get(layout.format, 1) - 1)
    return Weights(
        bytes=total, file_bytes=total + BYTES_PER_ENTRY * entries, bits_per_weight=round(total * 8 / shape.parameters, 3),
        types={kind: round(size) for kind, size in sizes.items()},
    )  # fmt: skip


def gguf_weights(shape: Shape, layout: Layout) -> Weights:
    """As llama.cpp's quantizer would write them, with the file's header."""
    found = sizes_of(shape, layout)
    tensors, sizes = [tensor for tensor, _, _ in found], by_type(found)
    seen = [as_quantized(t) for t in tensors]
    total = round(sum(sizes.values()))
    main = FILE_TYPES[layout.gguf].main
    narrow = sum(written_type(main, t.row) != main for t in seen if t.category != gguf_mix.KEPT)
    token = SHORT_TOKEN if shape.vocabulary < SMALL_VOCABULARY else BYTES_PER_TOKEN
    header = KEY_VALUES + BYTES_PER_TENSOR * len(tensors) + token * shape.vocabulary
    elements = sum(t.elements for t in tensors)
    return Weights(
        bytes=total, file_bytes=total + header, bits_per_weight=round(total * 8 / max(1, elements), 3),
        types={kind: round(size) for kind, size in sizes.items()},
        fallbacks=narrow,
        embedding=0 if shape.tied else round(sum(size for t, _, size in found if t.role == "embedding")),
    )  # fmt: skip


def as_quantized(tensor: Tensor) -> Quantized:
    kept = tensor.role in KEPT_IN_F32 or tensor.rows == 1
    category = gguf_mix.KEPT if kept else CATEGORIES.get(tensor.part, gguf_mix.OTHER)
    return Quantized(category=category, row=tensor.columns, layer=tensor.layer or 0, experts=tensor.stack)


def traits(shape: Shape) -> Traits:
    reader = Reader(config=shape.config, place="config.json")
    heads = reader.get("num_attention_heads", "n_head", "n_heads", "num_heads")
    group = reader.heads // reader.kv_heads if heads else 1
    return Traits(
        architecture=ARCHITECTURES.get(shape.model_type, shape.model_type),
        layers=shape.layers, group=max(1, group), experts=shape.experts or 1, tied=shape.tied,
    )  # fmt: skip
