"""Where a server's memory goes: what the engine says of its parts, beside what was sampled of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TOLERANCE = 0.05  # of the sampled whole, by which the parts may differ from it
# In main memory also what no engine counts: libraries that are loaded with the first request, the allocator's arenas,
# threads.  120 to 180 MiB with transformers 5.17 and the bundled model on two cores.  They may be that, and need not be.
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

    ``facts`` is the engine's own word (``EngineFacts``).  ``rest_bytes`` is what it held before the model.  ``adds_up``
    says whether the parts are within ``TOLERANCE`` of the whole; ``None`` where that cannot be told, and ``why`` says so.
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
    """``unexplained_bytes`` (sampled − parts), ``adds_up`` and ``why``.

    ``lazy``: main memory that was reserved and never touched is in no sample, so of the KV cache anything between what was
    used and what was reserved may be there.
    """
    total, known = split["total_bytes"], [split[part] for part in PARTS if split[part] is not None]
    if total is None or not known:
        lacking = "nothing was sampled" if total is None else "the engine tells no part"
        return {"unexplained_bytes": None, "adds_up": None, "why": lacking}
    most = sum(known)
    least = most - (split["kv_cache_bytes"] or 0) + (split["kv_cache_used_bytes"] or 0) if lazy else most
    unexplained = total - min(max(total, least), most)
    adds_up, why = judged(unexplained / total, unexplained, [part for part in PARTS if split[part] is None], lazy=lazy)
    return {"unexplained_bytes": unexplained, "adds_up": adds_up, "why": why}


def judged(share: float, unexplained: int, unknown: Sequence[str], *, lazy: bool) -> tuple[bool | None, str | None]:
    """(``adds_up``, ``why``); known parts that alone are more than the whole are wrong, whatever is unknown."""
    if share < -TOLERANCE:
        return False, None
    if unknown:
        return None, f"the engine does not tell {' and '.join(part.removesuffix('_bytes') for part in unknown)}"
    if share <= TOLERANCE:
        return True, None
    if lazy and unexplained <= UNCOUNTED_BYTES:
        return None, (
            f"{share:.0%} of the sample are in no part: libraries and arenas, which no engine counts, may be as large"
        )
    return False, None
