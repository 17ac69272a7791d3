"""Logits of a model for given token ids; everything here runs inside a worker."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmopt.core.errors import ModelError, WorkerError

# Token ids → logits, float32 tensor of shape (tokens, vocabulary).
Logits = Callable[[Sequence[int]], Any]


def hf_logits(path: str) -> Logits:
    """Through transformers; a quantized checkpoint is run as transformers runs it."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", device_map=device, use_safetensors=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ModelError(f"transformers does not load {path}: {str(error)[:200]}", hint="quantize again") from error
    model.eval()

    def logits(ids: Sequence[int]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([list(ids)], device=device)).logits[0].float().cpu()

    return logits


def llamacpp_logits(folder: str) -> Logits:
    """Through llama.cpp itself, so that its own arithmetic (activations in 8 bits) is part of the proof."""
    import cyllama.llama.llama_cpp as llama
    import torch

    class Model(llama.LlamaModel):  # type: ignore[misc]
        @property
        def n_vocab(self) -> int:
            """cyllama 0.2.18 reads this attribute in get_logits_ith and does not define it."""
            return int(self.get_vocab().n_vocab)

    params = llama.LlamaModelParams()
    params.n_gpu_layers = 0
    model = Model(str(Path(folder) / "model.gguf"), params)

    def logits(ids: Sequence[int]) -> Any:
        options = llama.LlamaContextParams()
        options.n_ctx = options.n_batch = options.n_ubatch = len(ids)
        context = llama.LlamaContext(model, options)
        batch = llama.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for place, token in enumerate(ids):
            batch.add(token, place, [0], True)
        if context.decode(batch) not in (0, None):
            raise WorkerError("llama.cpp could not decode a window of text")
        # Through a C array: torch.tensor over lists of Python floats takes ten times as long.
        rows = (array("f", context.get_logits_ith(place)) for place in range(len(ids)))
        return torch.stack([torch.frombuffer(row, dtype=torch.float32) for row in rows])

    return logits
