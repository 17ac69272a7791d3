"""What is expected of configurations before they are measured, for a search that measures the likely ones first."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmopt.core.domain import Quantization, ServeOptions, Workload
from llmopt.core.errors import ModelError, UsageError
from llmopt.estimate.calibration_runs import with_threads
from llmopt.estimate.efficiency import Knowledge
from llmopt.estimate.knowledge import knowledge_of
from llmopt.estimate.load import Load
from llmopt.estimate.memory import Case, Devices, memory_of
from llmopt.estimate.peak import this_peak
from llmopt.estimate.roofline import Peak
from llmopt.estimate.source import Source, open_source
from llmopt.estimate.speed import DEVIATIONS, cannot_say, figures_at, question

# Metrics of a run, as a goal names them, and the figure that predicts each.
FIGURES = {
    "output_tps": "output_tps",
    "requests_per_s": "requests_per_s",
    "tps": "tps",
    "tpot": "itl_s",
    "itl": "itl_s",
    "e2e": "e2e_s",
}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """``value`` in the metric's own unit; ``error``: its standard deviation as a share."""

    value: float
    error: float


Asked = tuple[Quantization, ServeOptions, Workload]

source_of = functools.cache(open_source)


def prior(
    model: Path, asked: Sequence[Asked], metric: str, results: Sequence[Path] | None = None
) -> list[Expected | None]:
    """Of each question on this machine, in order; ``None`` where the estimate has nothing to say.

    ``results``: folders whose runs correct the figures; default: where llmopt writes them.
    """
    if metric not in FIGURES or not asked:
        return [None] * len(asked)
    peak = this_peak()
    if peak is None:
        return [None] * len(asked)
    knowledge = knowledge_of(results, peak)
    return [expected(model, one, metric, peak, knowledge) for one in asked]


def expected(model: Path, asked: Asked, metric: str, peak: Peak, knowledge: Knowledge) -> Expected | None:
    quantization, options, workload = asked
    if workload.load != "closed" or workload.prefix_tokens:  # the estimate knows no cache of prefixes
        return None
    users = min(workload.concurrency, options.max_num_seqs)
    try:
        source: Source = source_of(str(model))
        layout, weights = source.in_layout(quantization.name, quantization.format)
        count = options.tensor_parallel_size or 1
        case = Case(
            shape=source.shape, layout=layout, weights=weights, backend=options.backend, kv_dtype=options.kv_cache_dtype,
            load=Load(
                sequences=users, prompt=workload.input_tokens, output=workload.output_tokens,
                step_tokens=options.max_num_batched_tokens, max_num_seqs=options.max_num_seqs,
            ),
            devices=Devices(count=count, tensor_parallel=count, kind=peak.kind),
        )  # fmt: skip
        one = question(case, with_threads(peak, options.threads), memory_of(case), knowledge=knowledge)
        if cannot_say(one):
            return None
        figure = figures_at(one, users)[FIGURES[metric]]
    except (ModelError, UsageError):
        return None
    value, high = figure["value"], figure["high"]
    if value is None:
        return None
    if metric == "e2e":  # who finds no slot waits for one: the closed loop goes around that much slower
        value, high = (bound * workload.concurrency / users for bound in (value, high))
    return Expected(value=value, error=math.log(high / value) / DEVIATIONS)


def best_of(found: Sequence[Expected | None], *, higher: bool) -> Expected | None:
    """Along a load curve, where the objective is taken at its best load; ``None`` unless all of it is expected."""
    if not found or any(one is None for one in found):
        return None
    known = [one for one in found if one is not None]
    return max(known, key=lambda one: one.value if higher else -one.value)


def without_certainty(one: Expected, least: float) -> Expected:
    """Never surer than that."""
    return replace(one, error=max(one.error, least))
