"""Numbers of a config that decide the KV cache and the positions: what no model has is refused, not computed with."""

from __future__ import annotations

from llmopt.core.errors import ModelError
from llmopt.core.kv_cache import MOST_STRETCHED, POSITIONS, WINDOWED
from llmopt.estimate.shape import Reader

COUNTS = (*WINDOWED.values(), "num_kv_shared_layers", "attn_layer_period", "full_attention_interval", "model_max_length",
          *POSITIONS)  # fmt: skip


def check_cache(c: Reader) -> None:
    """Raises ModelError."""
    for name in COUNTS:
        c.count(name)
    shared = c.count("num_kv_shared_layers")
    if shared and shared >= c.layers:
        raise odd(c, f"num_kv_shared_layers is {shared} of {c.layers} layers")
    attends = c.get("num_attention_heads", "n_head", "n_heads", "num_heads") is not None and not c.get("kv_lora_rank")
    if attends and c.heads % c.kv_heads:
        raise odd(c, f"{c.kv_heads} heads of keys for {c.heads} heads")
    ropes = c.get("rope_parameters", "rope_scaling")
    tables = [ropes, *ropes.values()] if isinstance(ropes, dict) else []
    for table in tables:
        factor = table.get("factor") if isinstance(table, dict) else None
        if factor is not None and not stretches(factor):
            raise odd(c, f"the factor of its RoPE is {factor!r}")


def stretches(factor: object) -> bool:
    return isinstance(factor, (int, float)) and not isinstance(factor, bool) and 0 < factor < MOST_STRETCHED


def odd(c: Reader, what: str) -> ModelError:
    return ModelError(f"{c.place}: {what}, which no model has", hint="restore the file")
