"""torch's dynamic quantization to int8: done anew in memory each time a model is loaded, and never saved.

It is here to be compared with, for it is what many tutorials show; torch has deprecated it, and ``save_pretrained`` fails
on its result.  ``run`` proves that a model survives it; the server of ``llmopt.serve.hf`` applies it when it loads.
"""

from __future__ import annotations

from typing import Any

from llmopt.core.errors import ModelError
from llmopt.quantize.checks import in_our_words, load_model
from llmopt.quantize.steps import step


def run(model: str, out: str, settings: dict[str, Any], samples: str) -> dict[str, Any]:
    """Quantize ``model`` in memory and run it once; writes nothing. Runs in a worker.

    Raises ModelError when there is nothing to quantize or when the result's numbers are not finite.
    """
    import torch

    with in_our_words("torch"):
        network = load_model(model, dtype=torch.float32, device_map="cpu")
        step(1, 3, "loaded")
        counts = quantize(network)
        step(2, 3, "quantized")
        with torch.inference_mode():
            logits = network(torch.tensor([[0, 1, 2, 3]])).logits
        step(3, 3, "ran once")
    if not counts["quantized_layers"]:
        raise ModelError(f"{model} has no linear layer that torch quantizes", hint="use another method")
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{model} gives no finite numbers after dynamic quantization", hint="use another method")
    return counts


def quantize(network: Any) -> dict[str, int]:
    """Replace every linear layer but the head, in place; returns how many, and the parameters in them.

    Only fp32 layers on the CPU: torch's dynamic kernels take no others.  The head shares its weights with the embedding
    in many models, and a quantized copy of it would cost memory and quality alike; the other quantizers leave it too.
    """
    import torch
    from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic

    head = network.get_output_embeddings()
    names = [n for n, m in network.named_modules() if type(m) is torch.nn.Linear and m is not head]
    parameters = sum(network.get_submodule(name).weight.numel() for name in names)
    quantize_dynamic(network.eval(), dict.fromkeys(names, default_dynamic_qconfig), dtype=torch.qint8, inplace=True)
    done = sum(type(m).__name__ == "Linear" and "dynamic" in type(m).__module__ for m in network.modules())
    return {"quantized_layers": done, "quantized_parameters": parameters}
