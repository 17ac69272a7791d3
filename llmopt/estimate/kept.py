"""What a checkpoint keeps in 16 bits although it is quantized: as its config lists it, by names of modules."""

from __future__ import annotations

import functools
import re
from typing import Any

from llmopt.core.errors import ModelError
from llmopt.estimate.shape import Tensor

LISTS = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "llm_int8_skip_modules")
OF_ATTENTION = ("q", "k", "v", "o", "qkv", "q_a", "q_b", "kv_b")
OTHERS = {"kv_a": "self_attn.kv_a_proj_with_mqa", "head": "lm_head", "ssm_in": "linear_attn.in_proj_qkvz"}


def listed(said: dict[str, Any]) -> tuple[str, ...]:
    """The patterns of a ``quantization_config``. Raises ModelError for one that is none."""
    found = [p for name in LISTS for p in said.get(name) or () if isinstance(p, str) and p]
    try:
        for pattern in found:
            re.compile(expression(pattern))
    except re.error as error:
        raise ModelError(f"the quantization_config keeps {pattern!r}: {error}", hint="restore the file") from error
    return tuple(found)


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
