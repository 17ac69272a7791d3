"""Where a server's memory goes: what the engine says of its parts, beside what was sampled of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOLERANCE = 0.05  # of the sampled whole, by which the parts may differ from it
# In main memory also what no engine counts: libraries that are loaded with the first request, the allocator's arenas,
# threads.  120 to 180 MiB with transformers 5.17 and the bundled model on two cores.
UNCOUNTED_BYTES = 256 << 20
PARTS = ("weights_bytes", "kv_cache_bytes", "activation_bytes", "rest_bytes")


def memory_split(
    facts: Mapping[str, Any],
    *,
    peak_vram_bytes: int | None,
    peak_rss_bytes: int | None,
    kv_usage_peak: float | None = None,
) -> dict[str, Any]:
    """The parts in bytes, their sum against the sampled total, and what the KV cache holds; ``None`` is unknown.

    ``facts`` is the engine's own word (``EngineFacts``).  ``rest_bytes`` is what it held before the model.  ``adds_up`` is
    ``None`` where a part is unknown, unless the known ones alone are more than the whole.
    """
    reserved = facts.get("kv_cache_bytes")
    used = None if reserved is None or kv_usage_peak is None else round(reserved * kv_usage_peak)
    on_gpu = peak_vram_bytes is not None
    split: dict[str, Any] = {
        "weights_bytes": facts.get("weights_bytes"),
        "kv_cache_bytes": reserved,
        "kv_cache_used_bytes": used,
        "activation_bytes": facts.get("activation_bytes"),
        "rest_bytes": facts.get("baseline_bytes"),
        "total_bytes": peak_vram_bytes if on_gpu else peak_rss_bytes,
        "total_is": ("VRAM" if on_gpu else "PSS") if (peak_vram_bytes or peak_rss_bytes) else None,
        "kv_capacity_tokens": facts.get("kv_capacity_tokens"),
        "max_concurrency": facts.get("max_concurrency"),
    }
    split["source"] = "the engine's log" if any(split[part] is not None for part in PARTS) else None
    return split | compared(split, lazy=not on_gpu)


def compared(split: Mapping[str, Any], *, lazy: bool) -> dict[str, Any]:
    """``unexplained_bytes`` (sampled − parts) and ``adds_up``.

    ``lazy``: main memory that was reserved and never touched is in no sample, so of the KV cache anything between what was
    used and what was reserved may be there.
    """
    total, known = split["total_bytes"], [split[part] for part in PARTS if split[part] is not None]
    if total is None or not known:
        return {"unexplained_bytes": None, "adds_up": None}
    most = sum(known)
    least = most - (split["kv_cache_bytes"] or 0) + (split["kv_cache_used_bytes"] or 0) if lazy else most
    unexplained = total - min(max(total, least), most)
    complete = len(known) == len(PARTS)
    fits = abs(unexplained) <= TOLERANCE * total + (UNCOUNTED_BYTES if lazy and unexplained > 0 else 0)
    return {
        "unexplained_bytes": unexplained,
        "adds_up": fits if complete or (unexplained < 0 and not fits) else None,
    }
