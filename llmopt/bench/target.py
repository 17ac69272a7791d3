"""Whom a run asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running server. ``pid`` is its process, where it is ours.

    ``metrics_url`` and ``metric_names`` (our keys → the server's names) say what it tells of itself, ``facts`` what it said
    while it loaded; ``vram_before``: bytes in use on each GPU before it was started.  ``adapter_form``: how a request names a
    LoRA adapter in place of the model, made of ``{adapter}`` and ``{model}``.
    """

    base_url: str
    model: str
    pid: int | None = None
    load_s: float | None = None
    usage_per_chunk: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    metrics_url: str | None = None
    metric_names: Mapping[str, str] = field(default_factory=dict)
    facts: Callable[[], Mapping[str, Any]] = dict
    vram_before: Mapping[int, int] | None = None
    adapter_form: str = "{adapter}"
