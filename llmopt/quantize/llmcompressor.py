"""GPTQ, AWQ, rounding and FP8 through llm-compressor, the living successor of AutoGPTQ and AutoAWQ; in compressed-tensors.

Calibrated methods go through the model layer by layer: what a layer gives to the next is kept, the rest is not.
Methods without calibration can go shard by shard through the files, so that a model larger than the memory is no obstacle.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from llmopt.core.errors import ModelError, UsageError
from llmopt.quantize.checks import (
    give_freed_memory_back_now,
    in_our_words,
    load_model,
    read_samples,
    require_causal_lm,
    shard_size,
    used,
    weights_bytes,
)
from llmopt.quantize.steps import step, without_bars

CALIBRATED = ("gptq", "awq", "w8a8")
DATA_FREE = ("rtn", "fp8")
# The head and the embeddings stay in 16 bits, as engines expect them.
IGNORED = ["lm_head"]
IGNORED_BY_NAME = ["re:.*lm_head$", "re:.*embed[^.]*$", "re:.*wte$", "re:.*wpe$"]
# Layers of one shape that GPTQ works on together: query and output, key and value, gate and up.
TOGETHER = 2


def run(model: str, out: str, settings: dict[str, Any], samples: str) -> dict[str, Any]:
    """Quantize ``model`` into the folder ``out``. Runs in a worker.

    ``settings["method"]`` is one of ``gptq awq w8a8 rtn fp8``; ``bits``, ``group_size`` (0: one scale per row) and
    ``symmetric`` say the rest.  Raises UsageError, ModelError and WorkerError with a next step.
    """
    without_bars()
    require_causal_lm(model)
    method = settings["method"]
    if method not in CALIBRATED + DATA_FREE:
        raise UsageError(f"llm-compressor makes no {method!r}", hint=f"known: {', '.join(CALIBRATED + DATA_FREE)}")
    limit = settings.get("max_memory_bytes")
    with in_our_words("llm-compressor"):
        if method in DATA_FREE and limit is not None and limit < weights_bytes(model):
            return by_shards(model, out, settings)
        return by_layers(model, out, settings, samples)


def by_layers(model: str, out: str, settings: dict[str, Any], samples: str) -> dict[str, Any]:
    """Load the model, quantize it layer by layer, save it."""
    import torch
    from llmcompressor import oneshot

    calibrated = settings["method"] in CALIBRATED
    ids = read_samples(samples) if calibrated else []
    torch.manual_seed(settings.get("seed", 0))
    if not torch.cuda.is_available():
        keep_memory_unpinned()
    with tempfile.TemporaryDirectory(prefix="offload-", dir=out) as offload:
        network = load(model, settings, offload)
        modifiers = recipe(settings)
        losses = watch(network, modifiers, calibrated)
        oneshot(model=network, recipe=modifiers, **(calibration(ids) if calibrated else {}))
        fallbacks = [name for m in modifiers for name in getattr(m, "_rtn_fallback_module_names", [])]
        count = quantized_layers(network)
        network.save_pretrained(out, save_compressed=True, **shard_size(settings))
    if fallbacks and len(fallbacks) == count:
        raise ModelError(
            "no layer could be quantized by its activations (no Hessian can be inverted)",
            hint="more and more varied calibration text: --samples 256 --calibration FILE",
        )
    found = {"quantized_layers": count, "losses": losses, "rounded_instead": fallbacks}
    return {name: value for name, value in found.items() if value} | (used(ids) if calibrated else {})


def load(model: str, settings: dict[str, Any], offload: str) -> Any:
    """The model in memory; with ``weights_memory_bytes`` only so much of it, the rest stays in files under ``offload``."""
    own = {"device_map": settings["device_map"]} if settings.get("device_map") else {}
    limit = settings.get("weights_memory_bytes")
    if limit is None or limit >= weights_bytes(model):
        return load_model(model, **own)
    from compressed_tensors.offload import load_offloaded_model

    with load_offloaded_model():
        return load_model(
            model, **({"device_map": "auto_offload"} | own), max_memory={"cpu": limit}, offload_folder=offload
        )


def scheme(settings: dict[str, Any]) -> dict[str, Any]:
    """What a linear layer becomes, in compressed-tensors' words."""
    method = settings["method"]
    if method == "fp8":
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
        activations = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
        return {"weights": weights, "input_activations": activations | {"observer": None}}
    weights = {"num_bits": settings["bits"], "type": "int", "symmetric": settings.get("symmetric", True)}
    if settings.get("observer"):
        weights["observer"] = settings["observer"]
    if method == "w8a8":
        activations = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
        return {
            "weights": weights | {"strategy": "channel"},
            "input_activations": activations | {"observer": None},
        }
    groups = settings.get("group_size") or 0
    strategy = {"strategy": "group", "group_size": groups} if groups > 0 else {"strategy": "channel"}
    return {"weights": weights | strategy}


def recipe(settings: dict[str, Any]) -> list[Any]:
    """The modifiers, in order."""
    import torch
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier

    groups = {"config_groups": {"group_0": {"targets": ["Linear"], **scheme(settings)}}, "ignore": IGNORED}
    # "static" orders columns by activation while quantizing and stores them in their own order: free at run time.
    gptq = {
        "dampening_frac": settings.get("damping", 0.01),
        "actorder": "group" if settings.get("desc_act") else "static",
        # Its own rule asks for the memory of a GPU.
        "batched_quantization": "auto" if torch.cuda.is_available() else TOGETHER,
    }
    method = settings["method"]
    if method in ("gptq", "w8a8"):
        return [GPTQModifier(**gptq, **groups)]
    if method == "awq":
        # The library rounds to nearest after smoothing. Rounding by GPTQ brought the bundled model four times nearer to its
        # base than that, and 6 steps of the grid in place of 20 cost nothing in quality.
        nearest = settings.get("rounding", "gptq") == "nearest"
        if settings.get("grid_samples"):
            search_on_some(settings["grid_samples"])
        rounding = QuantizationModifier(**groups) if nearest else GPTQModifier(**gptq, **groups)
        return [AWQModifier(n_grid=settings.get("grid", 6)), rounding]
    return [QuantizationModifier(**groups)]


def search_on_some(most: int) -> None:
    """AWQ tries each step of its grid on so many of the samples at most; what it takes from their activations is of all of them."""
    import torch
    from llmcompressor.modifiers.transform import AWQModifier

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def outputs(self: Any, module: Any) -> list[Any]:
        cache = self._parent_args_cache[module]
        found = [module(**cache.fetch(place)) for place in range(0, len(cache), max(1, -(-len(cache) // most)))]
        return [one[0] if isinstance(one, tuple) else one for one in found]

    AWQModifier._run_samples = outputs


def calibration(samples: list[list[int]]) -> dict[str, Any]:
    """``oneshot``'s arguments for token ids as they are.

    One sample at a time, the library's default: eight at once took 3 % more memory with GPTQ and 12 % with AWQ, and 5 to
    15 % less time.
    """
    from datasets import Dataset

    rows = {"input_ids": samples, "attention_mask": [[1] * len(sample) for sample in samples]}
    return {
        "dataset": Dataset.from_dict(rows),
        "max_seq_length": max(map(len, samples)),
        "num_calibration_samples": len(samples),
        "shuffle_calibration_samples": False,
    }


def watch(network: Any, modifiers: list[Any], calibrated: bool) -> dict[str, float]:
    """Print a step after each layer; returns a dict that fills with the loss of each, where the method has one."""
    from llmcompressor.core import LifecycleCallbacks
    from llmcompressor.modifiers.gptq import base
    from llmcompressor.utils.pytorch.module import infer_sequential_targets

    names = {module: name for name, module in network.named_modules()}
    targets = infer_sequential_targets(network) if calibrated else []
    # Two modifiers that calibrate go through the model one after the other.
    passes = max(1, sum(modifier.requires_calibration_data for modifier in modifiers))
    total = passes * (1 + sum(type(module).__name__ in targets for module in names))
    layers: dict[str, float] = {}
    pending: list[float] = []
    smoothed: list[float] = []
    done = 0

    class Losses(base.CompressionLogger):  # type: ignore[misc]
        """llm-compressor logs a loss with two decimals; here it is as it was."""

        def set_results(self, name: str | None = None, loss: float | None = None) -> None:
            pending.append(loss or 0.0)
            super().set_results(name=name, loss=loss)

    ended = LifecycleCallbacks.sequential_epoch_end

    def layer_ended(modules: list[Any], **rest: Any) -> Any:
        nonlocal done
        value = ended(modules, **rest)
        for modifier in modifiers:
            pending.extend(smoothing_losses(modifier, seen=smoothed))
        quantized = [names[m].replace(".", "/") for m in modules if hasattr(m, "quantization_scheme") and m in names]
        what = os.path.commonpath(quantized).replace("/", ".") if quantized else "what comes before the layers"
        loss = sum(pending) if pending else None
        pending.clear()
        if loss is not None:
            layers[what] = loss
        done += 1
        give_freed_memory_back_now()
        step(done, total, what, loss)
        return value

    base.CompressionLogger = Losses
    LifecycleCallbacks.sequential_epoch_end = layer_ended
    return layers


def smoothing_losses(modifier: Any, seen: list[float]) -> list[float]:
    """The losses that AWQ found since the last call; raises ModelError when it knows no layer of this architecture.

    For such an architecture llm-compressor logs a line and rounds to nearest, under the name of AWQ.
    """
    if not hasattr(modifier, "_error_metrics"):
        return []
    if not modifier._resolved_mappings and not seen:
        raise ModelError(
            "AWQ does not know which layers of this architecture belong together",
            hint="use gptq-int4-g128, which needs no such table",
        )
    new = [float(found["best_error"]) for found in modifier._error_metrics[len(seen) :]]
    seen.extend(new)
    return new


def quantized_layers(network: Any) -> int:
    return sum(hasattr(module, "quantization_scheme") for module in network.modules())


def by_shards(model: str, out: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Quantize file by file: the library holds a few shards at a time, not the model."""
    import torch
    from compressed_tensors.entrypoints.convert import Converter
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor import model_free_ptq

    total = len(list(Path(model).glob("*.safetensors")))
    done = 0

    class Counting(Converter):  # type: ignore[misc]
        """Asked once for each shard: casts to bf16, as a loaded model is, so that both roads give the same artifact."""

        def process(self, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            done += 1
            step(done, total, "shards")
            return {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}

        def validate(self, tensors: dict[str, Any]) -> dict[str, Any]:
            return tensors

        def update_config(self, config: Any) -> Any:
            return config

        def get_dependencies(self, weight_name: str) -> set[str]:
            return set()

    model_free_ptq(
        model_stub=model,
        save_directory=out,
        scheme=QuantizationScheme(targets=["Linear"], **scheme(settings)),
        ignore=IGNORED_BY_NAME,
        converter=Counting(),
    )
    return {"shards": total}


def keep_memory_unpinned() -> None:
    """Without an accelerator llm-compressor's cache dies in ``Tensor.pin_memory``; pinning is only an optimisation."""
    import torch

    torch.Tensor.pin_memory = lambda self, *_, **__: self
