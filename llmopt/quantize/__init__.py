"""Every quantization that llmopt can make, in one table.

How to add one:

1. Write ``llmopt/quantize/FAMILY.py`` with ``run(model, out, settings, calibration)``:
   it runs in a worker of an environment that meets its ``Needs``, imports its library
   inside the function, writes the weights into the folder ``out`` and returns a dict
   of what the manifest should keep.
2. Add one line to ``METHODS``.
3. Run ``make test``: the contract tests quantize, reload and compare every line of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmopt.core.domain import Quantization
from llmopt.core.environments import Needs
from llmopt.core.errors import UsageError, nearest

LLM_COMPRESSOR = Needs(modules=("torch", "transformers", "llmcompressor"), extra="quant")
BITSANDBYTES = Needs(modules=("torch", "transformers", "bitsandbytes"), extra="quant")
LLAMA_CPP = Needs(modules=("torch", "transformers", "cyllama"), extra="llamacpp", converter=True)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One line of the table. ``distribution`` is the package whose version goes into the artifact's key."""

    quantization: Quantization
    function: str
    needs: Needs
    distribution: str
    settings: dict[str, Any] = field(default_factory=dict)
    calibrated: bool = False
    replaces: str = ""


def _llmcompressor(name: str, method: str, modifier: str) -> Method:
    return Method(
        quantization=Quantization(name=name, method=method, format="compressed-tensors", bits=4, group_size=128),
        function="llmopt.quantize.llmcompressor:run",
        needs=LLM_COMPRESSOR,
        distribution="llmcompressor",
        settings={"modifier": modifier, "samples": 64, "sample_tokens": 256, "seed": 0},
        calibrated=True,
        replaces={"gptq": "AutoGPTQ", "awq": "AutoAWQ"}[method],
    )


def _gguf(name: str, bits: float) -> Method:
    return Method(
        quantization=Quantization(name=name, method="gguf", format="gguf", bits=bits),
        function="llmopt.quantize.gguf:run",
        needs=LLAMA_CPP,
        distribution="cyllama",
        settings={"type": name.removeprefix("gguf-").upper()},
    )


METHODS: dict[str, Method] = {
    m.quantization.name: m
    for m in (
        _llmcompressor("gptq-int4-g128", "gptq", "GPTQModifier"),
        _llmcompressor("awq-int4-g128", "awq", "AWQModifier"),
        Method(
            quantization=Quantization(
                name="nf4-dq", method="bitsandbytes", format="bitsandbytes", bits=4, group_size=64
            ),
            function="llmopt.quantize.bitsandbytes:run",
            needs=BITSANDBYTES,
            distribution="bitsandbytes",
            settings={"type": "nf4", "double_quantization": True},
        ),
        _gguf("gguf-q8_0", 8),
        _gguf("gguf-q4_k_m", 4),
    )
}

# The unquantized base, by the name of its number format: served as it is, nothing to make.
UNQUANTIZED = {
    name: Quantization(name=name, method="none", format="plain", bits=bits)
    for name, bits in (("bf16", 16), ("fp16", 16), ("fp32", 32))
}


def method(name: str) -> Method:
    """The line of the table; raises UsageError with the nearest names."""
    if name in UNQUANTIZED:
        raise UsageError(
            f"{name} is the unquantized model: there is nothing to quantize", hint="serve the model folder itself"
        )
    if name not in METHODS:
        raise UsageError(f"unknown quantization {name!r}", hint=nearest(name, names()))
    return METHODS[name]


def quantization(name: str) -> Quantization:
    """The quantization of that name, made or not; raises UsageError."""
    return UNQUANTIZED[name] if name in UNQUANTIZED else method(name).quantization


def names() -> list[str]:
    return [*UNQUANTIZED, *METHODS]
