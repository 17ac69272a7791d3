"""The one document that the terminal, Markdown, HTML and JSON reports are made of.

``llmopt recommend --json`` prints it.  Its parts; unknown is null everywhere::

    schema, kind           2, "ranking"
    goal                   optimize ("cost,quality": the first first), limits, filters, price_per_hour
    base, machine          the model's name; cpu, gpus, memory of the machine (core.domain.Machine)
    workload               of the newest run; all others have the same but for their load level
    runs_left_out          how many runs could not be compared;  left_out: how many by what was another
    skipped                files that were no whole run: {file, reason};  copies: records that lay there twice
    forced                 whether runs that are unlike were put together (--force)
    ranked, rejected       up to --top of them;  ranked_in_all, rejected_in_all: how many there are
    rejected_by            how many configurations each limit alone rejects: the largest binds
    relaxation             null, or what must give when nothing passes: binding, each, joint (recommend.relaxation)

A row of ``ranked`` or ``rejected``::

    label, key             its name here and a hash of artifact and options
    rank, tie_group, on_front, knee, beats_next {label, in, probability, over}
    case                   artifact {quantization, label, bits_per_weight, size_bytes, …}, serve, workload, backend
    point                  {load, level, why, number}: the load at which everything below was taken
    curve                  every load measured: {level, load, runs, status, saturated, chosen, run_ids, metrics}; metrics
                           holds the distributions {mean, p50 … max, n} under the keys of a record (docs/metrics.md)
    metrics, intervals     of the point;  quality: the artifact's proof, whole
    numbers                headline figures and those of the goal: {value, unit, low, high, over, evidence, at}
    memory                 the split: weights_bytes, kv_cache_bytes, activation_bytes, rest_bytes, total_bytes, …
    cost                   null without --price-per-hour: per_1m_output_tokens, per_1m_input_tokens,
                           per_1m_tokens_blended, interval_output, at, monthly (recommend.cost.monthly)
    against_baseline       {label, load, changes {metric: {of, before, after, ratio, low, high, over}}, own_points, unlike}:
                           at one load of both (null where there is none); own_points {load_before, load_after, changes}
                           where each is judged at another
    diagnosis              [{code, words, next, evidence}], a closed list (recommend.diagnosis)
    verdict, evidence, runs, reasons (of ranked) or because (of rejected)

Quality against bits is ``metrics.kl`` over ``case.artifact.bits_per_weight``; a waterfall of steps is another document
(``kind`` "steps", recommend.steps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llmopt.core.domain import Goal, Recommendation

SCHEMA = 2  # 2: a baseline says what was forced together (unlike), and each is compared at its own point too
ONLY_RANKED = ("rank", "tie_group", "on_front", "knee", "beats_next", "reasons")
SKIPPED_SHOWN = 20


def ranking_document(
    goal: Goal,
    ranked: Sequence[Recommendation],
    rejected: Sequence[Recommendation],
    *,
    machine: dict[str, Any],
    workload: dict[str, Any],
    base: str,
    left_out: Mapping[str, int],
    ranked_in_all: int | None = None,
    rejected_in_all: int | None = None,
    rejected_by: Mapping[str, int] | None = None,
    relaxation: dict[str, Any] | None = None,
    skipped: Sequence[dict[str, str]] = (),
    copies: int = 0,
    forced: bool = False,
) -> dict[str, Any]:
    """JSON-ready; ``ranked`` best first, each with its reasons, ``rejected`` with what rejected it."""
    return {
        "schema": SCHEMA,
        "kind": "ranking",
        "goal": {
            "optimize": goal.optimize,
            "limits": [asdict(limit) for limit in goal.limits],
            "price_per_hour": goal.price_per_hour,
            "filters": {n: list(getattr(goal, n)) for n in ("backends", "quantizations", "exclude", "licences")},
        },
        "base": base,
        "machine": machine,
        "workload": workload,
        "runs_left_out": sum(left_out.values()),
        "left_out": dict(left_out),
        "files_skipped": len(skipped),
        "skipped": list(skipped[:SKIPPED_SHOWN]),
        "copies": copies,
        "forced": forced,
        "ranked_in_all": len(ranked) if ranked_in_all is None else ranked_in_all,
        "rejected_in_all": len(rejected) if rejected_in_all is None else rejected_in_all,
        "rejected_by": dict(rejected_by or {}),
        "relaxation": relaxation,
        "ranked": [{n: v for n, v in row(r).items() if n != "because"} for r in ranked],
        "rejected": [{n: v for n, v in row(r).items() if n not in ONLY_RANKED} for r in rejected],
    }


def row(found: Recommendation) -> dict[str, Any]:
    """Shallow: the parts are documents already."""
    document = {name: getattr(found, name) for name in found.__dataclass_fields__}
    return document | {name: list(document[name]) for name in ("reasons", "because", "curve", "diagnosis")}
