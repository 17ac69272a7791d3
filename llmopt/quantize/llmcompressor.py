"""GPTQ and AWQ through llm-compressor, the living successor of AutoGPTQ and AutoAWQ; output in compressed-tensors."""

from __future__ import annotations

from typing import Any

from llmopt.core.errors import UsageError


def run(model: str, out: str, settings: dict[str, Any], calibration: str) -> dict[str, Any]:
    """Quantize ``model`` into the folder ``out``. Runs in a worker."""
    import torch
    from llmcompressor import oneshot

    from llmopt.quantize.checks import load_model, require_causal_lm

    require_causal_lm(model)
    torch.manual_seed(settings["seed"])
    samples = calibration_samples(model, calibration, settings["samples"], settings["sample_tokens"], settings["seed"])
    network = load_model(model)
    if not torch.cuda.is_available():
        keep_memory_unpinned()
    oneshot(
        model=network,
        dataset=samples,
        recipe=[modifier(settings["modifier"])],
        max_seq_length=settings["sample_tokens"],
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
    )
    network.save_pretrained(out, save_compressed=True)
    return {"calibration_samples": len(samples), "calibration_tokens": sum(len(s["input_ids"]) for s in samples)}


def modifier(name: str) -> Any:
    """The recipe; the output head stays in 16 bits, as engines expect it."""
    if name == "GPTQModifier":
        from llmcompressor.modifiers.gptq import GPTQModifier

        return GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
    from llmcompressor.modifiers.awq import AWQModifier

    return AWQModifier(targets=["Linear"], scheme="W4A16_ASYM", ignore=["lm_head"])


def calibration_samples(model: str, text: str, count: int, length: int, seed: int) -> Any:
    """``count`` windows of ``length`` tokens at seeded places of the text, as a dataset; shape (count, length).

    Raises UsageError when the text is shorter than one window.
    """
    import random
    from pathlib import Path

    from datasets import Dataset
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(Path(model) / "tokenizer.json")).encode(Path(text).read_text(encoding="utf-8")).ids
    if len(ids) < length:
        raise UsageError(
            f"the calibration text has {len(ids)} tokens, one sample needs {length}", hint="give a longer text"
        )
    starts = list(range(0, len(ids) - length + 1, length))
    random.Random(seed).shuffle(starts)
    windows = [ids[start : start + length] for start in starts[:count]]
    return Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * length for _ in windows]})


def keep_memory_unpinned() -> None:
    """Without an accelerator llm-compressor's cache dies in ``Tensor.pin_memory``; pinning is only an optimisation."""
    import torch

    torch.Tensor.pin_memory = lambda self, *_, **__: self
