"""The shape of a model: every tensor by its size and its part, as far as memory and speed depend on them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from llmopt.core.errors import ModelError

Role = Literal["linear", "expert", "embedding", "position", "head", "norm", "bias", "router", "conv", "state", "vision"]
UNKNOWN = "unknown"  # the type of a model whose size alone was named
MOST_LAYERS, MOST_HEADS = 10_000, 100_000
LARGEST = 1 << 40  # of any number of a config: beyond that it is damaged
BY_HAND = "name its size yourself: --parameters 7e9, for weights alone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """``stack`` matrices of rows × columns (experts), or one vector (a row); ``columns`` is the input width.

    ``part`` is what it does, in the words of config.json's families: q k v o gate up down …; ``layer`` is ``None``
    outside of the layers.
    """

    part: str
    role: Role
    rows: int
    columns: int
    stack: int = 1
    layer: int | None = None

    @property
    def elements(self) -> int:
        return self.rows * self.columns * self.stack

    @property
    def matrix(self) -> int:
        """Elements of one matrix of the stack."""
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``config`` is the language model's own part; ``tied``: the embedding serves as head; ``notes`` are doubts, in words."""

    model_type: str
    config: dict[str, Any]
    tensors: tuple[Tensor, ...]
    tied: bool
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def parameters(self) -> int:
        return sum(t.elements for t in self.tensors)

    @functools.cached_property
    def active_parameters(self) -> int:
        """That one token passes: of the experts those that the router picks, and no row of the embedding but one."""
        share = self.experts_per_token / self.experts if self.experts else 1.0
        passed = 0.0
        for t in self.tensors:
            if t.role == "expert":
                passed += t.elements * share
            elif t.role not in ("embedding", "position", "vision") or (t.role == "embedding" and self.tied):
                passed += t.elements
        return round(passed)

    @property
    def experts(self) -> int:
        return max((t.stack for t in self.tensors if t.role == "expert"), default=0)

    @property
    def experts_per_token(self) -> int:
        """One where the config does not tell it; raises ModelError for a number that is none."""
        return self.told_experts or 1 if self.experts else 0

    @functools.cached_property
    def told_experts(self) -> int:
        inner = self.config.get("ffn_config")  # DBRX
        told = self.config | inner if isinstance(inner, dict) else self.config
        return Reader(config=told, place="config.json").count(*EXPERTS_PER_TOKEN)

    @property
    def layers(self) -> int:
        return 1 + max((t.layer for t in self.tensors if t.layer is not None), default=-1)

    @property
    def vocabulary(self) -> int:
        return next((t.rows for t in self.tensors if t.role in ("head", "embedding")), 0)

    @property
    def hidden(self) -> int:
        return next((t.columns for t in self.tensors if t.role in ("head", "embedding")), 0)

    @property
    def vision(self) -> int:
        """Parameters outside of the language model."""
        return sum(t.elements for t in self.tensors if t.role == "vision")


EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "experts_per_token",
)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A config with the defaults of its family, read strictly: a number that is missing or odd is an error, not a guess."""

    config: dict[str, Any]
    place: str
    defaults: dict[str, Any] = field(default_factory=dict)

    def get(self, *names: str) -> Any:
        """The first of these keys that the config has, else the family's default; ``None`` where neither has one."""
        for names_of in (self.config, self.defaults):
            for name in names:
                if names_of.get(name) is not None:
                    return names_of[name]
        return None

    def number(self, *names: str, otherwise: int | None = None) -> int:
        """A whole number above 0. Raises ModelError."""
        value = self.get(*names)
        if value is None and otherwise is not None:
            return otherwise
        if value is None:
            raise ModelError(f"{self.place} names no {names[0]}", hint=f"is the file whole? Or {BY_HAND}")
        return self.whole(names[0], value)

    def count(self, *names: str) -> int:
        """As ``number``, but nothing, 0 and null are 0."""
        value = self.get(*names)
        return 0 if value in (None, 0) else self.whole(names[0], value)

    def bounded(self, most: int, *names: str) -> int:
        """As ``number``, of what is counted one by one."""
        found = self.number(*names)
        if found > most:
            raise ModelError(f"{self.place}: {names[0]} is {found:,}, which no model has", hint="restore the file")
        return found

    def whole(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ModelError(f"{self.place}: {name} is {value!r}, no number", hint="restore the file")
        if value != int(value) or not 0 < value < LARGEST:
            raise ModelError(f"{self.place}: {name} is {value!r}, which no model has", hint="restore the file")
        return int(value)

    def flag(self, name: bool | str) -> bool:
        """A truth itself, or the key that tells it."""
        return bool(self.get(name)) if isinstance(name, str) else name

    def of_layer(self, name: str, layer: int) -> Any:
        """A value that may be one for all layers or a list with one for each."""
        value = self.get(name)
        if not isinstance(value, list):
            return value
        if layer >= len(value):
            raise ModelError(f"{self.place}: {name} lists {len(value)} layers, there are more", hint="restore the file")
        return value[layer]

    @property
    def hidden(self) -> int:
        return self.number("hidden_size", "n_embd", "d_model")

    @property
    def layers(self) -> int:
        for listed in (self.get("layers_block_type"), self.get("hybrid_override_pattern")):  # Nemotron-H has no number
            if isinstance(listed, (list, str)) and listed and self.get("num_hidden_layers") is None:
                return len(listed)
        return self.bounded(MOST_LAYERS, "num_hidden_layers", "n_layer", "n_layers", "num_layers")

    @property
    def heads(self) -> int:
        return self.bounded(MOST_HEADS, "num_attention_heads", "n_head", "n_heads", "num_heads")

    @property
    def kv_heads(self) -> int:
        if self.get("multi_query") and not self.get("new_decoder_architecture"):
            return 1
        return self.number(
            "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", otherwise=self.heads
        )

    @property
    def head(self) -> int:
        """Width of a head."""
        own = self.get("head_dim", "attention_head_dim", "kv_channels")
        if own is not None:
            return self.whole("head_dim", own)
        if self.hidden % self.heads:
            raise ModelError(
                f"{self.place}: {self.heads} heads do not divide hidden_size {self.hidden}, and it names no head_dim",
                hint="restore the file",
            )
        return self.hidden // self.heads
