"""What the estimate says of configurations before they are measured: which cannot fit, and how fast the others should be."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from llmopt import serve
from llmopt.core.domain import Goal, Quantization, ServeOptions, Workload
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.machine import this_machine
from llmopt.core.units import show
from llmopt.estimate.knowledge import USUAL
from llmopt.estimate.load import Load
from llmopt.estimate.memory import Case, Devices, memory_of
from llmopt.estimate.prior import best_of, prior, without_certainty
from llmopt.estimate.source import Source, open_source
from llmopt.pipeline.visiting import Contestant
from llmopt.recommend.beliefs import Prior
from llmopt.recommend.constraints import MEMORY_LIMIT
from llmopt.serve.room import free_bytes

ERROR = 0.15  # nine of ten estimates are within a tenth: what is above a limit by more than this cannot keep it

SUREST, TOO_UNSURE = 0.1, 0.35  # standard deviations, as shares: what is less sure spares no measurement

source_of = functools.cache(open_source)


def memory_bytes(model: Path, quantization: Quantization, options: ServeOptions, workload: Workload) -> int | None:
    """What tensors need at their peak with all sequences at once; ``None`` where the estimate does not know model or engine."""
    try:
        source: Source = source_of(str(model))
        layout, weights = source.in_layout(quantization.name, quantization.format)
        sequences = options.max_num_seqs
        load = Load(
            sequences=sequences, prompt=workload.input_tokens, output=workload.output_tokens,
            step_tokens=options.max_num_batched_tokens, max_num_seqs=options.max_num_seqs,
        )  # fmt: skip
        count = (options.tensor_parallel_size or 1) * (options.pipeline_parallel_size or 1)
        devices = Devices(
            count=count,
            tensor_parallel=options.tensor_parallel_size or 1,
            kind="gpu" if this_machine().gpus else "cpu",
        )
        case = Case(
            shape=source.shape, layout=layout, weights=weights, backend=options.backend, load=load,
            kv_dtype=options.kv_cache_dtype, devices=devices,
        )  # fmt: skip
        return memory_of(case).total_bytes
    except (ModelError, UsageError):
        return None


def cannot_fit(
    model: Path, quantization: Quantization, options: ServeOptions, workload: Workload, goal: Goal
) -> str | None:
    """Why it cannot, by what is free and by ``--max-memory``; the estimate's own error speaks for the configuration."""
    needed = memory_bytes(model, quantization, options, workload)
    if needed is None:
        return None
    least, words = needed * (1 - ERROR), f"it would need {show(needed, 'bytes')} (estimated)"
    free = free_bytes(serve.backend(options.backend), options)
    if least > free:
        return f"{words}, {show(free, 'bytes')} of memory are free"
    for limit in goal.limits:
        if limit.text.startswith(MEMORY_LIMIT) and least > limit.bound:
            return f"{words}, above {limit.text}"
    return None


def priors(
    model: Path,
    contestants: Mapping[str, Contestant],
    metric: str,
    better: Literal["higher", "lower"],
    own: Path,
) -> dict[str, Prior]:
    """What the race may expect of each; nothing unless the estimate is sure enough of all: then runs of this machine taught it.

    Runs from where llmopt usually writes, but for the race's ``own`` folder: they would vouch for themselves.
    """
    asked = {
        label: [(c.case.artifact.quantization, c.case.serve, workload) for workload in c.workloads]
        for label, c in contestants.items()
    }
    folders = [folder for folder in map(Path, USUAL) if folder.is_dir() and folder.resolve() != own.resolve()]
    if not folders:
        return {}
    every = iter(prior(model, [one for questions in asked.values() for one in questions], metric, folders))
    found = {}
    for label, questions in asked.items():
        best = best_of([next(every) for _ in questions], higher=better == "higher")
        if best is None or best.error > TOO_UNSURE:
            return {}
        best = without_certainty(best, SUREST)
        found[label] = Prior(value=best.value, error=best.error)
    return found
