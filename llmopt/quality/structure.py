"""The part of the proof that needs no engine: are the files what the artifact says it is?

An engine may load weights that were never compressed, or run a layer that was left out, without a word. Names, types
and sizes of the tensors tell, and so do the scales, which are read whole; the packed weights themselves are not.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.core.artifacts import read_config
from llmopt.core.domain import Quantization
from llmopt.core.errors import ModelError
from llmopt.core.gguf_file import GgufFile, Tensor, check_scales, read_gguf
from llmopt.core.weights import EMBEDDINGS, count_parameters, data_start, finite_blocks, tensors
from llmopt.quality.declared import declared

QUANTIZE_AGAIN = "the weights are not what was asked: quantize again"
PACKED = (".weight_packed", ".qweight")
WHOLE_BITS = 16  # a GGUF in F16, BF16 or F32 has nothing quantized, and says so by its name
WHOLE_TYPES = ("BF16", "F16", "F32", "F64")
SCALES = (".weight_scale", ".scales", ".absmax", ".SCB", ".nested_absmax", ".weight_global_scale")
NOT_LINEAR = ("embed", "wte.", "wpe.", "norm", "ln_", "rotary")
NAMED = 5  # tensors, in a message
# Bits that a stored linear weight may have beyond the nominal ones, for padding; 16 bits are always more.
PADDING_BITS = 0.6
Stored = dict[str, tuple[Path, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """``bits_per_weight`` is of all tensors over the base's parameters; ``fallback_tensors`` as ``name: type``."""

    bits_per_weight: float | None
    quantized_layers: int | None
    unquantized_linears: list[str]
    tensor_types: dict[str, int]
    fallback_tensors: list[str]

    def record(self) -> dict[str, Any]:
        return dict(vars(self))


def check_structure(folder: Path, quantization: Quantization, base: Path, *, scales: bool = True) -> dict[str, Any]:
    """What the weight files hold: ``bits_per_weight quantized_layers unquantized_linears tensor_types fallback_tensors``.

    Raises ModelError for a result that is not the quantization of ``base`` that it is called: no quantized layer, another
    ``quantization_config``, weights in truth in 16 bits, broken scales, a linear layer of the base that is missing.
    ``in-memory`` holds no weights of its own and is exempt. Without ``scales`` only headers are read: for weights that
    were looked at before.
    """
    if quantization.format == "in-memory":
        empty = Structure(
            bits_per_weight=None, quantized_layers=None, unquantized_linears=[], tensor_types={}, fallback_tensors=[]
        )
        return empty.record()
    if quantization.format == "gguf":
        return check_gguf(folder, quantization, base, scales=scales).record()
    return check_checkpoint(folder, quantization, base, scales=scales).record()


def check_checkpoint(folder: Path, quantization: Quantization, base: Path, *, scales: bool) -> Structure:
    """A folder of safetensors."""
    stored, original = tensors(folder), tensors(base)
    if not stored:
        raise ModelError(f"{folder} holds no weights", hint="quantize again")
    linears, modules = linear_shapes(original), modules_of(stored)
    if quantization.format != "plain":
        require_declared(folder, quantization)
    require_all_linears(folder, stored, linears, tied=bool(read_config(base).get("tie_word_embeddings")))
    require_unchanged_shapes(folder, stored, original)
    quantized = quantized_modules(stored)
    if quantization.format != "plain":
        if not quantized:
            raise ModelError(
                f"{folder} is called {quantization.name}, and no layer in it is quantized: "
                f"its weights are {', '.join(sorted(types_of(stored)))}",
                hint=QUANTIZE_AGAIN,
            )
        require_narrow(folder, quantization, quantized, linears)
        require_scales(folder, stored, quantized, read=scales)
    return Structure(
        bits_per_weight=round(bytes_of(stored) * 8 / parameters(base), 3),
        quantized_layers=len(quantized),
        unquantized_linears=sorted(m for m in linears if m not in quantized and m in modules),
        tensor_types=types_of(stored),
        fallback_tensors=[],
    )


def linear_shapes(original: Stored) -> dict[str, int]:
    """Module name → weights, of every linear layer of an unquantized model: two-dimensional, no embedding, no norm."""
    return {
        name.removesuffix(".weight"): math.prod(entry["shape"])
        for name, (_, entry) in original.items()
        if name.endswith(".weight")
        and len(entry["shape"]) == 2
        and not name.endswith(EMBEDDINGS)
        and not any(word in name for word in NOT_LINEAR)
    }


def require_declared(folder: Path, quantization: Quantization) -> None:
    """``quantization_config`` says the format, bits, group size and number type that were asked for."""
    said = declared(read_config(folder), folder)
    asked: list[tuple[str, Any, Any]] = [("format", said.format, quantization.format)]
    asked.append(("bits", said.bits, float(quantization.bits)))
    if quantization.group_size is not None and quantization.format != "bitsandbytes":  # its block is no option there
        asked.append(("group_size", said.group_size, quantization.group_size))
    if quantization.format == "compressed-tensors":
        asked.append(("floating point", said.floating, "fp8" in quantization.name or "fp4" in quantization.name))
        asked.append(("quantized activations", said.activations, quantizes_activations(quantization.name)))
    if quantization.name in ("nf4", "nf4-dq"):
        asked.append(("double quantization", said.double, quantization.name == "nf4-dq"))
    for what, found, wanted in asked:
        if found != wanted:
            raise ModelError(
                f"{folder} is called {quantization.name} ({what} {wanted}), its quantization_config says {what} {found}",
                hint=QUANTIZE_AGAIN,
            )


def quantizes_activations(name: str) -> bool:
    """Whether a quantization of that name does: ``fp8`` and ``w8a8-int8`` do, ``w4a16`` and ``fp8a16`` do not."""
    return name in ("fp8", "fp4") or "a8" in name


def modules_of(stored: Stored) -> set[str]:
    """Names of the modules that have a tensor."""
    modules = {name.rpartition(".")[0] for name in stored}
    return modules | {m.rpartition(".")[0] for m in modules if m.endswith(".weight")}  # bitsandbytes' states


def require_all_linears(folder: Path, stored: Stored, linears: dict[str, int], *, tied: bool) -> None:
    """Every linear layer of the base is there in some form; an output head tied to the embedding need not be."""
    modules = modules_of(stored)
    missing = [m for m in linears if m not in modules and not (tied and m.endswith("lm_head"))]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the base's {len(linears)} linear layers: {', '.join(missing[:NAMED])}",
            hint="quantize again",
        )


def require_unchanged_shapes(folder: Path, stored: Stored, original: Stored) -> None:
    """A tensor that was not quantized has the base's shape; another one belongs to another model."""
    for name, (_, entry) in stored.items():
        if name in original and entry["dtype"] in WHOLE_TYPES and entry["shape"] != original[name][1]["shape"]:
            raise ModelError(
                f"{folder}: {name} has the shape {entry['shape']}, in the base {original[name][1]['shape']}",
                hint="it is not a quantization of this base",
            )


def quantized_modules(stored: Stored) -> dict[str, int]:
    """Module name → bytes of its packed or narrow weight."""
    found = {}
    for name, (_, entry) in stored.items():
        packed = name.endswith(PACKED)
        narrow = name.endswith(".weight") and entry["dtype"] in ("I8", "U8", "F8_E4M3", "F8_E5M2")
        if packed or narrow:
            found[name.rpartition(".")[0]] = entry["data_offsets"][1] - entry["data_offsets"][0]
    return found


def require_narrow(
    folder: Path, quantization: Quantization, quantized: dict[str, int], linears: dict[str, int]
) -> None:
    for module, size in quantized.items():
        if module in linears and abs(bits := size * 8 / linears[module]) > quantization.bits + PADDING_BITS:
            raise ModelError(
                f"{folder} is called {quantization.name}, and {module} has {bits:.1f} bits per weight",
                hint=QUANTIZE_AGAIN,
            )


def require_scales(folder: Path, stored: Stored, quantized: dict[str, int], *, read: bool) -> None:
    """Each quantized layer has scales; where they are read, all finite and not all zero."""
    scaled = set()
    for name, (file, entry) in stored.items():
        if not name.endswith(SCALES):
            continue
        module = name.rpartition(".")[0].removesuffix(".weight")
        scaled.add(module)
        if not read:
            continue
        start = data_start(file)
        if not all(finite_blocks(file, start, entry)):
            raise ModelError(f"{folder}: {name} has NaN or infinite scales", hint="quantize again")
        if all_zero(file, start, entry):
            raise ModelError(f"{folder}: {name} has nothing but zero scales", hint="quantize again")
    if bare := [module for module in quantized if module not in scaled]:
        raise ModelError(f"{folder}: {bare[0]} is quantized and has no scales", hint="quantize again")


def all_zero(file: Path, start: int, entry: dict[str, Any]) -> bool:
    import numpy as np

    first, last = entry["data_offsets"]
    return (
        last > first
        and not np.memmap(file, dtype=np.uint8, mode="r", offset=start + first, shape=(last - first,)).any()
    )


def types_of(stored: Stored) -> dict[str, int]:
    return dict(sorted(Counter(entry["dtype"] for _, entry in stored.values()).items()))


def bytes_of(stored: Stored) -> int:
    return sum(int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]) for _, entry in stored.values())


def parameters(base: Path) -> int:
    return sum(count_parameters(file) for file in base.glob("*.safetensors"))


def check_gguf(folder: Path, quantization: Quantization, base: Path, *, scales: bool) -> Structure:
    """A GGUF file, or the folder that holds it."""
    file = folder if folder.is_file() else next(iter(sorted(folder.glob("*.gguf"))), folder / "model.gguf")
    found = read_gguf(file)
    layers = [t for t in found.tensors if t.name.startswith("blk.") and len(t.shape) > 1 and "norm" not in t.name]
    quantized = [t for t in layers if t.type.block > 1]
    if not quantized and quantization.bits < WHOLE_BITS:
        raise ModelError(f"{file} is called {quantization.name}, and no layer in it is quantized", hint=QUANTIZE_AGAIN)
    require_file_type(file, found, quantization, quantized)
    require_all_blocks(file, found, base)
    for tensor in found.tensors if scales else ():
        if (wrong := check_scales(file, tensor)) is not None:
            raise ModelError(f"{file}: {tensor.name} {wrong}", hint="quantize again")
    total = sum(t.bytes for t in found.tensors)
    return Structure(
        bits_per_weight=round(total * 8 / parameters(base), 3),
        quantized_layers=len(quantized),
        unquantized_linears=sorted(t.name for t in layers if t.type.block == 1),
        tensor_types=dict(sorted(Counter(t.type.name for t in found.tensors).items())),
        fallback_tensors=[f"{t.name}: {t.type.name}" for t in layers if fell_back(t, quantization)],
    )


def require_file_type(file: Path, found: GgufFile, quantization: Quantization, quantized: list[Tensor]) -> None:
    """The name, the header and most of the weights agree. Rows that no block divides are left out: they fall back."""
    said = f"gguf-{(found.file_type or 'unknown').lower()}"
    if said != quantization.name:
        raise ModelError(f"{file} is called {quantization.name}, its header says {said}", hint=QUANTIZE_AGAIN)
    sizes: Counter[str] = Counter()
    for tensor in quantized:
        if not fell_back(tensor, quantization):
            sizes[tensor.type.name] += tensor.elements
    family = said.removeprefix("gguf-").partition("_")[0].upper()
    if sizes and not (most := sizes.most_common(1)[0][0]).startswith(family) and family != "MXFP4":
        raise ModelError(f"{file} is called {quantization.name}, most of its weights are {most}", hint=QUANTIZE_AGAIN)


def fell_back(tensor: Tensor, quantization: Quantization) -> bool:
    """Whether llama.cpp gave it another type than the mix wants, because its rows are no multiple of a super-block.

    Types with blocks of 256 (K, IQ and T) need such rows; the mix itself never puts a type with shorter blocks there.
    """
    name = quantization.name.removeprefix("gguf-")
    super_blocks = "_k" in name or (name.startswith(("iq", "tq")) and name != "iq4_nl")
    return super_blocks and tensor.shape[0] % 256 != 0


def require_all_blocks(file: Path, found: GgufFile, base: Path) -> None:
    """Every block of the base is there, and as many weights as the base has (an output head tied to the embedding apart)."""
    config = read_config(base)
    config = config.get("text_config") or config
    blocks = {int(part[1]) for t in found.tensors if (part := t.name.split("."))[0] == "blk" and part[1].isdigit()}
    wanted = config.get("num_hidden_layers")
    if isinstance(wanted, int) and (absent := sorted(set(range(wanted)) - blocks)):
        raise ModelError(f"{file} lacks block {absent[0]} of the base's {wanted}", hint="quantize again")
    linears = tensors(base)
    tied = sum(
        math.prod(entry["shape"])
        for name, (_, entry) in linears.items()
        if name.endswith("lm_head.weight") and config.get("tie_word_embeddings")
    )
    held, needed = sum(t.elements for t in found.tensors), parameters(base) - tied
    if held < needed:
        raise ModelError(f"{file} holds {held:,} weights, its base {needed:,}", hint="quantize again")
