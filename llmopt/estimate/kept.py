"""What a checkpoint keeps in 16 bits although it is quantized: as its config lists it, by names of modules."""

from __future__ import annotations

import functools
import re
from typing import Any

from llmopt.core.errors import ModelError
from llmopt.estimate.shape import Shape, Tensor

LISTS = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "llm_int8_skip_modules")
OF_ATTENTION = ("q", "k", "v", "o", "qkv", "q_a", "q_b", "kv_b")
OTHERS = {"kv_a": "self_attn.kv_a_proj_with_mqa", "head": "lm_head", "ssm_in": "linear_attn.in_proj_qkvz"}


# Where multimodal checkpoints keep the language model: before or behind "model.", with the dot escaped in an expression.
NESTED = re.compile(r"language_model(?:\\\.|\.(?![*+?]))")
# Of modules that are kept anyway, or that the shape counts in one: that a list names them says nothing about the size.
KEPT_ANYWAY = re.compile(r"vis|audio|projector|merger|embed|norm|lm_head|router|\bmtp\b|\bgate\b|shared_expert_gate")


def listed(said: dict[str, Any]) -> tuple[str, ...]:
    """The patterns of a ``quantization_config``, by the names of a plain language model. Raises ModelError for one that is none."""
    found = [NESTED.sub("", pattern) for name in LISTS for pattern in patterns_of(name, said.get(name))]
    try:
        for pattern in found:
            re.compile(expression(pattern))
    except re.error as error:
        raise ModelError(f"the quantization_config keeps {pattern!r}: {error}", hint="restore the file") from error
    return tuple(found)


def patterns_of(name: str, value: Any) -> list[str]:
    """A name alone is a list of one. Raises ModelError for what is no list."""
    if isinstance(value, str):
        value = [value]
    if value and not isinstance(value, list):
        raise ModelError(f"the quantization_config's {name} is {value!r}, no list", hint="restore the file")
    return [pattern for pattern in value or () if isinstance(pattern, str) and pattern]


def unmatched(shape: Shape, patterns: tuple[str, ...]) -> list[str]:
    """Patterns that keep nothing of the shape and should, one of those that differ in their numbers alone."""
    unlike = {re.sub(r"\d+", "0", pattern): pattern for pattern in reversed(patterns)}
    every = {name for tensor in shape.tensors for name in names(tensor)}
    return [
        pattern
        for pattern in unlike.values()
        if not KEPT_ANYWAY.search(pattern) and not any(one_of((pattern,)).search(name) for name in every)
    ]


def is_kept(tensor: Tensor, patterns: tuple[str, ...]) -> bool:
    return bool(patterns) and any(one_of(patterns).search(name) for name in names(tensor))


@functools.cache
def one_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{expression(pattern)})" for pattern in patterns))


def expression(pattern: str) -> str:
    """compressed-tensors marks its expressions (``re:``); other lists name modules, or parts of their names, with ``*``."""
    if pattern.startswith("re:"):
        return "^" + pattern.removeprefix("re:")
    return r"(?:^|\.)" + re.escape(pattern).replace(r"\*", r"[^.]*") + r"(?:\.|$)"


def names(tensor: Tensor) -> list[str]:
    """What checkpoints call a part, in the usual spellings."""
    part = tensor.part
    if part in OTHERS:
        own = [OTHERS[part]]
    elif tensor.role == "expert":
        own = [f"mlp.experts.0.{part}_proj", f"block_sparse_moe.experts.0.{part}_proj"]
    elif part.startswith("shared_"):
        stem = part.removeprefix("shared_")
        own = [f"mlp.shared_experts.{stem}_proj", f"mlp.shared_expert.{stem}_proj"]
    else:
        own = [f"{'self_attn' if part in OF_ATTENTION else 'mlp'}.{part}_proj"]
    return own if tensor.layer is None else [f"model.layers.{tensor.layer}.{name}" for name in own]
