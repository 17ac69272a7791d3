"""Before anything starts: can it work, how large will it be, what will it take?  Reads headers and sources, no weights.

Sizes follow from the tensors' shapes and each layout's bits per weight.  Memory and time are rough and say so: they are
scaled from an earlier run of the same method on this machine, else from runs of the bundled model.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmopt.core.domain import ModelRef
from llmopt.core.environments import Environment, home
from llmopt.core.errors import ModelError, StoreError, UsageError
from llmopt.core.gguf_types import FILE_TYPES
from llmopt.core.units import show
from llmopt.quantize import Method, Route, libraries
from llmopt.quantize.costs import Cost, cost_of
from llmopt.quantize.sizes import Tensor, bits_of, gguf_fallbacks, tensors

HISTORY = "quantize-history.jsonl"
NUMBERS = ("parameters", "tokens", "seconds", "memory_bytes")
LONGEST_NAME, MOST_TENSORS = 256, 1_000_000
COPIES_OF_A_SHARD = 3.5  # 1.34 GiB for files of 270 MiB in fp32, with 0.5 GiB of libraries
MUCH_LARGER = 8  # times: beyond that a run tells little of another model's


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will give and take. Sizes in bytes, ``seconds`` rough; ``fallbacks``: tensors that get another type."""

    size_bytes: int
    bits_per_weight: float
    linears: int
    fallbacks: dict[str, str]
    disk_bytes: int
    memory_bytes: int
    seconds: float
    evidence: str
    doubts: list[str] = field(default_factory=list)


def forecast(model: ModelRef, method: Method, route: Route, settings: dict[str, Any], tokens: int) -> Forecast:
    """Sizes from the shapes, costs from history. ``tokens``: of the calibration, 0 without one."""
    found = tensors(Path(model.path))
    linears = [t for t in found if t.linear]
    size = round(
        sum(t.elements * bits for t, bits in zip(found, bits_of(model, found, method, route, settings), strict=True))
        / 8
    )
    size += 4096 if route.format == "gguf" else 0
    fallbacks = gguf_fallbacks(linears, settings) if route.format == "gguf" else {}
    cost, evidence = scaled(cost_of(method, route), method.name, route, model.parameters, tokens)
    # A GGUF is quantized from one in 16 bits; with a choice of matrix two results lie beside each other.
    beside = model.parameters * 2 + (size if settings.get("imatrix") == "auto" else 0) if route.format == "gguf" else 0
    beside += size if route.spools else 0
    doubts = [f"{len(fallbacks)} tensors get a wider type: their rows are no multiple of 256"] if fallbacks else []
    if route.format == "gguf" and (note := FILE_TYPES[settings["type"]].note):
        doubts.append(f"{method.name}: {note}")
    return Forecast(
        size_bytes=0 if route.format == "in-memory" else size,
        bits_per_weight=round(size * 8 / model.parameters, 3),
        linears=len(linears),
        fallbacks=fallbacks,
        disk_bytes=(size if route.format != "in-memory" else 0) + beside,
        memory_bytes=memory_of(cost, model, route, settings, linears),
        seconds=cost.seconds(model.parameters, tokens),
        evidence=evidence,
        doubts=doubts,
    )


def memory_of(cost: Cost, model: ModelRef, route: Route, settings: dict[str, Any], linears: Sequence[Tensor]) -> int:
    """Of the whole model; of the largest file where the work goes file by file; of one layer where the others wait on disk."""
    files = [file.stat().st_size for file in Path(model.path).glob("*.safetensors")]
    limit: int | None = settings.get("max_memory_bytes")
    if route.by_shards and limit is not None and limit < sum(files):
        return cost.memory_bytes(0) + round(COPIES_OF_A_SHARD * max(files))
    whole = cost.memory_bytes(model.parameters)
    if route.offloads and limit is not None and limit < whole:
        return max(limit, beside_the_weights(cost, linears) + largest_layer_bytes(linears))
    return whole


def beside_the_weights(cost: Cost, linears: Sequence[Tensor]) -> int:
    """The libraries, and the Hessian of the widest layer with its inverse, in float32 (GPTQ, section 3).

    1,020 MiB were measured where this says 730 and 300 MiB of weights were kept in memory (255 M parameters).
    """
    return cost.memory_bytes(0) + 2 * 4 * max((t.row for t in linears), default=0) ** 2


def largest_layer_bytes(linears: Sequence[Tensor]) -> int:
    """In 16 bits, of the tensors whose names share a layer's number."""
    layers: dict[str, int] = {}
    for tensor in linears:
        layer = re.sub(r"(\.\d+)\..*", r"\1", tensor.name)
        layers[layer] = layers.get(layer, 0) + 2 * tensor.elements
    return max(layers.values(), default=0)


def weights_room(model: ModelRef, method: Method, route: Route, limit: int) -> int:
    """How many bytes of weights may stay in memory so that the whole work keeps to ``limit``."""
    linears = [t for t in tensors(Path(model.path)) if t.linear]
    cost, _ = scaled(cost_of(method, route), method.name, route, model.parameters, 0)
    return max(largest_layer_bytes(linears), limit - beside_the_weights(cost, linears))


# --- what cannot work -------------------------------------------------------------------------------------------


def require_possible(
    model: ModelRef, method: Method, route: Route, environment: Environment, tools: bool, device: str
) -> None:
    """Raise what would be raised hours later: an unknown architecture, rows that no group divides, a missing tool.

    ``device``: "cpu" or "cuda"; ``tools``: llama.cpp's own programs are here, which can compute and use an importance matrix.
    """
    linears = [t for t in tensors(Path(model.path)) if t.linear]
    if not linears:
        raise ModelError(f"{model.path} has no linear layer to quantize", hint="is this a language model's folder?")
    if route.format == "gguf":
        require_convertible(model, method, environment, tools)
        return
    types = libraries.causal_lm_types(environment)
    if types is not None and model.model_type not in types:
        raise ModelError(
            f"transformers knows no causal language model of type {model.model_type!r}",
            hint="check model_type in config.json; custom code is not run unless asked for",
        )
    if method.method == "awq" and route.format == "compressed-tensors":
        known = libraries.awq_architectures(environment)
        if known is not None and model.architecture not in known and not llama_like(linears):
            raise ModelError(
                f"llm-compressor has no AWQ mapping for {model.architecture}: it does not know which layers to scale",
                hint="--quant gptq-int4-g128 needs none",
            )
    if route.format == "bitsandbytes" and method.bits == 4 and device == "cpu":
        require_blocks(model, linears)
    elif route.grouped and method.group_size:
        require_groups(model, method, linears)


def require_blocks(model: ModelRef, linears: Sequence[Tensor]) -> None:
    """bitsandbytes' 4-bit kernel on the CPU (0.50.2, tried): rows in blocks of 64, columns in blocks of 32."""
    odd = next((t for t in linears if t.row % 64 or t.shape[-2] % 32), None)
    if odd is not None:
        raise ModelError(
            f"{odd.name} of {model.path} is {odd.shape[-2]} × {odd.row}: bitsandbytes' 4 bits cannot run that without a GPU",
            hint="--quant int8, w8a8-int8 or gguf-q8_0",
        )


def llama_like(linears: Sequence[Tensor]) -> bool:
    """Whether the layers are named as in llm-compressor's default AWQ mapping, which unknown architectures get."""
    return all(any(f".{part}_proj." in t.name for t in linears) for part in ("q", "k", "v", "o", "up", "down"))


def require_groups(model: ModelRef, method: Method, linears: Sequence[Tensor]) -> None:
    size = method.group_size or 1
    odd = [t for t in linears if t.row % size]
    if odd:
        other = next((s for s in (32,) if not any(t.row % s for t in linears)), None)
        raise ModelError(
            f"{odd[0].name} of {model.path} has rows of {odd[0].row}, which groups of {size} do not divide"
            + (f" ({len(odd)} layers in all)" if len(odd) > 1 else ""),
            hint="--quant gptq-int4-g32, or gguf-q4_k_m" if other else "--quant w8a8-int8, int8 or gguf-q8_0",
        )


def require_convertible(model: ModelRef, method: Method, environment: Environment, tools: bool) -> None:
    known = libraries.gguf_architectures(environment)
    if known is not None and model.architecture not in known:
        raise ModelError(
            f"llama.cpp's converter does not know {model.architecture}",
            hint="use a safetensors quantization (gptq-int4-g128, awq-int4-g128, nf4) for this model",
        )
    if FILE_TYPES[method.name.removeprefix("gguf-")].needs_imatrix and not tools:
        raise UsageError(
            f"{method.name} cannot be made without an importance matrix, and llama.cpp's own tools are not here",
            hint="llmopt env create llamacpp --build   (or llama-imatrix and llama-quantize on PATH)",
        )


def require_matrix(method: Method, wanted: str, tools: dict[str, str]) -> None:
    """The importance matrix that was asked for can be used, and one that must be is not declined. Raises UsageError."""
    if wanted == "none":
        if FILE_TYPES[method.name.removeprefix("gguf-")].needs_imatrix:
            raise UsageError(
                f"{method.name} cannot be made without an importance matrix", hint="--imatrix auto, or a file"
            )
        return
    if wanted != "auto" and not looks_like_matrix(Path(wanted)):
        raise UsageError(f"{wanted} is no importance matrix", hint="--imatrix auto, or a file that llama-imatrix wrote")
    needed = ["llama-quantize"] + (["llama-imatrix"] if wanted == "auto" else [])
    if lacking := [name for name in needed if name not in tools]:
        raise UsageError(
            f"--imatrix {wanted} needs llama.cpp's own {' and '.join(lacking)}",
            hint="llmopt env create llamacpp --build   (or have them on the PATH), or --imatrix none",
        )


def looks_like_matrix(file: Path) -> bool:
    """A GGUF file, or the older form: a count of entries, each a length and a tensor's name."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            count, length = struct.unpack("<ii", start)
            name = stream.read(min(max(length, 0), LONGEST_NAME))
    except (OSError, struct.error):
        return False
    return start[:4] == b"GGUF" or (0 < count < MOST_TENSORS and 0 < length < LONGEST_NAME and name.isascii())


def require_room(coming: Forecast, out: Path, max_memory: int | None, name: str) -> None:
    """Raise before work starts when disk or memory will not do, by the forecast."""
    import shutil

    import psutil

    place = next(p for p in (out, *out.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if coming.disk_bytes > free:
        raise StoreError(
            f"{name} needs about {show(coming.disk_bytes, 'bytes')} of disk, {place} has {show(free, 'bytes')} free",
            hint="free space, name another folder (-o DIR), or start all the same: --force",
        )
    available = psutil.virtual_memory().available
    limit = min(available, max_memory) if max_memory else available
    if coming.memory_bytes > limit:
        whose = "--max-memory allows" if limit == max_memory else "are free"
        raise ModelError(
            f"{name} needs about {show(coming.memory_bytes, 'bytes')} of memory ({coming.evidence}),"
            f" {show(limit, 'bytes')} {whose}",
            hint="another method (gguf-* and bitsandbytes need least), a larger machine, or start all the same: --force",
        )


# --- history ----------------------------------------------------------------------------------------------------


def remember(name: str, route: Route, *, parameters: int, tokens: int, seconds: float, memory_bytes: int) -> None:
    """Keep what a run took, for the next forecast on this machine. A folder that cannot be written is no reason to fail."""
    row = {
        "name": name, "format": route.format, "parameters": parameters, "tokens": tokens,
        "seconds": round(seconds, 2), "memory_bytes": memory_bytes,
    }  # fmt: skip
    try:
        home().mkdir(parents=True, exist_ok=True)
        with (home() / HISTORY).open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError:
        return


def scaled(cost: Cost, name: str, route: Route, parameters: int, tokens: int) -> tuple[Cost, str]:
    """The cost corrected by the run of this method whose size is nearest, and in words where it comes from."""
    runs = [r for r in history() if r.get("name") == name and r.get("format") == route.format]
    if not runs:
        return cost, "rough: from the bundled model"
    near = min(runs, key=lambda r: (abs(r["parameters"] - parameters), abs(r["tokens"] - tokens)))
    words = f"from {len(runs)} earlier run{'s' * (len(runs) > 1)} on this machine"
    if not 1 / MUCH_LARGER < parameters / near["parameters"] < MUCH_LARGER:
        words = f"rough: {words}, the nearest of {near['parameters'] / 1e6:,.0f} M parameters"
    return cost.corrected(near), words


def history() -> list[dict[str, Any]]:
    """The runs that were kept; a line that is torn, or lacks a number, is passed over."""
    try:
        lines = (home() / HISTORY).read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and all(isinstance(row.get(n), (int, float)) and row[n] >= 0 for n in NUMBERS):
                found.append(row)
    return [row for row in found if row["parameters"]]
