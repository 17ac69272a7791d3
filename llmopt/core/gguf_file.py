"""The header of a GGUF file, and the block scales of its tensors; no llama.cpp and no gguf package needed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, blocks: ggml-common.h of llama.cpp.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmopt.core.errors import ModelError
from llmopt.core.weights import BLOCK_BYTES, FETCH_AGAIN

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
KEPT_ITEMS = 16  # of a long array; a vocabulary of 150,000 strings is stepped over
LISTED = 10_000  # numbers are kept whole up to so many: those of a model's layers
DEEPEST = 4  # of arrays in arrays
LONGEST_NAME = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """``block`` weights lie in ``size`` bytes; ``scales``: where in them its 16-bit floating point scales lie."""

    name: str
    block: int
    size: int
    scales: tuple[int, ...] = ()


TYPES = {
    number: TensorType(name=name, block=block, size=size, scales=scales)
    for number, name, block, size, scales in (
        (0, "F32", 1, 4, ()),
        (1, "F16", 1, 2, ()),
        (2, "Q4_0", 32, 18, (0,)),
        (3, "Q4_1", 32, 20, (0, 2)),
        (6, "Q5_0", 32, 22, (0,)),
        (7, "Q5_1", 32, 24, (0, 2)),
        (8, "Q8_0", 32, 34, (0,)),
        (10, "Q2_K", 256, 84, (80, 82)),
        (11, "Q3_K", 256, 110, (108,)),
        (12, "Q4_K", 256, 144, (0, 2)),
        (13, "Q5_K", 256, 176, (0, 2)),
        (14, "Q6_K", 256, 210, (208,)),
        (16, "IQ2_XXS", 256, 66, (0,)),
        (17, "IQ2_XS", 256, 74, (0,)),
        (18, "IQ3_XXS", 256, 98, (0,)),
        (19, "IQ1_S", 256, 50, (0,)),
        (20, "IQ4_NL", 32, 18, (0,)),
        (21, "IQ3_S", 256, 110, (0,)),
        (22, "IQ2_S", 256, 82, (0,)),
        (23, "IQ4_XS", 256, 136, (0,)),
        (29, "IQ1_M", 256, 56, ()),
        (30, "BF16", 1, 2, ()),
        (34, "TQ1_0", 256, 54, (52,)),
        (35, "TQ2_0", 256, 66, (64,)),
        (39, "MXFP4", 32, 17, ()),
        (40, "NVFP4", 64, 36, ()),
        (41, "Q1_0", 128, 18, (0,)),
    )
}
# ``general.file_type`` → name of the mix (enum llama_ftype).
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    40: "Q1_0",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """``shape`` with the row length first, as GGUF has it; ``offset`` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements // self.type.block * self.type.size


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def file_type(self) -> str | None:
        number = self.metadata.get("general.file_type")
        return FILE_TYPES.get(number) if isinstance(number, int) else None


def read_gguf(file: Path) -> GgufFile:
    """Metadata and tensors of a GGUF file; raises ModelError for one that is cut or none."""
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            version, tensor_count, pairs = struct.unpack("<IQQ", stream.read(20))
            if version not in (2, 3):
                raise ValueError(f"version {version} of the format")
            metadata = {}
            for _ in range(pairs):
                key = read_string(stream)
                metadata[key] = read_value(stream, unpack(stream, "I"))
            infos = [read_info(stream) for _ in range(tensor_count)]
            alignment = metadata.get("general.alignment", 32)
            if not isinstance(alignment, int) or not 0 < alignment <= LONGEST_NAME:
                raise ValueError(f"an alignment of {alignment}")
            start = -(-stream.tell() // alignment) * alignment
        if odd := sorted({kind for _, _, kind, _ in infos if kind not in TYPES}):
            raise ModelError(
                f"{file} has tensors of type {odd[0]}, not known here", hint="a file of another type; or is it damaged?"
            )
        tensors = tuple(Tensor(name=n, shape=s, type=TYPES[t], offset=start + o) for n, s, t, o in infos)
        end = max((t.offset + t.bytes for t in tensors), default=0)
        if file.stat().st_size < end:
            raise ValueError(f"{end:,} bytes expected, {file.stat().st_size:,} found")
    except (OSError, ValueError, KeyError, struct.error, OverflowError, MemoryError) as error:
        raise ModelError(f"{file} is not a whole GGUF file: {error}", hint=FETCH_AGAIN) from error
    return GgufFile(metadata=metadata, tensors=tensors)


def unpack(stream: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))[0]


def read_string(stream: BinaryIO) -> str:
    length = unpack(stream, "Q")
    if length > LONGEST_NAME:
        raise ValueError("a string in its header is longer than 1 MB")
    return stream.read(length).decode("utf-8", "replace")


def read_value(stream: BinaryIO, kind: int, depth: int = 0) -> Any:
    if kind == STRING:
        return read_string(stream)
    if kind != ARRAY:
        return unpack(stream, SCALARS[kind])
    if depth > DEEPEST:
        raise ValueError("arrays in arrays without end")
    kind, count = struct.unpack("<IQ", stream.read(12))
    if kind in SCALARS:
        width, kept = struct.calcsize(f"<{SCALARS[kind]}"), count if count <= LISTED else KEPT_ITEMS
        found = list(struct.unpack(f"<{kept}{SCALARS[kind]}", stream.read(kept * width)))
        stream.seek((count - kept) * width, 1)
        return found
    if count > LONGEST_NAME * 16:
        raise ValueError("an array in its header has more than 16 million entries")
    found = []
    for place in range(count):
        value = read_value(stream, kind, depth + 1)
        if place < KEPT_ITEMS:
            found.append(value)
    return found


def read_info(stream: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = read_string(stream), unpack(stream, "I")
    shape = tuple(unpack(stream, "Q") for _ in range(min(dimensions, 8)))
    return name, shape, unpack(stream, "I"), unpack(stream, "Q")


def check_scales(file: Path, tensor: Tensor) -> str | None:
    """What is wrong with a tensor's numbers: NaN or infinite scales, or nothing but zeros; ``None`` when nothing is.

    Reads the tensor once, in pieces of a few megabytes.
    """
    import numpy as np

    kind = tensor.type
    if not kind.scales and kind.block > 1:  # IQ1_M and MXFP4: their scales are spread over bits, or cannot be NaN
        return None
    wide = kind.name == "F32"
    mask, limit = (0x7FFF_FFFF, 0x7F80_0000) if wide else (0x7FFF, 0x7F80 if kind.name == "BF16" else 0x7C00)
    left, seen = tensor.elements // kind.block, False
    with file.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset)
        while left:
            piece = np.fromfile(stream, np.uint8, min(left, max(1, BLOCK_BYTES // kind.size)) * kind.size)
            blocks = piece[: len(piece) // kind.size * kind.size].reshape(-1, kind.size)
            if not len(blocks):
                return "ended while it was read"
            left -= len(blocks)
            for at in kind.scales or (0,):
                scales = blocks[:, at : at + (4 if wide else 2)].copy().view("<u4" if wide else "<u2") & mask
                if (scales >= limit).any():
                    return "has NaN or infinite scales" if kind.block > 1 else "holds NaN or infinite numbers"
                seen = seen or bool(scales.any())
    return None if seen or kind.block == 1 else "has nothing but zero scales"
