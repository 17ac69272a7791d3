"""Every quantization that llmopt can make, in one table.

How to add one:

1. Write ``llmopt/quantize/FAMILY.py`` with ``run(model, out, settings, samples)``: it runs in a worker of an environment
   that meets its ``Needs``, imports its library inside the function, prints its progress through ``steps.step``, writes
   the weights into the folder ``out`` and returns a dict of what the manifest should keep.
2. Add one line to ``METHODS``: its name and its routes, the first of which is taken when nobody asks for a layout.
3. Run ``make test``: the contract tests quantize, reload, compare and serve every line of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from llmopt.core.domain import Format, Quantization
from llmopt.core.environments import Needs
from llmopt.core.errors import UsageError, nearest
from llmopt.core.gguf_types import FILE_TYPES

LLM_COMPRESSOR = Needs(modules=("torch", "transformers", "llmcompressor"), extra="quant")
GPTQ_MODEL = Needs(modules=("torch", "transformers", "gptqmodel", "optimum"), extra="gptq")
AUTO_ROUND = Needs(modules=("torch", "transformers", "auto_round"), extra="quant")
BITSANDBYTES = Needs(modules=("torch", "transformers", "bitsandbytes"), extra="quant")
TORCH = Needs(modules=("torch", "transformers"), extra="hf")
LLAMA_CPP = Needs(modules=("torch", "transformers", "cyllama"), extra="llamacpp", converter=True)
# gptqmodel 7.6.0 keeps checkpoints of these model types alone (validate_checkpoint_support).
GPTQ_MODEL_RESUMES = ("llama", "qwen3_moe")
CALIBRATED = {"samples": 64, "sample_tokens": 256, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class Route:
    """One library that makes a quantization, and the layout that it writes.

    ``distribution`` is the package whose version goes into the artifact's key; ``resumes``: model types of which a killed
    run goes on where it stopped; ``grouped``: input widths must be multiples of the group size; ``by_shards``: goes file by
    file where the model is larger than ``--max-memory``; ``offloads``: what does not fit waits on disk; ``spools``: finished
    layers wait on disk until all are; ``shards`` and ``device_map``: the options of those names are passed on.
    """

    format: Format
    function: str
    needs: Needs
    distribution: str
    settings: dict[str, Any] = field(default_factory=dict)
    resumes: tuple[str, ...] = ()
    grouped: bool = False
    by_shards: bool = False
    offloads: bool = False
    spools: bool = False
    shards: bool = False
    device_map: bool = False

    @property
    def calibrated(self) -> bool:
        return "samples" in self.settings


@dataclass(frozen=True, kw_only=True)
class Method:
    """One line of the table. ``replaces``: the call of a library that is no longer kept."""

    name: str
    method: str
    bits: float
    routes: tuple[Route, ...]
    group_size: int | None = None
    replaces: str = ""

    @property
    def quantization(self) -> Quantization:
        return self.as_written(self.routes[0])

    @property
    def needs(self) -> Needs:
        return self.routes[0].needs

    @property
    def formats(self) -> list[Format]:
        return [route.format for route in self.routes]

    def as_written(self, route: Route) -> Quantization:
        return Quantization(
            name=self.name, method=self.method, format=route.format, bits=self.bits, group_size=self.group_size
        )

    def route(self, layout: str | None) -> Route:
        """The route that writes this layout, or the first; raises UsageError with the layouts that there are."""
        if layout is None:
            return self.routes[0]
        for route in self.routes:
            if route.format == layout:
                return route
        raise UsageError(
            f"{self.name} is not made in the layout {layout!r}", hint=f"--format {' or '.join(self.formats)}"
        )


def _llmcompressor(calibrated: bool = True, **settings: Any) -> Route:
    return Route(
        format="compressed-tensors",
        function="llmopt.quantize.llmcompressor:run",
        needs=LLM_COMPRESSOR,
        distribution="llmcompressor",
        settings=settings | (CALIBRATED if calibrated else {}),
        grouped=bool(settings.get("group_size")),
        by_shards=not calibrated,
        offloads=calibrated,
        shards=True,
        device_map=True,
    )


def _gptqmodel(layout: Format, **settings: Any) -> Route:
    return Route(
        format=layout,
        function="llmopt.quantize.gptqmodel:run",
        needs=GPTQ_MODEL,
        distribution="GPTQModel",
        settings=settings | CALIBRATED,
        resumes=GPTQ_MODEL_RESUMES,
        grouped=True,
        spools=True,
        shards=True,
    )


def _autoround(layout: Format) -> Route:
    return Route(
        format=layout,
        function="llmopt.quantize.autoround:run",
        needs=AUTO_ROUND,
        distribution="auto-round",
        settings={
            "method": "autoround",
            "format": layout,
            "bits": 4,
            "group_size": 128,
            "symmetric": True,
            # A quarter of the library's 200 steps, with a rate to match: as near to the base on the bundled model.
            "iterations": 50,
            "learning_rate": 5e-3,
        }
        | CALIBRATED,
        grouped=True,
        device_map=True,
    )


def _bitsandbytes(name: str, bits: float) -> Method:
    route = Route(
        format="bitsandbytes",
        function="llmopt.quantize.bitsandbytes:run",
        needs=BITSANDBYTES,
        distribution="bitsandbytes",
        settings={"method": name},
        shards=True,
        device_map=True,
    )
    return Method(
        name=name, method="bitsandbytes", bits=bits, group_size=64 if bits == 4 else None, routes=(route,),
        replaces="BitsAndBytesConfig(load_in_4bit=True)" if name == "nf4" else "",
    )  # fmt: skip


def _gguf(kind: str) -> Method:
    route = Route(
        format="gguf",
        function="llmopt.quantize.gguf:run",
        needs=LLAMA_CPP,
        distribution="cyllama",
        settings={"type": kind, "imatrix": "auto" if FILE_TYPES[kind].needs_imatrix else "none"},
    )
    return Method(name=f"gguf-{kind}", method="gguf", bits=FILE_TYPES[kind].average, routes=(route,))


def _gptq(name: str, bits: int, group_size: int | None, replaces: str = "") -> Method:
    settings: dict[str, Any] = {"method": "gptq", "bits": bits, "group_size": group_size, "symmetric": True}
    routes = (_llmcompressor(**settings), _gptqmodel("gptq", **settings | {"desc_act": False}))
    return Method(name=name, method="gptq", bits=bits, group_size=group_size, routes=routes, replaces=replaces)


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        _gptq("gptq-int4-g128", 4, 128, replaces="AutoGPTQForCausalLM….quantize(examples)"),
        _gptq("gptq-int4-g32", 4, 32),
        _gptq("gptq-int8", 8, 128),
        Method(
            name="awq-int4-g128", method="awq", bits=4, group_size=128,
            routes=(
                # AWQ's scales, then GPTQ's rounding: rounding to the nearest left the bundled model four times as far off.
                # Its grid is tried on a quarter of the default 64 samples: as near to the base, in half of the time.
                _llmcompressor(
                    method="awq", bits=4, group_size=128, symmetric=False, rounding="gptq", grid=6, grid_samples=16
                ),
                _gptqmodel("awq", method="awq", bits=4, group_size=128, symmetric=False),
            ),
            replaces="AutoAWQForCausalLM….quantize(tokenizer, quant_config)",
        ),
        Method(
            name="autoround-int4", method="autoround", bits=4, group_size=128,
            routes=(_autoround("auto-round"), _autoround("compressed-tensors"), _autoround("gptq"), _autoround("awq")),
        ),
        Method(
            name="w4a16", method="rtn", bits=4, group_size=128,
            routes=(_llmcompressor(False, method="rtn", bits=4, group_size=128, symmetric=True),),
        ),
        Method(name="w8a8-int8", method="w8a8", bits=8, routes=(_llmcompressor(method="w8a8", bits=8),)),
        Method(name="fp8", method="fp8", bits=8, routes=(_llmcompressor(False, method="fp8", bits=8),)),
        _bitsandbytes("nf4", 4),
        _bitsandbytes("nf4-dq", 4),
        _bitsandbytes("int8", 8),
        Method(
            name="dynamic-int8", method="dynamic", bits=8,
            routes=(
                Route(
                    format="in-memory", function="llmopt.quantize.torch_dynamic:run", needs=TORCH, distribution="torch",
                ),
            ),
            replaces="torch.quantization.quantize_dynamic(model, {nn.Linear})",
        ),
        *(_gguf(kind) for kind in FILE_TYPES),
    )
}  # fmt: skip

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


def quantization(name: str, layout: str | None = None) -> Quantization:
    """The quantization of that name, made or not, in that layout or its first; raises UsageError."""
    if name in UNQUANTIZED:
        return UNQUANTIZED[name]
    found = method(name)
    return replace(found.quantization, format=found.route(layout).format)


def names() -> list[str]:
    return [*UNQUANTIZED, *METHODS]
