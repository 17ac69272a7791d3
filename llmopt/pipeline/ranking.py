"""From runs to the document of a ranking; light, since a question about a stored run starts no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmopt.core.domain import Goal, Measurement
from llmopt.core.licences import licence_of_artifact
from llmopt.core.run_files import Skipped
from llmopt.core.run_table import RunTable
from llmopt.recommend.candidates import comparable
from llmopt.recommend.constraints import on_memory
from llmopt.recommend.cost import Api
from llmopt.recommend.rank import memory_axis, recommend
from llmopt.report.document import ranking_document


def rank_runs(
    runs: list[Measurement] | RunTable,
    goal: Goal,
    *,
    force: bool = False,
    top: int | None = None,
    baseline: str | None = None,
    api: Api | None = None,
    skipped: Sequence[Skipped] = (),
    copies: int = 0,
) -> dict[str, Any]:
    """The ranking document of what can be compared among these runs. Raises Inconclusive without any."""
    group = comparable(runs, force=force, price_per_hour=goal.price_per_hour)
    goal = on_memory(goal, memory_axis(group.candidates).metric)
    found = recommend(group.candidates, goal, top=top, baseline=baseline, api=api, licence=licence_of_artifact)
    return ranking_document(
        goal,
        found.ranked,
        found.rejected,
        machine=group.machine,
        workload=group.workload,
        base=group.base,
        left_out=group.left_out,
        ranked_in_all=found.ranked_in_all,
        rejected_in_all=found.rejected_in_all,
        rejected_by=found.rejected_by,
        relaxation=found.relaxation,
        skipped=[asdict(s) for s in skipped],
        copies=copies,
        forced=group.forced,
    )


def quality_of_record(artifact: dict[str, Any], kv_cache_dtype: str = "auto") -> dict[str, Any] | None:
    """The quality that lies with the artifact of a run's record, served so: it may have been measured after the run."""
    path = artifact.get("path")
    if not path or not Path(path).is_dir():
        return None
    from llmopt.pipeline.proving import quality_of_stored

    return quality_of_stored(artifact, kv_cache_dtype)
