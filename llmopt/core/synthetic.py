"""Checkpoints of a real architecture with random weights: true for speed and memory, empty for quality.

``write`` runs in a worker.  The mark stays in config.json, so that whatever is made of such a model is known for what it is.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

MARK = "llmopt_random_weights"
SHAPES = Path(__file__).with_name("shapes.toml")


def is_synthetic(folder: str | Path) -> bool:
    """Whether the weights of this model folder were drawn at random by ``llmopt synth``."""
    try:
        return bool(json.loads((Path(folder) / "config.json").read_text()).get(MARK))
    except (OSError, ValueError, AttributeError):
        return False


def shapes() -> dict[str, dict[str, Any]]:
    """Configurations of published models by name, as far as their shape goes."""
    return tomllib.loads(SHAPES.read_text())


def write(config: dict[str, Any], out: str, seed: int, dtype: str, shard_bytes: int) -> dict[str, int]:
    """Draw the weights and save them as the library itself would: names, ties and shards are its own.

    Holds the whole model in memory once.  Matrices are normal with the config's ``initializer_range``, norms one, biases and
    stored buffers (a router's corrections) zero.  Returns parameters and bytes; raises ModelError for a config that
    transformers does not know.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from llmopt.core.errors import ModelError

    kind = dict(config)
    try:
        settings = AutoConfig.for_model(kind.pop("model_type"), **kind)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, dtype), trust_remote_code=False)
    except Exception as error:  # validators of transformers' configs raise of their own kinds
        words = " ".join(str(error).split())[:200]
        raise ModelError(f"transformers makes no causal language model of this config: {words}") from error
    require_memory(sum(p.numel() * p.element_size() for p in model.parameters()))
    model.to_empty(device="cpu")
    model.tie_weights()
    spread = float(getattr(settings.get_text_config(), "initializer_range", None) or 0.02)
    generator = torch.Generator().manual_seed(seed)
    named = list(model.named_parameters())
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in stored:
            buffer.zero_()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(named):
            fill(name, parameter, spread, generator)
            if number % 10 == 0:
                print(f"({number}/{len(named)}): {name}", flush=True)
    print(f"({len(named)}/{len(named)}): writing", flush=True)
    model.config.architectures = [type(model).__name__]
    setattr(model.config, MARK, True)
    model.save_pretrained(out, max_shard_size=shard_bytes)
    return {
        "parameters": sum(p.numel() for _, p in named),
        "bytes": sum(p.numel() * p.element_size() for _, p in named),
    }


def require_memory(needed: int) -> None:
    import psutil

    from llmopt.core.errors import ModelError

    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"the weights take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of memory are free",
            hint="--layers N makes a model of fewer layers",
        )


def fill(name: str, parameter: Any, spread: float, generator: Any) -> None:
    """In place, without a copy in another type."""
    if parameter.dim() > 1:
        parameter.normal_(0.0, spread, generator=generator)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        parameter.fill_(1.0)
