"""What the quantizers that run on torch share: the model, the samples, and the words for what goes wrong."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmopt.core.errors import LlmoptError, ModelError, UsageError, WorkerError
from llmopt.quantize.steps import without_bars

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
# A piece of a library's message → what to raise; the first that matches counts.
REASONS: tuple[tuple[tuple[str, ...], type[LlmoptError], str, str], ...] = (
    (
        ("positive-definite", "positive definite", "Hessian inversion failed", "linalg.cholesky"),
        WorkerError,
        "the activations of a layer are too alike to quantize it by them (its Hessian cannot be inverted)",
        "more and more varied calibration text: --samples 256 --calibration FILE",
    ),
    (
        (
            "divisible by group",
            "divisible by `group",
            "divisible by quantization group",
            "indivisible",
            "not divisible",
        ),
        UsageError,
        "the group size does not divide the rows of every layer",
        "another group size (gptq-int4-g32), or a method without groups (w8a8-int8, nf4)",
    ),
    (
        ("balance layers", "smooth layer", "smoothlayer", "mappings", "final incomplete set"),
        ModelError,
        "AWQ does not know which layers of this architecture belong together",
        "use gptq-int4-g128, which needs no such table",
    ),
    (
        ("unable to find any modules",),
        ModelError,
        "the model has no linear layers that this method quantizes (GPT-2's are of another kind)",
        "use nf4 or int8 (bitsandbytes), or a GGUF type",
    ),
    (
        ("failed to trace", "TraceError", "torch.fx"),
        ModelError,
        "llm-compressor cannot follow this architecture layer by layer",
        "use a method without calibration (w4a16, fp8, nf4), or a GGUF type",
    ),
)


@contextlib.contextmanager
def in_our_words(library: str) -> Iterator[None]:
    """Turn what a library raises into one line with a next step; exhausted memory and a full disk are the runner's."""
    try:
        yield
    except LlmoptError:
        raise
    except Exception as error:
        if isinstance(error, (MemoryError, OSError)) or "out of memory" in str(error).lower():
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if "No space left" in text or "os error" in text:  # of a library in Rust, which is no OSError here
            raise
        for pieces, kind, message, hint in REASONS:
            if any(piece.lower() in text.lower() for piece in pieces):
                raise kind(f"{message}: {shortened(text)}", hint=hint) from error
        raise WorkerError(f"{library} failed: {shortened(text)}") from error


def shortened(text: str, length: int = 300) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def model_type(model: str) -> str:
    return str(json.loads((Path(model) / "config.json").read_text())["model_type"])


def require_causal_lm(model: str) -> None:
    """Raise ModelError at once, before any weight is read, for an architecture that transformers does not know."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if (kind := model_type(model)) not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"transformers knows no causal language model of type {kind!r}",
            hint="check model_type in config.json; custom code is not run unless asked for",
        )


def import_transformers(model: str, *, long: bool = False) -> None:
    """What takes every quantizer its first seconds, and needs no job yet. Raises ModelError, as the job itself will.

    Before a ``long`` job garbage is collected while importing: it costs half a second, and left where it is for so long it
    makes gaps that no later tensor fills (12 of 575 MiB at GPTQ's peak).
    """
    if long:
        gc.enable()
    without_bars()
    require_causal_lm(model)


def load_model(model: str, **options: Any) -> Any:
    """The model on the CPU or the visible GPUs, in bf16, from safetensors only, without running its own code."""
    import torch
    from transformers import AutoModelForCausalLM

    require_causal_lm(model)
    if torch.cuda.is_available():  # "cpu" would say what is so anyway, and cost 10 of 575 MiB at GPTQ's peak
        options.setdefault("device_map", "auto")
    options.setdefault("dtype", torch.bfloat16)
    return AutoModelForCausalLM.from_pretrained(model, use_safetensors=True, trust_remote_code=False, **options)


def give_freed_memory_back(*, piece_by_piece: bool = False) -> None:
    """glibc keeps freed memory for later, and more the larger the pieces were: 5 % of gptqmodel's peak, at no cost in time.

    ``piece_by_piece`` maps each large piece for itself, for a job that takes few of them twice: else bitsandbytes' peak
    differs by a tenth from run to run, with where the heap happens to have room.
    Not for llm-compressor, which frees and takes the same large pieces over and over: ``give_freed_memory_back_now``.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 17)
        if piece_by_piece:
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 17)


def give_freed_memory_back_now() -> None:
    """Once, also what is free between used blocks; after each of llm-compressor's layers 10 of GPTQ's 580 MiB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def read_samples(path: str) -> list[list[int]]:
    """The calibration samples: token ids, ready made. Raises UsageError when there are none."""
    samples: list[list[int]] = json.loads(Path(path).read_text())["input_ids"] if path else []
    if not samples:
        raise UsageError("this method needs calibration samples and got none", hint="--calibration FILE")
    return samples


def used(samples: list[list[int]]) -> dict[str, int]:
    """What the manifest keeps of the samples."""
    return {"calibration_samples": len(samples), "calibration_tokens": sum(map(len, samples))}


def weights_bytes(model: str) -> int:
    return sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))


def shard_size(settings: dict[str, Any]) -> dict[str, int]:
    """``save_pretrained``'s option for ``settings["shard_bytes"]``, where it is given."""
    return {"max_shard_size": settings["shard_bytes"]} if settings.get("shard_bytes") else {}


def linear_layers(network: Any) -> int:
    """How many of a network's modules are linear layers in 16 or 32 bits."""
    import torch

    return sum(type(module) is torch.nn.Linear for module in network.modules())
