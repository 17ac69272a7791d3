"""How quantizations lie in files and in memory: the real bits of a weight, with its scales and zero points, by name.

A name may be spelled with its group (``gptq-int4-g128``) or without (``gptq-int4``); the usual group is meant then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmopt.core.errors import UsageError, nearest
from llmopt.core.gguf_types import FILE_TYPES

# Layouts that store a zero point for each group, symmetric or not.
LARGEST_GROUP = 1 << 16  # no row is longer
WITH_ZEROS = ("gptq", "awq", "auto-round")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``group`` is ``None`` for one scale per row; ``double``: scales that are quantized themselves; ``rest``: bits of
    what is not quantized; ``index``: a number for each input that tells its group, in bits; ``kept``: names of modules
    that stay as they were, as a checkpoint's config lists them."""

    name: str
    format: str
    bits: float
    group: int | None = None
    symmetric: bool = True
    double: bool = False
    rest: int = 16
    index: int = 0
    scale: int = 16
    kept: tuple[str, ...] = ()

    @property
    def gguf(self) -> str:
        """The file type of a GGUF."""
        return self.name.removeprefix("gguf-")

    def linear_bits(self, row: int, rows: int = 1) -> float:
        """Bits of one weight in a row of that width, in a matrix of so many rows."""
        found = linear_bits(self, row)
        return found + self.index / rows


def linear_bits(layout: Layout, row: int) -> float:
    """Of one weight with its share of scales and zeros."""
    if layout.format in ("plain", "in-memory"):
        return layout.bits
    if (
        layout.format == "bitsandbytes"
    ):  # QLoRA, section 3: one float32 a block of 64, in double quantization 8 bits of it
        if layout.bits == 8:
            return 8 + 32 / row
        return 4 + (8 / 64 + 32 / (64 * 256) if layout.double else 32 / 64)
    group = layout.group or row
    zero = layout.bits / group if layout.format in WITH_ZEROS or not layout.symmetric else 0.0
    return layout.bits + layout.scale / group + zero


PLAIN = {
    name: Layout(name=name, format="plain", bits=bits, rest=bits)
    for name, bits in (("bf16", 16), ("fp16", 16), ("fp32", 32))
}
NAMED = PLAIN | {
    layout.name: layout
    for layout in (
        Layout(name="w8a8-int8", format="compressed-tensors", bits=8),
        Layout(name="fp8", format="compressed-tensors", bits=8),
        Layout(name="fp8-block", format="fp8", bits=8, group=128 * 128, scale=32),
        Layout(name="nvfp4", format="compressed-tensors", bits=4, group=16, scale=8),
        Layout(name="mxfp4", format="mxfp4", bits=4, group=32, scale=8),
        Layout(name="nf4", format="bitsandbytes", bits=4, group=64),
        Layout(name="fp4", format="bitsandbytes", bits=4, group=64),
        Layout(name="nf4-dq", format="bitsandbytes", bits=4, group=64, double=True),
        Layout(name="int8", format="bitsandbytes", bits=8),
        Layout(name="dynamic-int8", format="in-memory", bits=8, rest=32),
    )
}
NAMED |= {f"gguf-{kind}": Layout(name=f"gguf-{kind}", format="gguf", bits=t.average) for kind, t in FILE_TYPES.items()}
# Families whose names carry bits and group: pattern → (format, symmetric, group where none is named).
GROUPED = {
    r"gptq-int(2|3|4|8)": ("gptq", True, 128),
    r"awq-int(4)": ("awq", False, 128),
    r"autoround-int(2|3|4|8)": ("auto-round", True, 128),
    r"w(2|3|4|8)a16": ("compressed-tensors", True, 128),
}
USUAL = ("gptq-int4-g128", "gptq-int8", "gptq-int3-g128", "awq-int4-g128", "autoround-int4", "w4a16", "w8a16")
ALIASES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "f16": "fp16", "f32": "fp32", "none": "bf16"}
ALIASES |= {
    "int4": "gptq-int4",
    "gptq": "gptq-int4",
    "awq": "awq-int4",
    "bnb-nf4": "nf4",
    "bnb-int8": "int8",
    "w8a8": "w8a8-int8",
}


def layout(name: str, format: str | None = None) -> Layout:
    """The layout of a quantization by name; raises UsageError with the nearest names.

    ``format`` is another layout than the library's own one of that method (``compressed-tensors`` for gptq).
    """
    wanted = name.lower().replace("_", "-").strip()
    wanted = ALIASES.get(wanted, wanted)
    found = gguf_name(wanted) or NAMED.get(wanted) or grouped(wanted)
    if found is None:
        raise UsageError(f"unknown quantization {name!r}", hint=nearest(wanted, names()))
    if format in (None, found.format):
        return found
    if format not in (*WITH_ZEROS, "compressed-tensors") or found.format not in (*WITH_ZEROS, "compressed-tensors"):
        raise UsageError(
            f"{found.name} is not stored in the layout {format!r}", hint=f"leave --format out: it is {found.format}"
        )
    return replace(found, format=format, index=32 if format == "gptq" else 0)


def gguf_name(name: str) -> Layout | None:
    """GGUF's own names have underscores; here either will do, with ``gguf-`` or without."""
    kind = name.removeprefix("gguf-").replace("-", "_")
    if name.startswith("gguf-") or (kind in FILE_TYPES and name not in NAMED and name not in ALIASES):
        return NAMED.get(f"gguf-{kind}")
    return None


def grouped(name: str) -> Layout | None:
    for pattern, (format, symmetric, usual) in GROUPED.items():
        if match := re.fullmatch(rf"{pattern}(?:-g(\d+|channel))?", name):
            group = None if match[2] == "channel" else int(match[2]) if match[2] else usual
            if group is not None and not 0 < group <= LARGEST_GROUP:
                return None
            stem = name.partition("-g")[0] if match[2] else name
            # As the table of quantizations spells it: some names carry their usual group, others do not.
            full = stem if group == usual and stem in USUAL else f"{stem}-g{match[2] or group}"
            # GPTQ keeps the group of every input, whether it was reordered or not.
            return Layout(
                name=full, format=format, bits=int(match[1]), group=group, symmetric=symmetric, index=32 if format == "gptq" else 0,
            )  # fmt: skip
    return None


def names() -> list[str]:
    """Those that a hint may name."""
    return [*NAMED, *USUAL]
