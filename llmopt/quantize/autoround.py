"""AutoRound (Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent"): rounding learnt layer by layer."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmopt.core.domain import stable_hash
from llmopt.core.errors import UsageError
from llmopt.quantize.checks import in_our_words, load_model, read_samples, require_causal_lm
from llmopt.quantize.steps import step, without_bars

# Our format → the library's name for it.
FORMATS = {
    "auto-round": "auto_round",
    "gptq": "auto_gptq",
    "awq": "auto_awq",
    "compressed-tensors": "llm_compressor",
}
# The library advises this rate for fewer than its 200 iterations; without it, its rate is 1 / iterations.
ITERATIONS, LEARNING_RATE = 50, 5e-3
BATCH = 8
BLOCK = re.compile(r"layers in the block, loss iter 0: [\d.e+-]+ -> iter \d+: ([\d.e+-]+)")


def run(model: str, out: str, settings: dict[str, Any], samples: str) -> dict[str, Any]:
    """Quantize ``model`` into the folder ``out``. Runs in a worker.

    ``settings``: ``bits``, ``group_size``, ``symmetric``, ``format`` (one of ``FORMATS``), ``iterations``,
    ``learning_rate``.  The library takes samples of one length only: shorter ones are left out, and the count of those
    that were used is returned.  Raises UsageError and WorkerError with a next step.
    """
    without_bars()
    require_causal_lm(model)
    layout = settings.get("format", "auto-round")
    if layout not in FORMATS:
        raise UsageError(f"auto-round writes no {layout}", hint=f"known: {', '.join(FORMATS)}")
    ids = whole_samples(read_samples(samples))
    with in_our_words("auto-round"), folder_aside(out, settings.get("resume_folder")) as aside:
        losses = optimize(model, str(aside), settings, ids, FORMATS[layout])
        take_up(aside, Path(out))
    return {
        "losses": losses,
        "iterations": settings.get("iterations", ITERATIONS),
        "calibration_samples": len(ids),
        "calibration_tokens": sum(map(len, ids)),
    }


@contextlib.contextmanager
def folder_aside(out: str, resume_folder: str | None) -> Iterator[Path]:
    """Where the library writes; a folder that outlives this process when the work is to be resumed."""
    if resume_folder is None:
        with tempfile.TemporaryDirectory(prefix="autoround-", dir=Path(out).parent) as temporary:
            yield Path(temporary)
        return
    # Read by the library when its work begins; it takes up the blocks that it finds there.
    os.environ["AR_RESUME_DIR"] = str(Path(resume_folder) / "blocks")
    aside = Path(resume_folder) / "weights"
    aside.mkdir(parents=True, exist_ok=True)
    yield aside


def whole_samples(samples: list[list[int]]) -> list[list[int]]:
    longest = max(map(len, samples))
    return [sample for sample in samples if len(sample) == longest]


def optimize(model: str, out: str, settings: dict[str, Any], samples: list[list[int]], layout: str) -> dict[str, float]:
    """Run AutoRound and save under ``out``; returns the final loss of each block."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    network = load_model(model, **({"device_map": settings["device_map"]} if settings.get("device_map") else {}))
    rows = [{"input_ids": torch.tensor(s), "attention_mask": torch.ones(len(s), dtype=torch.long)} for s in samples]

    class Samples(torch.utils.data.DataLoader):  # type: ignore[misc]
        def __repr__(self) -> str:
            """The library compares this to know whether kept blocks are of the same work; the default is an address."""
            return stable_hash([samples, {name: value for name, value in settings.items() if name != "resume_folder"}])

    losses = watch(network.config.get_text_config().num_hidden_layers)
    rounding = AutoRound(
        network,
        AutoTokenizer.from_pretrained(model),
        bits=settings["bits"],
        group_size=settings.get("group_size") or -1,
        sym=settings.get("symmetric", True),
        dataset=Samples(rows, batch_size=BATCH),
        iters=settings.get("iterations", ITERATIONS),
        lr=settings.get("learning_rate", LEARNING_RATE),
        seqlen=len(samples[0]),
        nsamples=len(samples),
        batch_size=min(BATCH, len(samples)),
        seed=settings.get("seed", 0),
        device_map=0 if torch.cuda.is_available() else "cpu",
        low_gpu_mem_usage=bool(settings.get("max_memory_bytes")),
        # Compiling takes longer than it saves where there is no GPU.
        enable_torch_compile=torch.cuda.is_available(),
    )
    rounding.quantize_and_save(output_dir=out, format=layout)
    return losses


def watch(total: int) -> dict[str, float]:
    """Print a step for each block that the library's log reports; returns a dict that fills with the losses."""
    losses: dict[str, float] = {}

    class Blocks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := BLOCK.search(record.getMessage()):
                name = f"model.layers.{len(losses)}"
                losses[name] = float(found.group(1))
                step(len(losses), total, name, losses[name])

    logging.getLogger("autoround").addHandler(Blocks())
    return losses


def take_up(aside: Path, out: Path) -> None:
    """Move what the library wrote into a folder of its own naming to where it belongs."""
    for config in aside.rglob("config.json"):
        for file in config.parent.iterdir():
            file.rename(out / file.name)
        return
