"""What an engine holds beside weights and KV cache while it computes, at its peak.

``hf`` reads a whole prompt in one step: at the widest place of a layer, the MLP, three rows of its width are alive for
each token (silu(gate), up and their product), and four of the hidden width (embeddings, the layer's input, what attention
made of it, its norm): read off transformers' modeling_qwen2.py, and the slope of the published readings of Qwen2.5
(143 kB a token for the 7B, of which this is 142.3).  Engines that take a fixed number of tokens a step need memory for
those alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from llmopt.core.formats import Layout
from llmopt.core.kv_cache import kv_heads, layer_windows
from llmopt.estimate.load import Load
from llmopt.estimate.shape import Shape, Tensor

Found = TypeVar("Found")
ALIVE = 4  # rows of the hidden width
CUBLAS_WORKSPACE = 8_519_680  # torch's :4096:2:16:8, 8.125 MiB; on Hopper 32 MiB
UBATCH = 512  # llama.cpp's -ub
# vLLM's max_num_batched_tokens and max_num_seqs for a server, by the memory of its GPU (EngineArgs, 0.32); the A100, with which
# larger steps were slower, and GPUs of unknown size have the last.
STEPS = ((160 << 30, 16384, 1024), (70 << 30, 8192, 1024), (0, 2048, 256))
STEP_OF_A_CPU = (2048, 128)
AWQ_DEQUANTIZES_FROM = 1024  # tokens: below that AutoAWQ's kernel multiplies packed weights
MASKS = 3  # booleans
IN_PYTHON = ("gelu_new", "gelu_fast")  # activations that transformers computes in steps, each a row
LOGIT_COPIES = 3  # of the last position: in 16 bits, in float32, and what the sampler makes of it
# vLLM's first run samples for as many sequences as it may serve, in float32, with sorted copies: 1.19 GiB for Llama-3-8B
# by its own log ("PyTorch activation peak memory", 0.6).
SAMPLER_COPIES = 9
STEPWISE = ("vllm", "sglang", "trtllm", "tgi", "lmdeploy", "rayserve", "triton")


def of_shape(find: Callable[[Shape], Found]) -> Callable[[Shape], Found]:
    """Found once for a shape: whether a load fits is asked a hundred times."""

    def once(shape: Shape) -> Found:
        known: dict[str, Any] = shape.__dict__.setdefault("found_once", {})
        if find.__name__ not in known:
            known[find.__name__] = find(shape)
        return known[find.__name__]  # type: ignore[no-any-return]

    return once


@dataclass(frozen=True, kw_only=True)
class Activations:
    """``prefill`` and ``decode``: bytes at the peak of each, on one device; ``words``: how they come about."""

    prefill: int
    decode: int
    words: str


def activations(
    shape: Shape,
    layout: Layout,
    load: Load,
    backend: str,
    *,
    memory_bytes: int | None = None,
    device: str = "",
    cpu: bool = False,
    sharing: int = 1,
) -> Activations:
    """``memory_bytes``, ``device``: of one, by which engines choose their steps; ``cpu``: it is no GPU; ``sharing``: of how
    many that share each layer."""
    if backend == "llamacpp":
        return of_llamacpp(shape, load)
    if backend in STEPWISE:
        return of_stepwise(shape, load, usual_step(memory_bytes, device, cpu=cpu, sharing=sharing), sharing)
    return of_hf(shape, layout, load, cpu=cpu)


def of_hf(shape: Shape, layout: Layout, load: Load, *, cpu: bool) -> Activations:
    """transformers: prefill of all prompts at once, logits of each last position."""
    number = 4 if layout.rest == 32 else 2
    tokens = load.sequences * load.prompt
    logits = load.sequences * shape.vocabulary * 4 * LOGIT_COPIES
    standing = 0 if cpu else workspace(shape, layout) + CUBLAS_WORKSPACE
    live = tokens * ALIVE * shape.hidden * number + mask_bytes(shape, load)
    widest = max(
        mlp_bytes(shape, layout, tokens, number),
        mixture_bytes(shape, tokens, number),
        attention_bytes(shape, load, number),
    )
    step = load.sequences * (ALIVE * shape.hidden + 3 * inner_width(shape)) * number + logits
    return Activations(
        prefill=round(standing + max(live + widest, logits)),
        decode=standing + step + growth(shape, load, number),
        words=f"prefill of {tokens:,} tokens at once: {ALIVE} rows of {shape.hidden} and the MLP's {inner_width(shape)}",
    )


def mlp_bytes(shape: Shape, layout: Layout, tokens: int, number: int) -> float:
    """The widest moment of the MLP, or of the step before it where a weight is unpacked meanwhile."""
    inner = dense_width(shape)
    rows = 3 if gated(shape) else 2
    rows += any(t.part.endswith("gate_up") for t in shape.tensors)  # halves of one row, which stays alive whole
    rows += 2 * (str(shape.config.get("activation_function") or shape.config.get("hidden_act")) in IN_PYTHON)
    if layout.format == "bitsandbytes" and layout.bits == 8:
        return tokens * (inner * (2 * number + 4) + shape.hidden)  # LLM.int8: an int32 row before its scale
    unpacked = layout.format == "bitsandbytes" or (layout.format == "awq" and tokens >= AWQ_DEQUANTIZES_FROM)
    before = tokens * (rows - 1) * inner * number + largest_linear(shape) * number
    return max(tokens * rows * inner * number, before if unpacked else 0)


def mixture_bytes(shape: Shape, tokens: int, number: int) -> float:
    """transformers 5 sorts every pair of token and expert into one long batch (grouped_mm in integrations/moe.py, 5.17).

    At its widest: the pairs' rows with gate and up twice, or four rows of the hidden width for each pair.
    """
    inner = max((t.columns for t in shape.tensors if t.role == "expert" and t.part == "down"), default=0)
    if not inner:
        return 0.0
    pairs = tokens * shape.experts_per_token
    return pairs * max(shape.hidden + 4 * inner, 4 * shape.hidden) * number


def mask_bytes(shape: Shape, load: Load) -> int:
    """Windows that are shorter than the prompt need masks of prompt × prompt; three of them stood at the peak (5.17)."""
    windows = layer_windows(shape.config) or []
    narrow = any(window is not None and 0 < window < load.prompt for window in windows)
    return MASKS * load.prompt**2 if narrow and load.attention == "sdpa" else 0


def attention_bytes(shape: Shape, load: Load, number: int) -> float:
    """Queries before and after rotation with their two halves, keys and values; with eager attention all scores."""
    tokens = load.sequences * load.prompt
    heads, width, kv = attention_widths(shape)
    found = tokens * number * (4 * heads * width + 3 * kv * width)
    if load.attention == "eager":
        # Scores, their softmax in float32, and that in the model's type.
        found += load.sequences * heads * load.prompt**2 * (2 * number + 4)
    return found


@of_shape
def attention_widths(shape: Shape) -> tuple[int, int, int]:
    """(heads, width of one, heads of keys) of the first layer that attends; zeros without one."""
    heads = next(
        (shape.config[n] for n in ("num_attention_heads", "n_head", "n_heads", "num_heads") if shape.config.get(n)), 0
    )
    output = next((t for t in shape.tensors if t.part == "o"), None)
    if not heads or output is None:
        return 0, 0, 0
    return heads, output.columns // heads, kv_heads(shape.config, heads)


def growth(shape: Shape, load: Load, number: int) -> int:
    """torch.cat makes a layer's keys anew for each token while the old ones are still there."""
    _, width, kv = attention_widths(shape)
    return load.sequences * load.context * kv * width * number


def workspace(shape: Shape, layout: Layout) -> int:
    """Of exllama's kernels for 4 bits: room for the largest layer in 16 bits, for as long as the model lives."""
    return 2 * largest_linear(shape) if layout.format in ("gptq", "auto-round") and layout.bits == 4 else 0


def usual_step(memory_bytes: int | None, device: str, *, cpu: bool = False, sharing: int = 1) -> tuple[int, int]:
    """Tokens and sequences of vLLM's steps where nothing was asked for."""
    if cpu:
        return STEP_OF_A_CPU[0] * sharing, STEP_OF_A_CPU[1] * sharing
    for least, tokens, sequences in STEPS:
        if (memory_bytes or 0) >= least and not (least == STEPS[1][0] and "a100" in device.lower()):
            return tokens, sequences
    return STEPS[-1][1:]


def of_stepwise(shape: Shape, load: Load, usual: tuple[int, int], sharing: int) -> Activations:
    """Engines that take a step's tokens at most: fused gate and up, their product, two rows of the residual."""
    tokens = load.step_tokens or usual[0]
    sequences = load.max_num_seqs or max(load.sequences, usual[1])
    kept = tokens * shape.hidden * 2
    sampler = kept + sequences * shape.vocabulary * 4 * SAMPLER_COPIES
    peak = max(tokens * (3 * inner_width(shape) // sharing + ALIVE * shape.hidden) * 2, sampler)
    words = f"steps of {tokens:,} tokens at most, {sequences} sequences sampled"
    return Activations(prefill=peak, decode=peak, words=words)


def of_llamacpp(shape: Shape, load: Load) -> Activations:
    """llama.cpp reserves its compute buffer once, for ``-ub`` tokens that all want logits, in float32.

    With flash attention: 304 MiB for Qwen2.5-7B, 258.5 for Llama-3-8B, 70.5 for Llama-2-7B in its own log.
    """
    tokens = min(load.step_tokens or UBATCH, load.sequences * load.context)
    hidden, inner = shape.hidden, inner_width(shape)
    graph = 4 * tokens * max(shape.vocabulary + hidden, 2 * inner + 2 * hidden)
    output = 4 * shape.vocabulary * load.sequences
    return Activations(
        prefill=graph + output, decode=graph + output, words=f"compute buffer for {tokens} tokens with their logits"
    )


@of_shape
def linears(shape: Shape) -> list[Tensor]:
    return [t for t in shape.tensors if t.role in ("linear", "expert")]


@of_shape
def largest_linear(shape: Shape) -> int:
    return max((t.matrix for t in linears(shape)), default=0)


@of_shape
def dense_width(shape: Shape) -> int:
    """The widest row inside an MLP that every token passes, or a recurrent mixer."""
    return max(
        (t.columns for t in linears(shape) if t.role == "linear" and t.part.endswith(("down", "ssm_out"))), default=0
    )


@of_shape
def inner_width(shape: Shape) -> int:
    """The widest row inside an MLP that one token passes; of a mixture, of all experts that it goes to."""
    widths = [0]
    for t in linears(shape):
        if t.part.endswith("down"):
            widths.append(t.columns * (shape.experts_per_token if t.role == "expert" else 1))
        elif t.part == "ssm_out":
            widths.append(t.columns)
    return max(widths)


@of_shape
def gated(shape: Shape) -> bool:
    return any(t.part.endswith(("gate", "gate_up")) for t in linears(shape))
