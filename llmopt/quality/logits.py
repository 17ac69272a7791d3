"""Logits of a model for given token ids, through transformers or llama.cpp; everything here runs inside a worker."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.core.errors import ModelError, UsageError, WorkerError
from llmopt.core.machine import available_cores
from llmopt.quality import LLAMA_CPP_WINDOWS

# Token ids → logits, tensor on the CPU of shape (tokens or tokens − 1, vocabulary), row i predicts token i + 1.
Logits = Callable[[Sequence[int]], Any]
# ggml's numbers of tensor types that a KV cache may have (ggml.h).
GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
FLASH_ATTENTION_ON = 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is to be loaded; ``base`` is only read where the artifact holds no weights of its own (``in-memory``)."""

    path: str
    base: str = ""
    format: str = "plain"
    kv_cache_dtype: str = "auto"


@contextlib.contextmanager
def hf_logits(source: Source) -> Iterator[Logits]:
    """Through transformers; a quantized checkpoint is run as transformers runs it. Raises ModelError."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device_map = "cpu" if not gpus else "cuda" if gpus == 1 else "auto"
    model = dynamic_int8(source.base) if source.format == "in-memory" else hf_model(source, device_map)
    model.eval()

    def logits(ids: Sequence[int]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0].cpu()

    yield logits


def hf_model(source: Source, device_map: str) -> Any:
    """A checkpoint as transformers loads it, in its own number type."""
    from transformers import AutoModelForCausalLM

    if source.format == "auto-round":
        import auto_round  # noqa: F401  # registers its kernels with transformers
    try:
        return AutoModelForCausalLM.from_pretrained(
            source.path, dtype="auto", device_map=device_map, use_safetensors=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError, RuntimeError, ImportError, AttributeError, TypeError, NameError) as error:
        words = " ".join(str(error).split())[:200]
        raise ModelError(f"transformers does not load {source.path}: {words}", hint="quantize again") from error


def dynamic_int8(base: str) -> Any:
    """torch's dynamic quantization: weights to int8 when loaded, activations at each call; CPU only, never saved.

    As ``quantize.torch_dynamic`` makes it and ``serve.shims.hf_server`` serves it: every linear layer but the head.
    """
    import warnings

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    head = model.get_output_embeddings()
    names = [n for n, m in model.named_modules() if type(m) is torch.nn.Linear and m is not head]
    config = dict.fromkeys(names, torch.ao.quantization.default_dynamic_qconfig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # said in the table of quantizations already
        return torch.ao.quantization.quantize_dynamic(model.eval(), config, dtype=torch.qint8)


@contextlib.contextmanager
def llamacpp_logits(source: Source) -> Iterator[Logits]:
    """Through llama.cpp itself, so that its own arithmetic (activations in 8 bits, its KV cache) is part of the proof."""
    import cyllama.llama.llama_cpp as llama
    import torch

    class Model(llama.LlamaModel):  # type: ignore[misc]
        @property
        def n_vocab(self) -> int:
            """cyllama 0.2.18 reads this attribute in get_logits_ith and does not define it."""
            return int(self.get_vocab().n_vocab)

    params = llama.LlamaModelParams()
    params.n_gpu_layers = 0
    try:
        model = Model(str(gguf_of(source.path)), params)
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"llama.cpp does not load {source.path}: {error}", hint="quantize again") from error

    def logits(ids: Sequence[int]) -> Any:
        context = llama.LlamaContext(model, context_options(llama, len(ids), source.kv_cache_dtype))
        batch = llama.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for place, token in enumerate(ids):
            batch.add(token, place, [0], True)
        if context.decode(batch) not in (0, None):
            raise WorkerError("llama.cpp could not decode a window of text")
        # Through a C array: torch.tensor over lists of Python floats takes ten times as long.
        rows = (array("f", context.get_logits_ith(place)) for place in range(len(ids)))
        return torch.stack([torch.frombuffer(row, dtype=torch.float32) for row in rows])

    yield logits


def context_options(llama: Any, tokens: int, kv_cache_dtype: str) -> Any:
    """One window in one batch, with its share of the cores; a quantized V cache only works with flash attention."""
    options = llama.LlamaContextParams()
    options.n_ctx = options.n_batch = options.n_ubatch = tokens
    options.n_threads = options.n_threads_batch = max(1, available_cores() // LLAMA_CPP_WINDOWS)
    if kv_cache_dtype != "auto":
        if kv_cache_dtype not in GGML_TYPES:
            raise UsageError(f"llama.cpp has no KV cache of type {kv_cache_dtype!r}", hint=", ".join(GGML_TYPES))
        options.type_k = options.type_v = GGML_TYPES[kv_cache_dtype]
        options.flash_attn_type = FLASH_ATTENTION_ON
    return options


def gguf_of(path: str) -> Path:
    """The GGUF file itself, or the first shard of the one in the folder. Raises ModelError."""
    place = Path(path)
    files = [place] if place.is_file() else sorted(place.glob("*.gguf"))
    if not files:
        raise ModelError(f"{path} holds no GGUF file", hint="quantize again")
    return files[0]
