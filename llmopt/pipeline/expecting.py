"""What the estimate says of a configuration before anything is made: whether it can fit at all."""

from __future__ import annotations

import functools
from pathlib import Path

from llmopt import serve
from llmopt.core.domain import Goal, Quantization, ServeOptions, Workload
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.machine import this_machine
from llmopt.core.units import show
from llmopt.estimate.load import Load
from llmopt.estimate.memory import Case, Devices, memory_of
from llmopt.estimate.source import Source, open_source
from llmopt.recommend.constraints import MEMORY_LIMIT
from llmopt.serve.room import free_bytes

ERROR = 0.15  # nine of ten estimates are within a tenth: what is above a limit by more than this cannot keep it

source_of = functools.cache(open_source)


def memory_bytes(model: Path, quantization: Quantization, options: ServeOptions, workload: Workload) -> int | None:
    """What tensors need at their peak with all sequences at once; ``None`` where the estimate does not know model or engine."""
    try:
        source: Source = source_of(str(model))
        layout, weights = source.in_layout(quantization.name, quantization.format)
        sequences = options.max_num_seqs
        load = Load(
            sequences=sequences, prompt=workload.input_tokens, output=workload.output_tokens,
            step_tokens=options.max_num_batched_tokens,
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
