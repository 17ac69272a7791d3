"""What a model needs on GPUs under a load: weights, KV cache, activations, and what the engine takes besides."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.core.errors import UsageError, nearest
from llmopt.core.formats import Layout
from llmopt.core.kv_cache import kv_cache_bytes, positions
from llmopt.estimate.activations import Activations, activations, attention_widths, of_shape
from llmopt.estimate.llamacpp import as_cached
from llmopt.estimate.load import Load
from llmopt.estimate.shape import Reader, Shape
from llmopt.estimate.weights import Weights

OVERHEADS = Path(__file__).with_name("overheads.toml")
SAME_ENGINE = {"rayserve": "vllm", "triton": "vllm"}  # whose replicas are
SPLITS_LAYERS = ("hf", "llamacpp")  # among GPUs, where others share out every layer
EXPANDS_LATENT = ("hf",)
RECURRENT_STATE_BYTES = 4
UNNAMED_POSITIONS = 1 << 20  # the longest that is looked at where the config names no limit


@dataclass(frozen=True, kw_only=True)
class Devices:
    """``memory_bytes`` of one, ``None`` where nobody said; ``tensor_parallel`` of the ``count`` share each layer."""

    count: int = 1
    tensor_parallel: int = 1
    memory_bytes: int | None = None
    name: str = ""
    kind: str = "gpu"


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Of an engine on one device, in bytes; ``utilization``: the share that it takes at its start."""

    context: int
    graphs: int
    utilization: float | None
    block: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """All in bytes, over all devices except ``per_gpu_bytes``; ``total`` = weights + KV cache + activations.

    ``host_bytes``: of these weights what lies in main memory.
    """

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    overhead_bytes: int
    devices: int
    needed_per_gpu_bytes: int
    max_context: int | None = None
    max_concurrency: int | None = None
    peak: str = "prefill"
    host_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.activation_bytes

    @property
    def per_gpu_bytes(self) -> int:
        return -(-(self.total_bytes - self.host_bytes + self.overhead_bytes) // self.devices)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question: this model in this layout, under that engine and load, with a cache of that type."""

    shape: Shape
    layout: Layout
    weights: Weights
    backend: str
    load: Load
    kv_dtype: str | None = None
    devices: Devices = Devices()
    utilization: float | None = None


def working_of(case: Case, load: Load | None = None) -> Activations:
    """What the engine holds while it computes, on each device."""
    return activations(
        case.shape, case.layout, load or case.load, case.backend,
        memory_bytes=case.devices.memory_bytes, device=case.devices.name, cpu=case.devices.kind == "cpu",
        sharing=1 if case.backend in SPLITS_LAYERS else case.devices.tensor_parallel,
    )  # fmt: skip


def overhead_of(backend: str, devices: Devices, utilization: float | None) -> Overhead:
    """Raises UsageError for an engine that is not known."""
    table: dict[str, Any] = tomllib.loads(OVERHEADS.read_text(encoding="utf-8"))
    backend = SAME_ENGINE.get(backend, backend)
    if backend not in table or backend == "cpu":
        raise UsageError(
            f"unknown backend {backend!r}", hint=nearest(backend, [name for name in table if name != "cpu"])
        )
    row = (
        table["cpu"] | {"block_tokens": table[backend].get("block_tokens", 1)}
        if devices.kind == "cpu"
        else table[backend]
    )
    return Overhead(
        context=row["context_bytes"], graphs=row["graph_bytes"], utilization=utilization or row.get("utilization"),
        block=row.get("block_tokens", 1),
    )  # fmt: skip


def memory_of(case: Case) -> Memory:
    """Raises UsageError where the engine is not known, or the config does not tell the size of its cache."""
    overhead = overhead_of(case.backend, case.devices, case.utilization)
    working = working_of(case)
    needed, kv, active, peak = at_peak(case, working, overhead)
    devices = case.devices.count
    reserved = 0
    if overhead.utilization and case.devices.memory_bytes:
        reserved = max(0, int(overhead.utilization * case.devices.memory_bytes) - needed) * devices
    return Memory(
        weights_bytes=held_weights(case), kv_cache_bytes=kv, activation_bytes=active,
        overhead_bytes=(overhead.context + overhead.graphs) * devices + reserved, devices=devices,
        needed_per_gpu_bytes=needed, peak=peak, host_bytes=on_host(case),
        max_context=longest(case, overhead), max_concurrency=most(case, overhead),
    )  # fmt: skip


def at_peak(case: Case, working: Activations, overhead: Overhead) -> tuple[int, int, int, str]:
    """(needed on one device, KV cache, activations, "prefill" or "decode") at the larger of the two moments.

    The KV cache is that of the whole context; where the peak comes before it is full, what was still free of it is taken
    off the activations, so that the parts are the peak together.
    """
    devices = case.devices.count
    grown = cache_bytes(case, case.load.context, case.load.sequences, overhead.block)
    # Engines that reserve their cache hold all of it from the start; transformers' grows with the tokens.
    first = cache_bytes(case, case.load.prompt, case.load.sequences, 1) if case.backend == "hf" else grown
    moments = [("prefill", first, working.prefill * devices), ("decode", grown, working.decode * devices)]
    most, peak = max((kv + active, name) for name, kv, active in moments)
    needed = -(-(held_weights(case) - on_host(case) + most) // devices) + overhead.context + overhead.graphs
    return needed, grown, most - grown, peak


def held_weights(case: Case) -> int:
    """In memory: as stored, except what an engine unpacks for good."""
    if case.backend == "hf" and case.layout.format == "compressed-tensors" and case.layout.bits < case.layout.rest:
        # transformers 5.17 writes them out in 16 bits before its first step.
        return round(case.shape.parameters * case.layout.rest / 8)
    return case.weights.bytes


def on_host(case: Case) -> int:
    """Bytes of the weights that llama.cpp leaves in main memory: a row of the embedding for each token is all it needs there."""
    return case.weights.embedding if case.backend == "llamacpp" and case.devices.kind == "gpu" else 0


def cache_bytes(case: Case, tokens: int, sequences: int, block: int) -> int:
    """Of all sequences over all devices: whole blocks, and heads that each device needs for itself."""
    rounded = -(-tokens // block) * block
    # The type that the weights are computed in, whatever the config says of the stored ones; llama.cpp's own default is f16.
    computed = "float32" if case.layout.rest == 32 and case.backend != "llamacpp" else "float16"
    dtype = computed if case.kv_dtype in (None, "auto") else case.kv_dtype
    config = case.shape.config
    if case.backend == "llamacpp":
        config = as_cached(config, case.load.step_tokens)
    each = kv_cache_bytes(config, rounded, dtype, latent=case.backend not in EXPANDS_LATENT)
    if each is None:
        raise UsageError(
            f"the KV cache of {case.shape.model_type!r} with type {case.kv_dtype or 'auto'} is not known here",
            hint="another --kv-cache-dtype, or leave it out",
        )
    return round(sequences * (each * replication(case) + state_bytes(case.shape)))


def replication(case: Case) -> float:
    """Copies of the cache: with fewer heads of keys than devices that share a layer, each head lies on several."""
    sharing = 1 if case.backend in SPLITS_LAYERS else case.devices.tensor_parallel
    kv = 1 if case.shape.config.get("kv_lora_rank") else attention_widths(case.shape)[2]
    return max(1.0, sharing / kv) if kv else 1.0


@of_shape
def state_bytes(shape: Shape) -> int:
    """Of one sequence in the recurrent layers: their convolutions' last inputs, and the state (float32)."""
    config, found = shape.config, 0
    key = (
        config.get("linear_key_head_dim")
        or config.get("mamba_d_state")
        or config.get("ssm_state_size")
        or config.get("state_size")
        or 0
    )
    for t in shape.tensors:
        if t.role == "conv":
            found += t.elements * 2
        elif t.part == "lightning_out":
            found += t.columns * Reader(config=config, place="config.json").head * RECURRENT_STATE_BYTES
        elif t.part == "ssm_out":
            found += t.columns * int(key) * RECURRENT_STATE_BYTES
    return found


def room(case: Case, overhead: Overhead) -> int | None:
    """Bytes of all devices that an engine may use for tensors; ``None`` where their memory is not known."""
    if case.devices.memory_bytes is None:
        return None
    usable = int(case.devices.memory_bytes * (overhead.utilization or 1.0))
    return (usable - overhead.context - overhead.graphs) * case.devices.count


def fits(case: Case, overhead: Overhead, *, prompt: int, sequences: int) -> bool:
    from dataclasses import replace

    load = replace(case.load, prompt=prompt, output=min(case.load.output, max(0, prompt - 1)), sequences=sequences)
    load = replace(load, prompt=prompt - load.output)
    asked = replace(case, load=load)
    working = working_of(case, load)
    _, kv, active, _ = at_peak(asked, working, overhead)
    return held_weights(case) - on_host(case) + kv + active <= (room(case, overhead) or 0)


def longest(case: Case, overhead: Overhead) -> int | None:
    """The longest context of all sequences at once; 0 where not even the weights fit, ``None`` for unknown memory."""
    if room(case, overhead) is None:
        return None
    limit = positions(case.shape.config) or UNNAMED_POSITIONS
    return last_true(limit, lambda n: fits(case, overhead, prompt=n, sequences=case.load.sequences))


def most(case: Case, overhead: Overhead) -> int | None:
    """The most sequences of the load's length."""
    if room(case, overhead) is None:
        return None
    return last_true(1 << 16, lambda n: fits(case, overhead, prompt=case.load.context, sequences=n))


def last_true(limit: int, holds: Any) -> int:
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
