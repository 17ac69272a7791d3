"""Native ``gptq`` and ``awq`` files through gptqmodel, for engines that want those instead of compressed-tensors.

The only library here that can go on after it was killed: with ``settings["resume_folder"]`` each finished layer is kept
there.  7.6.0 does it for the model types in ``RESUMABLE`` alone; for others a rerun starts over.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmopt.core.errors import StoreError, UsageError
from llmopt.quantize.checks import (
    give_freed_memory_back,
    in_our_words,
    model_type,
    read_samples,
    require_causal_lm,
    shard_size,
    used,
)
from llmopt.quantize.steps import step

METHODS = ("gptq", "awq")
RESUMABLE = ("llama", "qwen3_moe")


def run(model: str, out: str, settings: dict[str, Any], samples: str) -> dict[str, Any]:
    """Quantize ``model`` into the folder ``out``. Runs in a worker of its own: gptqmodel patches transformers on import.

    ``settings["method"]`` is ``gptq`` or ``awq``; ``bits``, ``group_size``, ``symmetric`` and ``desc_act`` say the rest.
    Raises UsageError, ModelError and WorkerError with a next step.
    """
    require_causal_lm(model)
    if settings["method"] not in METHODS:
        raise UsageError(f"gptqmodel makes no {settings['method']!r} here", hint=f"known: {', '.join(METHODS)}")
    ids = read_samples(samples)
    give_freed_memory_back()
    # With its own default, one worker on two cores waits for itself for ever.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 2) // 2)))
    with in_our_words("gptqmodel"), scratch(out) as offload:
        import torch
        from gptqmodel import GPTQModel

        torch.manual_seed(settings.get("seed", 0))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = GPTQModel.load(
            model, configuration(settings, offload), device=device, trust_remote_code=False, dtype=torch.bfloat16
        )
        losses = watch(network)
        quantize(network, ids, settings, device)
        network.save(out, **shard_size(settings))
    layers = {f"model.layers.{layer}": loss for layer, loss in sorted(losses.items())}
    resumed = {"resumable": model_type(model) in RESUMABLE}
    return {"quantized_layers": quantized_layers(out), "losses": layers} | resumed | used(ids)


@contextlib.contextmanager
def scratch(out: str) -> Iterator[str]:
    """A folder for what waits on disk, and the current one: gptqmodel writes ``logs/`` wherever it is run."""
    with tempfile.TemporaryDirectory(prefix="offload-", dir=out) as folder, contextlib.chdir(folder):
        yield folder


def configuration(settings: dict[str, Any], offload: str) -> Any:
    """gptqmodel's configuration; finished layers wait on disk in ``offload``, as by its own default."""
    from gptqmodel.quantization import QuantizeConfig

    awq = {"method": "awq", "format": "gemm"} if settings["method"] == "awq" else {}
    return QuantizeConfig(
        bits=settings["bits"],
        group_size=settings.get("group_size") or -1,
        sym=settings.get("symmetric", True),
        desc_act=settings.get("desc_act", False),
        offload_to_disk=True,  # took no longer than without, and 16 MiB less, on the bundled model (7.6.0)
        offload_to_disk_path=offload,
        **awq,
    )


def quantize(network: Any, samples: list[list[int]], settings: dict[str, Any], device: str) -> None:
    """Quantize layer by layer; goes on after the last layer that ``resume_folder`` holds."""
    from gptqmodel import BACKEND

    # The default for AWQ is a CUDA kernel.
    backend = {"backend": BACKEND.AWQ_TORCH} if settings["method"] == "awq" and device == "cpu" else {}
    with resumption(network, settings) as checkpoint:
        network.quantize(
            [{"input_ids": sample, "attention_mask": [1] * len(sample)} for sample in samples],
            batch_size=1,  # eight at once took 60 % of the time and 8 % more memory on the bundled model
            calibration_data_min_length=1,
            **backend,
            **checkpoint,
        )


@contextlib.contextmanager
def resumption(network: Any, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """gptqmodel's option for ``settings["resume_folder"]``, empty for a model that it cannot resume.

    What lies there from other settings, samples or versions is not taken: gptqmodel refuses it, and that refusal is
    raised as StoreError.
    """
    folder = settings.get("resume_folder")
    if not folder or network.model.config.model_type not in RESUMABLE:
        yield {}
        return
    from gptqmodel import CheckpointConfig
    from gptqmodel.looper.checkpoint_store import CheckpointError

    try:
        yield {"checkpoint": CheckpointConfig(path=folder, resume="auto", interval="layer:1")}
    except CheckpointError as error:
        raise StoreError(
            f"what was kept in {folder} does not fit this run: {error}", hint="remove that folder and start over"
        ) from error


def watch(network: Any) -> dict[int, float]:
    """Print a step after each layer; returns a dict that fills with the summed loss of each layer."""
    from gptqmodel.looper import loop_processor

    total = network.model.config.get_text_config().num_hidden_layers
    losses: dict[int, float] = {}
    log_row = loop_processor.LoopProcessor.log_new_row

    def log_and_keep(self: Any, row: dict[str, Any]) -> Any:
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a loss may be a word: "fallback(rtn)"
            losses[int(row["layer"])] = losses.get(int(row["layer"]), 0.0) + float(row["loss"])
        return log_row(self, row)

    class Layers:
        """gptqmodel calls it twice for each layer: when it is quantized, and when it is packed."""

        def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
            if submodule_finalized:
                step(layer_idx + 1, total, f"model.layers.{layer_idx}", losses.get(layer_idx))

    loop_processor.LoopProcessor.log_new_row = log_and_keep
    network.layer_callback = Layers()
    return losses


def quantized_layers(out: str) -> int:
    from safetensors import safe_open

    count = 0
    for file in Path(out).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            count += sum(name.endswith(".qweight") for name in tensors.keys())  # noqa: SIM118 - not a dict
    return count
