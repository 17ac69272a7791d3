"""llmopt's knowledge of llama.cpp's file types, as data: what ``gguf-NAME`` means before llama.cpp is asked.

A *file type* (``Q4_K_M``) is a mix of *tensor types* (``Q4_K``, ``Q6_K``).  Numbers are llama.cpp's ``LLAMA_FTYPE_MOSTLY_*``,
bits per weight follow from the block layouts in ggml-common.h.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 256  # weights of a K-quant's or IQ-quant's super-block: a row must be a multiple

# Tensor type → bits per weight.
BITS = {
    "F32": 32, "F16": 16, "BF16": 16,
    "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5,
    "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625,
    "IQ1_S": 1.5625, "IQ1_M": 1.75, "IQ2_XXS": 2.0625, "IQ2_XS": 2.3125, "IQ2_S": 2.5625,
    "IQ3_XXS": 3.0625, "IQ3_S": 3.4375, "IQ4_NL": 4.5, "IQ4_XS": 4.25,
    "TQ1_0": 1.6875, "TQ2_0": 2.0625, "MXFP4": 4.25, "Q1_0": 1.125,
}  # fmt: skip
# Types whose blocks are shorter than a super-block: any row that 32 divides will do.
SMALL_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")
# What llama.cpp writes instead where a row is no multiple of the super-block (tensor_type_fallback in llama-quant.cpp).
FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FileType:
    """``main``: the type of most linear weights.

    ``average`` is the bits of a linear weight over the whole mix, as cyllama 0.2.18 wrote it for a dense Qwen2.
    """

    number: int
    main: str
    average: float
    needs_imatrix: bool = False
    note: str = ""


def _plain(number: int, main: str, average: float = 0.0, *, imatrix: bool = False, note: str = "") -> FileType:
    bits = average or BITS[main]
    return FileType(number=number, main=main, average=bits, needs_imatrix=imatrix, note=note)


TERNARY = "for models trained to ternary weights; others come out as noise"
FILE_TYPES = {
    "f32": _plain(0, "F32"),
    "f16": _plain(1, "F16"),
    "bf16": _plain(32, "BF16"),
    "q8_0": _plain(7, "Q8_0"),
    "q6_k": _plain(18, "Q6_K"),
    "q5_k_m": _plain(17, "Q5_K", average=5.67),
    "q5_k_s": _plain(16, "Q5_K"),
    "q5_1": _plain(9, "Q5_1"),
    "q5_0": _plain(8, "Q5_0"),
    "q4_k_m": _plain(15, "Q4_K", average=4.82),
    "q4_k_s": _plain(14, "Q4_K", average=4.56),
    "q4_1": _plain(3, "Q4_1"),
    "q4_0": _plain(2, "Q4_0"),
    "iq4_nl": _plain(25, "IQ4_NL", average=4.54),
    "iq4_xs": _plain(30, "IQ4_XS", average=4.3),
    "q3_k_l": _plain(13, "Q3_K", average=4.2),
    "q3_k_m": _plain(12, "Q3_K", average=3.84),
    "q3_k_s": _plain(11, "Q3_K"),
    "iq3_m": _plain(27, "IQ3_S", average=3.58),
    "iq3_s": _plain(26, "IQ3_S"),
    "iq3_xs": _plain(22, "IQ3_S", imatrix=True),
    "iq3_xxs": _plain(23, "IQ3_XXS", imatrix=True),
    "q2_k": _plain(10, "Q2_K", average=2.93),
    "q2_k_s": _plain(21, "Q2_K", imatrix=True),
    "iq2_m": _plain(29, "IQ2_S", imatrix=True),
    "iq2_s": _plain(28, "IQ2_XS", imatrix=True),
    "iq2_xs": _plain(20, "IQ2_XS", imatrix=True),
    "iq2_xxs": _plain(19, "IQ2_XXS", imatrix=True),
    "iq1_m": _plain(31, "IQ1_M", imatrix=True),
    "iq1_s": _plain(24, "IQ1_S", imatrix=True),
    "tq2_0": _plain(37, "TQ2_0", note=TERNARY),
    "tq1_0": _plain(36, "TQ1_0", note=TERNARY),
    "q1_0": _plain(40, "Q1_0", note="for models trained to one bit; others come out as noise"),
    "mxfp4_moe": _plain(38, "MXFP4", note="experts of a mixture in MXFP4, everything else in Q8_0"),
}


def written_type(tensor_type: str, row: int) -> str:
    """The type that a tensor with rows of that length really gets."""
    if tensor_type in FALLBACK and row % BLOCK:
        tensor_type = FALLBACK[tensor_type]
    if tensor_type in SMALL_BLOCKS and row % 32:
        return "F16"
    return tensor_type
