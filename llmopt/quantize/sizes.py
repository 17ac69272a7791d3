"""The bits that each tensor of a model will have, by its name and shape: read from headers, no weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.core import gguf_mix
from llmopt.core.artifacts import read_config, safetensors_header
from llmopt.core.domain import ModelRef
from llmopt.core.formats import Layout
from llmopt.core.gguf_mix import Quantized, Traits
from llmopt.core.gguf_types import BITS, FILE_TYPES, written_type
from llmopt.core.kv_cache import first, kv_heads
from llmopt.quantize import Method, Route

NOT_LINEAR = ("embed", "lm_head", "norm", "wte", "wpe", "ln_", "layernorm", "router", "mlp.gate.weight")
# Words in the names of tensors → llama.cpp's kind of them; the first that fits.
CATEGORIES = (
    (("lm_head", "embed_out"), gguf_mix.HEAD),
    (("embed_tokens", "wte", "word_embeddings", "embed_in"), gguf_mix.EMBEDDING),
    (("q_proj",), gguf_mix.QUERY),
    (("k_proj",), gguf_mix.KEY),
    (("v_proj",), gguf_mix.VALUE),
    (("qkv_proj", "query_key_value", "c_attn", "Wqkv"), gguf_mix.FUSED),
    (("o_proj", "attn.c_proj", "attention.dense", "out_proj"), gguf_mix.OUTPUT),
    (("down_proj", "mlp.c_proj", "4h_to_h", "fc2", ".w2."), gguf_mix.DOWN),
    (("up_proj", "c_fc", "h_to_4h", "fc1", ".w3."), gguf_mix.UP),
    (("gate_proj", ".w1."), gguf_mix.GATE),
)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    elements: int

    @property
    def linear(self) -> bool:
        """A weight that quantizers take: a matrix, or a stack of them (experts), but no embedding, head or norm."""
        wanted = len(self.shape) >= 2 and not any(word in self.name.lower() for word in NOT_LINEAR)
        return wanted and self.name.endswith(("weight", "_proj"))

    @property
    def row(self) -> int:
        return self.shape[-1]


def tensors(folder: Path) -> list[Tensor]:
    """Of every shard, from the headers."""
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in safetensors_header(file).items():
            elements = 1
            for extent in entry["shape"]:
                elements *= extent
            found.append(Tensor(name=name, shape=tuple(entry["shape"]), elements=elements))
    return found


def bits_of(
    model: ModelRef, found: Sequence[Tensor], method: Method, route: Route, settings: dict[str, Any]
) -> list[float]:
    """Bits that one weight of each tensor takes in that layout, with its scales and zero points."""
    if route.format == "gguf":
        return gguf_bits(found, settings["type"], read_config(Path(model.path)))
    layout = Layout(
        name=method.name, format=route.format, bits=method.bits, group=method.group_size,
        symmetric=settings.get("symmetric") is not False, double=settings.get("method") == "nf4-dq",
    )  # fmt: skip
    rest = 32 if route.format == "in-memory" else 16
    return [layout.linear_bits(t.row) if t.linear else rest for t in found]


def gguf_bits(found: Sequence[Tensor], kind: str, config: dict[str, Any]) -> list[float]:
    """By the type that llama.cpp gives each tensor; ``config`` tells its layers, heads and experts."""
    text = config.get("text_config") or config
    heads = first(text, "num_attention_heads", "n_head") or 1
    layers = first(text, "num_hidden_layers", "n_layer") or 0
    traits = Traits(
        architecture=str(text.get("model_type")), layers=layers, group=max(1, heads // kv_heads(text, heads)),
        experts=first(text, "num_experts", "num_local_experts", "n_routed_experts") or 1,
        tied=not any(category(t) == gguf_mix.HEAD for t in found),
    )  # fmt: skip
    seen = [
        Quantized(category=category(t), row=t.row if t.shape else 1, layer=layer_of(t), experts=expert_count(t))
        for t in found
    ]
    # The rules count what came before: in the order of the layers, as the converter writes them.
    order = sorted(range(len(seen)), key=lambda i: seen[i].layer)
    types = gguf_mix.tensor_types([seen[i] for i in order], kind, traits, matrix=FILE_TYPES[kind].needs_imatrix)
    bits = dict(zip(order, (BITS[name] for name in types), strict=True))
    return [bits[i] for i in range(len(found))]


def category(tensor: Tensor) -> str:
    if len(tensor.shape) < 2 or "norm" in tensor.name or "router" in tensor.name or "mlp.gate.weight" in tensor.name:
        return gguf_mix.KEPT
    return next((kind for words, kind in CATEGORIES if any(w in tensor.name for w in words)), gguf_mix.OTHER)


def layer_of(tensor: Tensor) -> int:
    match = re.search(r"\.(\d+)\.", tensor.name)
    return int(match[1]) if match else 0


def expert_count(tensor: Tensor) -> int:
    """More than one for the experts of a mixture, which the converter stacks."""
    return 2 if "expert" in tensor.name and "shared" not in tensor.name else 1


def gguf_fallbacks(linears: Iterable[Tensor], settings: dict[str, Any]) -> dict[str, str]:
    main = FILE_TYPES[settings["type"]].main
    return {t.name: written for t in linears if (written := written_type(main, t.row)) != main}
