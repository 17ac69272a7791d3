"""The one document that the terminal, Markdown and JSON reports are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmopt.core.domain import Goal, Recommendation

LEFT_OUT = ("rank", "tie_group", "on_front", "reasons", "because")


def ranking_document(
    goal: Goal,
    ranked: Sequence[Recommendation],
    rejected: Sequence[Recommendation],
    *,
    machine: dict[str, Any],
    workload: dict[str, Any],
    base: str,
    left_out: int,
) -> dict[str, Any]:
    """JSON-ready; ``ranked`` best first, each with its reasons, ``rejected`` with what rejected it."""
    return {
        "schema": 1,
        "goal": {"optimize": goal.optimize, "limits": [asdict(limit) for limit in goal.limits]},
        "base": base,
        "machine": machine,
        "workload": workload,
        "runs_left_out": left_out,
        "ranked": [
            {
                "rank": r.rank,
                "tie_group": r.tie_group,
                "on_front": r.on_front,
                **evidence(r),
                "reasons": list(r.reasons),
            }
            for r in ranked
        ],
        "rejected": [{**evidence(r), "because": list(r.because)} for r in rejected],
    }


def evidence(found: Recommendation) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if name not in LEFT_OUT}
