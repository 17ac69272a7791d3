"""Everything that a run's doubts may look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmopt.core.domain import RequestTrace, Workload


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that a doubt may look at. ``lateness_s`` is how late the client sent what was due, ``lag_s`` how late it

    read what the kernel had received; p99, or the largest of few.  ``waited_share``: of its time, in long waits for a processor.
    """

    traces: Sequence[RequestTrace]
    workload: Workload
    lateness_s: float = 0.0
    lag_s: float = 0.0
    waited_share: float = 0.0
    asked_rate: float | None = None
    achieved_rate: float | None = None
    ceiling_share: float | None = None
    user_stamped_share: float = 0.0
    reused_prompts: int = 0
    until_reached: bool = True
    stopped: str | None = None
    steal_share: float = 0.0
    throttled: bool = False
    foreign_gpu_processes: bool = False
    server_survived: bool = True
    server: Mapping[str, Any] = field(default_factory=dict)  # what the server counted: ``server_side.window``
    agreement: Mapping[str, Any] = field(default_factory=dict)  # of both clocks: ``agreement.compare``
    memory: Mapping[str, Any] = field(default_factory=dict)  # ``memory.memory_split``
    kv_usage_peak: float | None = None
    good: Sequence[RequestTrace] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "good", [t for t in self.traces if t.ok])
