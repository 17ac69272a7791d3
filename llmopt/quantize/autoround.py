"""AutoRound (Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent"): rounding learnt layer by layer.

A killed run starts over.  The library has a resumption of its own (``AR_RESUME_DIR``); after a SIGKILL, 0.15.1 went on at
the right block, but its files then held the 16-bit weights of the earlier blocks beside the quantized ones.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from llmopt.core.errors import UsageError
from llmopt.core.weights import safetensors_header, tensors
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
    with in_our_words("auto-round"), tempfile.TemporaryDirectory(prefix="autoround-", dir=out) as aside:
        losses = optimize(model, aside, settings, ids, FORMATS[layout])
        take_up(Path(aside), Path(out))
        narrow(Path(out), {name: entry["dtype"] for name, (_, entry) in tensors(Path(model)).items()})
    return {
        "losses": losses,
        "iterations": settings.get("iterations", ITERATIONS),
        "calibration_samples": len(ids),
        "calibration_tokens": sum(map(len, ids)),
    }


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
    losses = watch(network.config.get_text_config().num_hidden_layers)
    rounding = AutoRound(
        network,
        AutoTokenizer.from_pretrained(model, trust_remote_code=False),
        bits=settings["bits"],
        group_size=settings.get("group_size") or -1,
        sym=settings.get("symmetric", True),
        dataset=torch.utils.data.DataLoader(rows, batch_size=BATCH),
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


def narrow(out: Path, types: dict[str, str]) -> None:
    """Write tensors of the base (``types``: of each name, as in its header) with 16 bits again that were written with 32.

    On a processor without instructions for bf16 the library works in float32, and leaves what it does not quantize so:
    the embeddings of a small model made its file a third larger.  A base in 32 bits is loaded in bf16 like any other, so
    that those of its numbers lose nothing; where one would (a library may keep a tensor in 32 bits), the tensor stays.
    """
    import torch
    from safetensors.torch import load_file, save_file

    narrower = {"BF16": torch.bfloat16, "F16": torch.float16}
    saved = 0
    for file in sorted(out.glob("*.safetensors")):
        wide = {name for name, entry in safetensors_header(file).items() if entry["dtype"] == "F32"} & types.keys()
        content = load_file(file) if wide else {}
        short = {name: content[name].to(narrower.get(types[name], torch.bfloat16)) for name in wide}
        short = {n: t for n, t in short.items() if types[n] in narrower or torch.equal(t.float(), content[n])}
        if not short:
            continue
        saved += sum(2 * tensor.numel() for tensor in short.values())
        save_file(content | short, file.with_suffix(".partial"), metadata={"format": "pt"})
        file.with_suffix(".partial").replace(file)
    for index in out.glob("*.safetensors.index.json") if saved else ():
        document = json.loads(index.read_text())
        document["metadata"]["total_size"] -= saved
        index.write_text(json.dumps(document, indent=2))
