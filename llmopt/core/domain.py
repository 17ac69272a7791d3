"""The nouns of llmopt, as frozen dataclasses; standard library only, so that a worker in any environment can import them.

All in one file, long as it is: they are made of each other, and whoever reads one wants its neighbours.

One noun is handed on per stage: ``ModelRef`` → ``Artifact`` → ``Case`` → ``RequestTrace`` → ``Measurement`` → ``Recommendation``.
Times are ``CLOCK_MONOTONIC`` nanoseconds (``*_ns``) or seconds (``*_s``); unknown is ``None``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# How quantized weights lie on disk; ``in-memory`` is quantized anew each time it is loaded.
Format = Literal["plain", "compressed-tensors", "gptq", "awq", "auto-round", "bitsandbytes", "gguf", "in-memory"]
LAYOUTS = ("compressed-tensors", "gptq", "awq", "auto-round")  # of which one method may have several
Evidence = Literal["measured", "interpolated", "estimated"]
Comparison = Literal["<", "<=", ">", ">="]
# How the run_id of a run begins that another tool measured, and the fingerprint of a machine that its file told.
IMPORTED = "imported-"
OPEN_LOOP_SEQUENCES = 16  # of an engine that we start for a load without a cap of its own
Status = Literal["valid", "suspect", "invalid"]


def stable_hash(value: Any, length: int = 16) -> str:
    """A hash of JSON-like data that does not depend on key order; hex, ``length`` characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """An unquantized model on disk in the Hugging Face layout."""

    path: str
    architecture: str
    model_type: str
    parameters: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """A way to store weights; ``bits`` is the nominal width of a linear weight."""

    name: str
    method: str
    format: Format
    bits: float
    group_size: int | None = None

    @property
    def label(self) -> str:
        """Its name, with the layout where another is the usual one; fit for a file name."""
        usual = "auto-round" if self.method == "autoround" else "compressed-tensors"
        return f"{self.name}-{self.format}" if self.format in LAYOUTS and self.format != usual else self.name


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Weights on disk that an engine can load. ``bits_per_weight`` is real: weight bytes × 8 / parameters."""

    path: str
    quantization: Quantization
    base: str
    base_fingerprint: str
    size_bytes: int
    bits_per_weight: float
    key: str

    @property
    def label(self) -> str:
        return self.quantization.label


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How an engine is started; names are vLLM's where it has them, else those of the engine that has them.

    ``None`` and ``()`` leave it to the engine.  What each means stands in ``llmopt.serve.options``.
    """

    backend: str
    max_model_len: int | None = None
    max_num_seqs: int = 4
    threads: int | None = None
    extra_args: tuple[str, ...] = ()
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: str | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    batching: Literal["static", "continuous"] | None = None
    attn_implementation: str | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    gpu_memory_utilization: float | None = None
    block_size: int | None = None
    enforce_eager: bool | None = None
    gpu_layers: int | None = None
    device_map: str | None = None
    speculative_model: str | None = None
    num_speculative_tokens: int | None = None
    lora_modules: tuple[str, ...] = ()
    limit_mm_per_prompt: str | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """The options that are not left to the engine, without the backend's name."""
        return {name: value for name, value in asdict(self).items() if name != "backend" and value not in (None, ())}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is asked of a server. ``load`` names the loop: results of different loops are never compared.

    ``input_tokens`` and ``output_tokens`` are what a request has on average; ``input_lengths`` and ``output_lengths`` say
    how they spread (``uniform:16:64``), empty where they do not.  ``requests`` is ``None`` where ``duration_s`` or
    ``until`` ends the run.  ``slos`` only judge a run, they do not change it.  The first ``prefix_tokens`` of every prompt
    are the same in the whole run; ``images`` pictures of ``image_size`` go with each; ``adapters`` are taken in turn.
    """

    input_tokens: int = 64
    output_tokens: int = 32
    concurrency: int = 4
    requests: int | None = 64
    warmup_requests: int | None = None
    seed: int = 0
    load: Literal["closed", "open", "ramp", "trace"] = "closed"
    endpoint: Literal["completions", "chat"] = "completions"
    request_timeout_s: float = 120.0
    stall_timeout_s: float = 60.0
    rate: float | None = None
    rate_to: float | None = None
    arrival: Literal["constant", "poisson", "gamma"] = "constant"
    burstiness: float = 1.0
    max_concurrency: int | None = None
    duration_s: float | None = None
    until: str = ""
    input_lengths: str = ""
    output_lengths: str = ""
    dataset: str = ""
    trace_file: str = ""
    turns: int = 1
    think_s: float = 0.0
    retries: int = 0
    slos: tuple[str, ...] = ()
    prefix_tokens: int = 0
    images: int = 0
    image_size: str = "256x256"
    adapters: tuple[str, ...] = ()

    @property
    def open_loop(self) -> bool:
        return self.load != "closed"

    @property
    def most_at_once(self) -> int:
        """Requests that may be in flight together, as far as the load itself bounds them."""
        return (self.max_concurrency or OPEN_LOOP_SEQUENCES) if self.open_loop else self.concurrency

    @property
    def shape(self) -> str:
        """The load in words: ``closed loop of 4``, ``open loop, 20/s poisson, at most 8 at once``."""
        if self.load == "closed":
            words = f"closed loop of {self.concurrency}"
        elif self.load == "trace":
            words = "replayed trace"
        else:
            rate = f"{self.rate:g}" if self.load == "open" else f"{self.rate:g} to {self.rate_to:g}"
            words = f"open loop, {rate}/s {self.arrival}"
        if self.open_loop and self.max_concurrency:
            words += f", at most {self.max_concurrency} at once"
        words += f", {self.turns} turns" if self.turns > 1 else ""
        words += f", {self.prefix_tokens} tokens shared" if self.prefix_tokens else ""
        words += f", {self.images} image(s) of {self.image_size}" if self.images else ""
        return words + (f", {len(self.adapters)} adapters" if self.adapters else "")


def workload_identity(workload: dict[str, Any]) -> dict[str, Any]:
    """A workload as dict without what was added later and is not used: old runs must not become strangers by it."""
    later = ("prefix_tokens", "images", "image_size", "adapters")
    used = {name for name in later if workload.get(name) and (name != "image_size" or workload.get("images"))}
    return {name: value for name, value in workload.items() if name not in later or name in used}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration under one workload."""

    artifact: Artifact
    serve: ServeOptions
    workload: Workload

    @property
    def key(self) -> str:
        """Stable over processes and machines: the same artifact, options and workload give the same key.

        An option that is left to the engine is no part of it, so that a new one does not make old runs strangers.
        """
        first = ("backend", "max_model_len", "max_num_seqs", "threads", "extra_args")
        serve = {name: getattr(self.serve, name) for name in first} | self.serve.asked
        return stable_hash([self.artifact.key, serve, workload_identity(asdict(self.workload))])

    @property
    def label(self) -> str:
        return f"{self.artifact.label} on {self.serve.backend}"


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """How to start one server process and how to see that it is ready.

    ``files`` are written before the start (path → text): options that an engine takes from a file alone.  ``cleanup``
    is run when it has been stopped: it takes away what outlives the process (a container).
    """

    argv: tuple[str, ...]
    base_url: str
    model: str
    environment: dict[str, str] = field(default_factory=dict)
    health_path: str = "/health"
    usage_per_chunk: bool = False
    ready_timeout_s: float = 180.0
    files: dict[str, str] = field(default_factory=dict)
    cleanup: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A try of a request that was followed by another one."""

    sent_ns: int | None
    closed_ns: int
    error: str


@dataclass(frozen=True, kw_only=True)
class RequestTrace:
    """The timeline of one request. A field is ``None`` when that point was never reached.

    ``chunks_ns`` are the stamps of the reads that carried tokens; ``chunk_tokens`` how many tokens each of them brought,
    or empty where the server did not say so for every one.  ``output_tokens`` is the server's count, or ours of the
    text (``tokens_estimated``); ``counted_tokens`` is always ours.  ``server_*_s`` are times that the server itself told with
    its answer (llama.cpp).  ``error`` is ``kind: words``.
    """

    index: int
    planned_ns: int
    requested_output_tokens: int
    prompt_tokens_asked: int | None
    sent_ns: int | None = None
    first_byte_ns: int | None = None
    closed_ns: int | None = None
    chunks_ns: tuple[int, ...] = ()
    chunk_tokens: tuple[int, ...] = ()
    first_visible_ns: int | None = None
    reasoning: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    counted_tokens: int | None = None
    tokens_estimated: bool = False
    finish_reason: str | None = None
    error: str | None = None
    conversation: int | None = None
    server_prefill_s: float | None = None
    server_decode_s: float | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def first_token_ns(self) -> int | None:
        return self.chunks_ns[0] if self.chunks_ns else None

    @property
    def last_token_ns(self) -> int | None:
        return self.chunks_ns[-1] if self.chunks_ns else None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def error_kind(self) -> str | None:
        return None if self.error is None else self.error.partition(":")[0]


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """One reason from the closed list of what a run may doubt about itself, with its remedy."""

    code: str
    severity: Literal["suspect", "invalid"]
    message: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    status: Status
    reasons: tuple[Doubt, ...] = ()

    @classmethod
    def of(cls, reasons: tuple[Doubt, ...]) -> Verdict:
        """The worst severity of all reasons; valid without any."""
        severities = {doubt.severity for doubt in reasons}
        status: Status = "invalid" if "invalid" in severities else "suspect" if severities else "valid"
        return cls(status=status, reasons=reasons)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the numbers were taken on; ``fingerprint`` names the part that decides speed.

    Of an imported run it starts with ``imported-``, and no more is known than the file told.
    """

    fingerprint: str
    cpu: str
    physical_cores: int | None
    logical_cores: int | None
    memory_bytes: int | None
    gpus: tuple[str, ...]
    system: str


@dataclass(frozen=True, kw_only=True)
class Quality:
    """An artifact against its base on the same token ids; intervals are 95 % bootstraps over windows."""

    tokens: int
    text_sha256: str
    perplexity: float
    base_perplexity: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    kl_mean_interval: tuple[float, float]
    top1_interval: tuple[float, float]
    perplexity_interval: tuple[float, float]
    # How the proof was made: the engine that ran the artifact, its KV cache, and what ran the base.
    engine: str = ""
    engine_version: str | None = None
    kv_cache_dtype: str = "auto"
    reference: str = ""
    structure: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run: a JSON document in the store.

    ``memory`` is where the server's memory goes, ``server`` what it counted itself over the same time.  ``race``: the
    round of ``llmopt tune`` that it was measured in, and for which configuration.  ``session`` names the start of the
    server: runs of one session share its luck.  ``gate``: the block and side of the gate that it was measured for.
    ``commit``: of the code that was measured, as git has it, with ``+`` where files differ from it; empty for none.
    """

    run_id: str
    started_at: str
    case_key: str
    machine: Machine
    backend: dict[str, Any]
    artifact: dict[str, Any]
    serve: dict[str, Any]
    workload: dict[str, Any]
    verdict: Verdict
    metrics: dict[str, Any]
    intervals: dict[str, Any]
    client: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    definitions: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] | None = None
    telemetry: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)
    race: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    session: str = ""
    commit: str = ""
    evidence: Evidence = "measured"
    llmopt_version: str = ""
    measuring_revision: int = 0
    schema: int = 1


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One constraint: ``metric`` is a metric's name with its statistic, ``bound`` in the metric's own unit.

    A ``default`` limit is ours, not the user's: it rejects what breaks it, but not what was never measured.
    """

    metric: str
    statistic: str | None
    comparison: Comparison
    bound: float
    text: str
    default: bool = False


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a configuration must keep, and what to make best."""

    limits: tuple[Limit, ...] = ()
    optimize: str = "throughput"  # several, the most important first: "cost,quality"
    price_per_hour: float | None = None
    backends: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.optimize.split(","))


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One configuration in a ranking, or one that a constraint rejected.

    ``metrics`` are those of one load point, ``point``; ``curve`` has all that were measured.
    """

    rank: int | None
    tie_group: int | None
    on_front: bool
    case: dict[str, Any]
    metrics: dict[str, Any]
    intervals: dict[str, Any]
    quality: dict[str, Any] | None
    verdict: dict[str, Any]
    evidence: Evidence
    runs: int
    reasons: tuple[str, ...] = ()
    because: tuple[str, ...] = ()
    label: str = ""
    key: str = ""
    knee: bool = False
    point: dict[str, Any] = field(default_factory=dict)
    curve: tuple[dict[str, Any], ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)
    beats_next: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    against_baseline: dict[str, Any] | None = None
    diagnosis: tuple[dict[str, Any], ...] = ()
    memory: dict[str, Any] = field(default_factory=dict)
