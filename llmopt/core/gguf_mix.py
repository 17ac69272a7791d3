"""Which type llama.cpp's quantizer gives each tensor of a file type: the rules of src/llama-quant.cpp (build 0c1e570).

A file type names a main type; values, output projections and the second matrix of the MLP get more bits in some layers,
the output head nearly always, and a row that the type's blocks do not divide falls back to another type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmopt.core.gguf_types import FILE_TYPES, SMALL_BLOCKS, written_type

EMBEDDING, HEAD, QUERY, KEY, VALUE, FUSED, OUTPUT, UP, GATE, DOWN, OTHER, KEPT = (
    "embedding", "head", "query", "key", "value", "qkv", "output", "up", "gate", "down", "other", "kept",
)  # fmt: skip
VALUES = (VALUE, FUSED)
TINY = ("iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq1_s", "iq1_m")  # rules of their own
WIDER_TINY = ("iq2_s", "iq2_m")
TINY_HEAD = (*TINY, "iq3_xxs")
SEVENTY_B_LAYERS = 80  # llama.cpp takes a Llama or Qwen2 of so many layers with grouped queries for the 70B


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """A tensor as the quantizer sees it; ``kept``: one that no quantization touches (vectors, norms, routers), in F32."""

    category: str
    row: int
    layer: int = 0
    experts: int = 1


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What of the model the rules ask for. ``group``: query heads for one key head."""

    architecture: str
    layers: int
    group: int
    experts: int
    tied: bool

    @property
    def falcon(self) -> bool:
        return self.architecture == "falcon"

    @property
    def seventy_b(self) -> bool:
        return self.architecture in ("llama", "qwen2") and self.layers == SEVENTY_B_LAYERS and self.group > 1


def tensor_types(tensors: Sequence[Quantized], name: str, traits: Traits, *, matrix: bool = False) -> list[str]:
    """The type of each tensor, in their order; ``matrix``: there was an importance matrix."""
    values = sum(t.category in VALUES for t in tensors)
    seen_values = seen_downs = 0
    found = []
    for t in tensors:
        if t.category == KEPT:
            found.append("F32")
            continue
        wanted = FILE_TYPES[name].main
        if wanted not in ("F32", "F16", "BF16"):
            down = t.layer if traits.experts > 1 else seen_downs
            rule = Rule(name=name, main=wanted, traits=traits, matrix=matrix, values=values)
            wanted = rule.of(t, value=seen_values, down=down, tiny_down=seen_downs)
        seen_values += t.category in VALUES
        seen_downs += t.category == DOWN
        found.append(written_type(wanted, t.row))
    return found


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The choice for one tensor, by what it is and how many of its kind came before."""

    name: str
    main: str
    traits: Traits
    matrix: bool
    values: int

    def of(self, t: Quantized, *, value: int, down: int, tiny_down: int) -> str:
        if t.category == HEAD or (self.traits.tied and t.category == EMBEDDING):
            return self.head(t)
        if self.name == "mxfp4_moe":
            return "MXFP4" if t.experts > 1 else "Q8_0"
        if t.category == EMBEDDING:
            return self.embedding()
        if self.name in TINY:
            return self.tiny(t, down=tiny_down)
        if t.category in VALUES:
            return self.of_values(t, value)
        if t.category in (KEY, QUERY):
            return self.of_keys(t)
        if t.category == DOWN:
            return self.of_down(down)
        if t.category == OUTPUT:
            return self.of_output()
        if t.category in (GATE, UP) and self.name == "iq3_xs":
            layers = self.traits.layers
            return "IQ3_XXS" if layers // 8 <= t.layer < 7 * layers // 8 else self.main
        return self.main

    def head(self, t: Quantized) -> str:
        block = 32 if self.main in SMALL_BLOCKS else 256
        if self.name == "mxfp4_moe" or self.traits.falcon or t.row % block:
            return "Q8_0"
        if self.name in TINY_HEAD:
            return "Q5_K"
        return self.main if self.main == "Q8_0" else "Q6_K"

    def embedding(self) -> str:
        if self.name in ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"):
            return "Q2_K"
        if self.name in ("iq2_s", "iq2_m", "iq3_xxs"):
            return "IQ3_S"
        return "Q4_K" if self.name in ("tq1_0", "tq2_0") else self.main

    def tiny(self, t: Quantized, *, down: int) -> str:
        """Two bits and fewer."""
        more = "IQ3_S" if self.name in WIDER_TINY else "Q2_K"
        if t.category in VALUES:
            return "Q4_K" if self.traits.group >= 4 or self.traits.experts >= 4 else more
        if t.category == KEY and self.traits.experts == 8:
            return "Q4_K"
        if t.category == DOWN:
            return more if down < self.traits.layers // 8 else self.main
        if t.category == OUTPUT:
            if self.traits.experts == 8:
                return "Q5_K"
            return {"iq1_s": "IQ2_XXS", "iq1_m": "IQ2_XXS", "iq2_s": "IQ3_S", "iq2_m": "IQ3_S"}.get(
                self.name, self.main
            )
        return self.main

    def of_values(self, t: Quantized, number: int) -> str:
        grouped, found = self.traits.group >= 4, self.main
        if self.name == "q2_k":
            found = "Q4_K" if grouped else "Q3_K"
        elif self.name in ("q2_k_s", "iq3_xs", "iq3_s") and grouped:
            found = "Q4_K"
        elif self.name == "iq3_xxs":
            found = "Q4_K" if grouped else "IQ3_XXS" if self.matrix else "IQ3_S"
        elif self.name == "iq3_m":
            found = "Q4_K"
        elif self.name == "q3_k_m":
            found = "Q5_K" if number < 2 else "Q4_K"
        elif self.name == "q3_k_l" or (self.name in ("iq4_nl", "iq4_xs") and grouped):
            found = "Q5_K"
        elif self.name in ("q4_k_m", "q5_k_m") and more_bits(number, self.values):
            found = "Q6_K"
        elif self.name == "q4_k_s" and number < 4:
            found = "Q5_K"
        if self.traits.seventy_b and found in ("Q3_K", "Q4_K"):
            found = "Q5_K"
        return "Q8_0" if self.traits.experts == 8 else found

    def of_keys(self, t: Quantized) -> str:
        if t.category == KEY and self.traits.experts == 8:
            return "Q8_0"
        return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(self.name, self.main)

    def of_down(self, number: int) -> str:
        layers, name = self.traits.layers, self.name
        first, more = number < layers // 8, more_bits(number, layers)
        if name == "q2_k":
            return "Q3_K"
        if name == "q3_k_m":
            if number < layers // 16:
                return "Q5_K"
            return "Q4_K" if more or not self.traits.falcon else "Q3_K"
        if name == "q3_k_l":
            return "Q4_K" if self.traits.falcon else "Q5_K"
        if name == "q4_k_m" and self.traits.falcon:
            return "Q6_K" if number < layers // 16 else "Q5_K" if more else "Q4_K"
        if name == "iq3_xxs" and not self.matrix:
            return "Q4_K" if first else "Q3_K"
        early = {"q2_k_s": "Q4_K", "iq3_m": "Q4_K"} | ({} if self.traits.falcon else {"q4_k_s": "Q5_K"})
        early |= {"q4_0": "Q4_1", "q5_0": "Q5_1"} if self.matrix else {"iq4_nl": "Q5_K", "iq4_xs": "Q5_K"}
        if first and name in early:
            return early[name]
        if name == "iq3_m" and self.traits.experts == 8 and more:
            return "Q4_K"
        return "Q6_K" if more and name in ("q4_k_m", "q5_k_m") else self.main

    def of_output(self) -> str:
        if self.traits.falcon:
            return "Q4_K" if self.name == "q3_k_l" else self.main
        if self.traits.experts == 8:
            small = (
                "q2_k",
                "iq3_xs",
                "iq3_xxs",
                "q3_k_s",
                "q3_k_m",
                "iq4_nl",
                "q4_k_s",
                "q4_k_m",
                "iq3_s",
                "iq3_m",
                "iq4_xs",
            )
            return "Q5_K" if self.name in small else self.main
        more = {"q2_k": "Q3_K", "iq3_xxs": "IQ3_S", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K", "iq3_m": "Q4_K"}
        return more.get(self.name, self.main)


def more_bits(number: int, count: int) -> bool:
    """The first and the last eighth, and every third between."""
    return number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2
