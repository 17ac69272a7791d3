"""What is read of a run record, by type: whatever a ranking or a report asks of it later is checked when it is read.

A record comes from a folder that anybody may write into.  Parts that are alike in many runs are ``Raw``, and read once for
all of them (``llmopt.core.run_row``).  No struct has cycles, so the collector of garbage need not look at them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmopt.core.domain import Evidence, Status
from llmopt.core.metric_table import METRICS

SCHEMA = 1
QUALITY = {"kl": "kl_mean", "kl_p99": "kl_p99", "top1": "top1_agreement", "perplexity": "perplexity"}
SPREAD = tuple(m for m in METRICS.values() if m.kind == "distribution")
NOT_IN_RECORDS = (*QUALITY, "task_score", "cost", "cost_input", "cost_blended")
SINGLE = tuple(m for m in METRICS.values() if m.kind == "scalar" and m.name not in NOT_IN_RECORDS)
Number = float | None
Words = str | None


class Distribution(msgspec.Struct, gc=False):
    mean: Number = None
    p50: Number = None
    p90: Number = None
    p95: Number = None
    p99: Number = None
    min: Number = None
    max: Number = None
    n: Number = None
    missing: Number = None


class Bounds(msgspec.Struct, gc=False):
    low: Number = None
    high: Number = None


class Reason(msgspec.Struct, gc=False):
    code: str
    severity: Literal["suspect", "invalid"]
    message: str
    remedy: str


class Judged(msgspec.Struct, gc=False):
    status: Status
    reasons: list[Reason] = []


class Engine(msgspec.Struct, gc=False):
    name: str = ""
    version: Words = None
    argv: list[str] | None = None
    note: Words = None


class Proof(msgspec.Struct, gc=False):
    kl_mean: Number = None
    kl_p99: Number = None
    top1_agreement: Number = None
    perplexity: Number = None
    kl_mean_interval: tuple[float, float] | None = None
    top1_interval: tuple[float, float] | None = None
    perplexity_interval: tuple[float, float] | None = None
    tasks: msgspec.Raw = msgspec.Raw(b"null")


class TaskScore(msgspec.Struct):
    """One of ``tasks``; whatever else it says is kept."""

    task: str
    metric: str = ""
    filter: Words = None
    value: Number = None
    stderr: Number = None
    samples: Number = None
    higher_is_better: bool | None = None


class Ceiling(msgspec.Struct, gc=False):
    share: Number = None


class Sender(msgspec.Struct, gc=False):
    achieved_rate: Number = None
    asked_rate: Number = None
    ceiling: Ceiling | None = None
    lateness_s: Distribution | None = None


class Sampled(msgspec.Struct, gc=False):
    steal_share: Number = None
    peak_running: Number = None
    peak_waiting: Number = None
    gpus: list[int] | None = None
    gpu_memory_bytes: list[Number] | None = None


class Memory(msgspec.Struct, gc=False):
    weights_bytes: Number = None
    kv_cache_bytes: Number = None
    kv_cache_used_bytes: Number = None
    activation_bytes: Number = None
    rest_bytes: Number = None
    total_bytes: Number = None
    kv_capacity_tokens: Number = None
    max_concurrency: Number = None
    unexplained_bytes: Number = None
    total_is: Words = None
    source: Words = None
    adds_up: bool | None = None


class Race(msgspec.Struct, gc=False):
    round: int | None = None
    configuration: Words = None
    loads: int | None = None


class Anything(msgspec.Struct, gc=False):
    """An object of which nothing is asked."""


class WhatWasServed(msgspec.Struct):
    """The artifact of a record; of a server that was there already little more than a name is known."""

    quantization: str
    label: Words = None
    method: Words = None
    key: Words = None
    path: Words = None
    base_key: Words = None
    base_name: str = ""
    licence: Words = None
    license: Words = None
    bits: Number = None
    bits_per_weight: Number = None
    size_bytes: Number = None


Figures = msgspec.defstruct(
    "Figures",
    [(m.key, Distribution | None, None) for m in SPREAD] + [(m.key, Number, None) for m in SINGLE],
    gc=False,
)


class Head(msgspec.Struct, gc=False):
    """The part of a record that makes its row, and the types of all others."""

    run_id: str
    started_at: str
    case_key: str
    machine: msgspec.Raw
    backend: Engine
    artifact: msgspec.Raw
    serve: msgspec.Raw
    workload: msgspec.Raw
    verdict: Judged
    metrics: Figures  # type: ignore[valid-type]
    intervals: dict[str, Bounds | None]
    client: Sender = msgspec.field(default_factory=Sender)
    tokens: Anything = msgspec.field(default_factory=Anything)
    definitions: Anything = msgspec.field(default_factory=Anything)
    quality: Proof | None = None
    telemetry: Sampled = msgspec.field(default_factory=Sampled)
    memory: Memory = msgspec.field(default_factory=Memory)
    server: Anything = msgspec.field(default_factory=Anything)
    race: Race = msgspec.field(default_factory=Race)
    evidence: Evidence = "measured"
    llmopt_version: str = ""
    measuring_revision: int = 0
    schema: int = SCHEMA


HEAD = msgspec.json.Decoder(Head)


def read_head(data: bytes) -> Head:
    """Raises msgspec.DecodeError, and ValueError for bytes that are no text, wherever in it they are."""
    if not data.isascii():
        data.decode()  # what is passed over is not looked at by the decoder
    return HEAD.decode(data)
