"""How long an engine's steps take: what a step must read against the bandwidth, what it must compute against the operations.

A step takes the longer of the two (Williams, Waterman and Patterson 2009), each at the share of the device's peak that an
engine reaches with a format, and what every step and every token cost besides: scheduling, launches, sampling, streaming.
Prompts are mostly computing, answers mostly reading; ``Factors`` hold the shares and the costs, as data or fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from llmopt.core.kv_cache import layer_windows
from llmopt.estimate.activations import UBATCH, attention_widths
from llmopt.estimate.memory import SPLITS_LAYERS, Case, cache_bytes, held_weights
from llmopt.estimate.shape import Shape
from llmopt.estimate.weights import sizes_of

LINK_LATENCY_S = 15e-6  # of one all-reduce of little data among the GPUs of a node
SLOW_LINK = 25e9  # bytes/s of PCIe 4.0 × 16, where the device's own link is not known
ALL_REDUCES = 2  # of each layer: after attention, after the MLP
READS_A_STEP = (
    8192  # prompt tokens that are computed with one reading of the weights, where the engine says nothing else
)
BY_COMPUTING_IN = {"w8a8-int8": "int8", "dynamic-int8": "int8", "fp8": "fp8", "fp8-block": "fp8", "nvfp4": "fp4"}


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Of one device: bytes a second, operations a second by number type, and of its link to others.

    ``spread``: the standard deviation of the logarithm, where the figures themselves are a guess; ``key``: how runs of it
    are found again.
    """

    name: str
    key: str
    kind: str
    bandwidth: float
    flops: dict[str, float]
    link: float | None = None
    spread: float = 0.0
    source: str = ""

    def computing(self, layout_name: str) -> float:
        """Operations a second in the type that this layout is multiplied in: weights alone in few bits compute in 16."""
        wanted = BY_COMPUTING_IN.get(layout_name, "fp16")
        return self.flops.get(wanted) or self.flops.get("fp8" if wanted == "fp4" else "fp16") or self.flops["fp16"]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """``bandwidth``: share of the peak that a decoding step reads at; ``decode``, ``prefill``: shares of the operations.

    ``decode`` is that of a single sequence.  Several run other kernels, which use for all of them what they read for one:
    they reach the share ``batched``, and n of them compute for n ** ``growth`` times as long as one would at that share, but
    never beyond what a prompt's many rows reach;
    ``step_s``, ``layer_s``, ``token_s``, ``request_s``: what a step, each layer in it, each sequence's token, and each request
    cost besides (transformers takes a millisecond a layer on a GPU, whatever lies in it);
    ``interleave``: the share of other requests' prompts that is read while one's own answer is written, not before it;
    ``hides_launches``: the processor launches layers while the device still works on those before.
    """

    bandwidth: float
    decode: float
    batched: float
    growth: float
    prefill: float
    step_s: float
    layer_s: float
    token_s: float
    request_s: float
    interleave: float
    hides_launches: bool = False


@dataclass(frozen=True, kw_only=True)
class DraftSteps:
    """``count`` steps of a model of so many bytes in 16 bits and so many layers."""

    count: int
    bytes: float
    layers: int


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one device must do for ``batch`` sequences: a decoding step of all of them, and the prompt of one.

    ``rows``: tokens that a step computes, one of each sequence, or those of a draft that it checks besides;
    ``tokens_per_step``: above 1 where a draft proposes tokens and they are kept; ``draft``: its own steps before each check.
    """

    batch: int
    prompt: int
    output: int
    step_bytes: float
    step_flops: float
    prompt_bytes: float
    prompt_flops: float
    prompt_steps: int
    rows: int = 1
    layers: int = 0
    step_link_s: float = 0.0
    prompt_link_s: float = 0.0
    tokens_per_step: float = 1.0
    draft: DraftSteps | None = None


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds, in a closed loop of the batch; ``busy``: the share of it in which prompts are read."""

    prefill_s: float
    step_s: float
    ttft_s: float
    itl_s: float
    e2e_s: float
    output_tps: float
    requests_per_s: float | None
    busy: float
    bound: str


def times(demand: Demand, bandwidth: float, flops: float, f: Factors) -> Times:
    """``bandwidth`` and ``flops`` are the device's peaks."""
    reading, computing = demand.step_bytes / (bandwidth * f.bandwidth), step_computing_s(demand, flops, f)
    launching = demand.layers * f.layer_s
    hidden, beside = (launching, 0.0) if f.hides_launches else (0.0, launching)
    besides = f.step_s + beside + demand.batch * f.token_s + demand.step_link_s
    step = (max(reading, computing, hidden) + besides + draft_s(demand, bandwidth, flops, f)) / demand.tokens_per_step
    prompt = demand.prompt_flops / (flops * f.prefill), demand.prompt_bytes / (bandwidth * f.bandwidth)
    prefill = (
        max(*prompt, demand.prompt_steps * hidden) + demand.prompt_steps * (f.step_s + beside) + demand.prompt_link_s
    )
    bound = max(
        ("bandwidth", reading), ("compute", computing), ("overhead", besides + hidden), key=lambda pair: pair[1]
    )[0]
    others, more = (demand.batch - 1) * prefill, max(0, demand.output - 1)
    interleave = f.interleave if more else 0.0
    whole = f.request_s + demand.batch * prefill + more * step
    return Times(
        prefill_s=prefill, step_s=step,
        ttft_s=f.request_s + prefill + (1 - interleave) * others,
        itl_s=step + (interleave * others / more if more else 0.0),
        e2e_s=whole,
        output_tps=demand.batch * demand.output / whole if demand.output else demand.batch / step,
        requests_per_s=demand.batch / whole if demand.output else None,
        busy=demand.batch * prefill / whole, bound=bound,
    )  # fmt: skip


def step_computing_s(demand: Demand, flops: float, f: Factors) -> float:
    return computing_s(demand.step_flops, demand.rows, flops, f)


def computing_s(work: float, rows: int, flops: float, f: Factors) -> float:
    """Of so many operations on so many rows at once."""
    if rows == 1:
        return work / (flops * f.decode)
    return max(work / rows * math.pow(rows, f.growth) / (flops * f.batched), work / (flops * f.prefill))


def draft_s(demand: Demand, bandwidth: float, flops: float, f: Factors) -> float:
    """Each token of a draft is a step of its own, with its own launches; two operations and two bytes for each parameter."""
    draft = demand.draft
    if draft is None:
        return 0.0
    reading = draft.bytes / (bandwidth * f.bandwidth)
    computing = computing_s(draft.bytes * demand.batch, demand.batch, flops, f)
    launching = draft.layers * f.layer_s
    each = max(reading, computing, launching) if f.hides_launches else max(reading, computing) + launching
    return draft.count * (each + f.step_s)


# --- what a model asks of a device ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Work:
    """A question with its weights by how they are read, in bytes over all devices: always, by experts, by rows of tokens."""

    case: Case
    always: float
    experts: float
    row: float
    head: int

    def read(self, tokens: int) -> float:
        """Bytes of weights in a step of so many tokens: of the experts those that they go to, of an embedding their rows."""
        shape = self.case.shape
        touched = (
            experts_touched(shape.experts, shape.experts_per_token, tokens) / shape.experts if shape.experts else 0
        )
        return self.always + self.experts * touched + self.row * tokens


def work_of(case: Case) -> Work:
    """Raises UsageError for a quantization that llama.cpp does not know."""
    shape, whole = case.shape, 0.0
    found = {"always": 0.0, "experts": 0.0, "row": 0.0}
    for tensor, _, size in sizes_of(shape, case.layout):
        whole += size
        if tensor.role == "expert":
            found["experts"] += size
        elif tensor.role == "embedding" and not shape.tied:
            found["row"] += size / tensor.rows
        elif tensor.role not in ("position", "vision"):
            found["always"] += size
    scale = held_weights(case) / whole
    head = sum(t.elements for t in shape.tensors if t.role == "head" or (t.role == "embedding" and shape.tied))
    return Work(case=case, head=head, **{part: size * scale for part, size in found.items()})


def demand_of(work: Work, batch: int, link: float | None = None, *, checked: int = 0) -> Demand:
    """Of one device; ``checked``: tokens of a draft in each sequence's step. Raises UsageError for a cache of unknown size."""
    case = work.case
    load, shape = case.load, case.shape
    sharing = 1 if case.backend in SPLITS_LAYERS else case.devices.tensor_parallel
    middle = load.prompt + load.output // 2
    chunk = load.step_tokens or (UBATCH if case.backend == "llamacpp" else READS_A_STEP)
    chunks, first = math.ceil(load.prompt / chunk), min(chunk, load.prompt)
    reduced = shape.layers * ALL_REDUCES if sharing > 1 else 0
    rows = batch * (1 + checked)
    body = shape.active_parameters - work.head  # the head sees the last token of a prompt alone
    return Demand(
        batch=batch, prompt=load.prompt, output=load.output,
        step_bytes=(work.read(rows) + cache_bytes(case, middle, batch, 1)) / sharing,
        step_flops=rows * (2 * shape.active_parameters + attention_flops(shape, middle)) / sharing,
        prompt_bytes=chunks * work.read(first) / sharing,
        prompt_flops=(2 * (body * load.prompt + work.head) + prompt_attention_flops(shape, load.prompt)) / sharing,
        prompt_steps=chunks,
        rows=rows,
        layers=shape.layers,
        step_link_s=reduced * all_reduce_s(rows * shape.hidden * 2, sharing, link),
        prompt_link_s=reduced * chunks * all_reduce_s(first * shape.hidden * 2, sharing, link),
    )  # fmt: skip


def experts_touched(experts: int, each: int, tokens: int) -> float:
    """How many of a layer's experts a step of so many tokens needs, where the router spreads them evenly."""
    return experts * (1 - (1 - each / experts) ** tokens)


def attended(shape: Shape, tokens: int) -> float:
    """Positions that one token looks back at, summed over the layers."""
    windows = layer_windows(shape.config) or [None] * shape.layers
    return sum(tokens if window is None else min(tokens, window) for window in windows)


def attention_flops(shape: Shape, tokens: int) -> float:
    """Scores and their weighted sum, of one token with so many before it."""
    heads, width, _ = attention_widths(shape)
    return 4 * heads * width * attended(shape, tokens)


def prompt_attention_flops(shape: Shape, tokens: int) -> float:
    """Of a whole prompt: each token looks at those before it, half of them on average."""
    heads, width, _ = attention_widths(shape)
    windows = layer_windows(shape.config) or [None] * shape.layers
    pairs = sum(
        tokens**2 / 2 if window is None or window >= tokens else window * tokens - window**2 / 2 for window in windows
    )
    return 4 * heads * width * pairs


def all_reduce_s(size: float, devices: int, link: float | None) -> float:
    """In a ring: each device sends and receives 2 (n - 1)/n of the data."""
    return LINK_LATENCY_S + size * 2 * (devices - 1) / devices / (link or SLOW_LINK)


def with_draft(
    work: Work, batch: int, link: float | None, *, tokens: int, acceptance: float, draft_bytes: float = 0.0
) -> Demand:
    """Speculative decoding (Leviathan et al. 2023): ``tokens`` are proposed for each sequence and checked in one step.

    A token is kept with the chance ``acceptance`` if those before it were; one more comes from the check itself.  The draft,
    of ``draft_bytes``, takes a step for each of its tokens; one that looks n-grams up takes none.
    """
    kept = tokens + 1 if acceptance >= 1 else (1 - acceptance ** (tokens + 1)) / (1 - acceptance)
    draft = DraftSteps(count=tokens, bytes=draft_bytes, layers=usual_layers(draft_bytes / 2)) if draft_bytes else None
    return replace(demand_of(work, batch, link, checked=tokens), tokens_per_step=kept, draft=draft)


def usual_layers(parameters: float) -> int:
    """Of a dense model of which the size alone is known: some 12 × layers × hidden², the hidden width 100 times the layers."""
    return max(1, round(math.cbrt(parameters / (12 * 100**2))))
