"""One run record as a row of numbers and words: read by type, and no more of it than a ranking asks."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

from llmopt.core.domain import Machine, ServeOptions, Workload
from llmopt.core.load_level import level, shape
from llmopt.core.metric_table import STATISTICS
from llmopt.core.run_record import (
    QUALITY,
    SCHEMA,
    SINGLE,
    SPREAD,
    Bounds,
    Number,
    Proof,
    TaskScore,
    WhatWasServed,
    read_head,
)

STATS = (*STATISTICS, "n", "missing")
INTERVALS = ("ttft_p50", "ttft_p95", "tps_p50", "e2e_p50", "output_tps", "error_rate", "slo_attainment")
NUMBERS = (
    *(f"{m.key}.{s}" for m in SPREAD for s in STATS),
    *(m.key for m in SINGLE),
    *(f"interval.{name}.{end}" for name in INTERVALS for end in ("low", "high")),
    *QUALITY,
    "level",
    "achieved_rate",
)
# Of every run, as text; ``configuration`` is the artifact with the options of its server, ``loop`` and ``shape`` the
# workload without its load level.
WORDS = ("case", "machine", "base", "loop", "shape", "slos", "revision", "configuration", "artifact", "version",
         "status", "doubts", "evidence", "tasks")  # fmt: skip


FAR_OFF = timedelta(3653)
NAN = math.nan
# Engines' own options, in every spelling, that change weights, cache or positions: -q is SGLang's --quantization in short.
OF_QUALITY = re.compile(
    r"^-(q|ctk|ctv)$|^--?.*(quant|cache-type|cache-dtype|load-in-|load-format|torchao|hf-overrides|override-kv|rope|yarn|lora"
    r"|adapter|control-vector)"
)
ROUNDED = 1e-6  # KL of equal distributions comes out a little below nothing
NO_SPREAD = (NAN,) * len(STATS)
NO_BOUNDS = Bounds(low=NAN, high=NAN)
PACKED = struct.Struct(f"{len(NUMBERS)}d")
LACKED: list[int] = []  # places of numbers that some record, of those read so far, did not know


class Row(msgspec.Struct, gc=False):
    """One run of a table while it is made; ``numbers`` as they lie in memory, NaN for what is not known."""

    run_id: str
    started_at: str
    words: tuple[str, ...]
    numbers: bytes


def read_row(data: bytes) -> Row:
    """The row of a record. Raises msgspec.DecodeError for what is no whole record, ValueError for bytes that are no text."""
    head = read_head(data)
    if head.schema != SCHEMA:
        raise msgspec.ValidationError(another_schema(head.schema))
    if "/" in head.run_id:
        raise msgspec.ValidationError(f"its run_id {head.run_id!r} names no file")
    require_date(head.started_at)
    machine = place_of(bytes(head.machine))
    artifact = artifact_of(bytes(head.artifact))
    loop, form, rate, slos = load_of(bytes(head.workload))
    numbers: list[Number] = []
    fields = msgspec.structs.astuple(head.metrics)
    for spread in fields[: len(SPREAD)]:
        numbers += NO_SPREAD if spread is None else msgspec.structs.astuple(spread)
    numbers += fields[len(SPREAD) :]
    for name in INTERVALS:
        bounds = head.intervals.get(name) or NO_BOUNDS
        numbers += bounds.low, bounds.high
    served = configuration(artifact.text, bytes(head.serve))
    numbers += quality_numbers(head.quality, artifact.unquantized and cache_type(served) == "auto")
    numbers += (rate, head.client.achieved_rate)
    reasons = head.verdict.reasons
    words = (
        head.case_key, machine, artifact.base, loop, form, slos, str(head.measuring_revision),
        served, artifact.text, head.backend.version or "",
        head.verdict.status, ",".join(sorted(r.code for r in reasons)) if reasons else "", head.evidence,
        tasks_of(bytes(head.quality.tasks)) if head.quality else "",
    )  # fmt: skip
    return Row(run_id=head.run_id, started_at=head.started_at, words=words, numbers=packed(numbers))


def packed(numbers: list[Number]) -> bytes:
    """As they lie in memory; in a third of the time of an array of numpy, or of Python.

    Records of one kind lack the same numbers: looking only where one before lacked them takes 2 us, at all of them 5.
    """
    for place in LACKED:
        if numbers[place] is None:
            numbers[place] = NAN
    try:
        return PACKED.pack(*numbers)
    except struct.error:
        LACKED.extend(place for place, number in enumerate(numbers) if number is None)
        return PACKED.pack(*[NAN if number is None else number for number in numbers])


def require_date(text: str) -> None:
    """The newest run says what the others are compared with: one without a date, or of times to come, would be it.

    Clocks are wrong by years where a battery is empty, so only what is far off is no date.  Raises msgspec.ValidationError.
    """
    try:
        datetime.fromisoformat(text)
        dated = text[4] == text[7] == "-"  # as text they are in the order of time
    except ValueError:
        dated = False
    if not dated or text[:10] > latest_day():
        raise msgspec.ValidationError(f"its started_at {text!r} is {'far in the future' if dated else 'no date'}")


@lru_cache(1)
def latest_day() -> str:
    return (date.today() + FAR_OFF).isoformat()


def another_schema(schema: Any) -> str:
    return f"it has schema {schema}, and this llmopt reads {SCHEMA}"


def quality_numbers(proof: Proof | None, unquantized: bool) -> tuple[Number, ...]:
    """Under the names of the metrics table; the base is its own reference, measured or not."""
    if proof is None:
        return (0.0, 0.0, 1.0, None) if unquantized else (None, None, None, None)
    for bounds in (proof.kl_mean_interval, proof.top1_interval, proof.perplexity_interval):
        if bounds is not None and not -ROUNDED <= bounds[0] <= bounds[1]:
            raise msgspec.ValidationError(f"an interval of its quality is {list(bounds)}, which cannot be")
    return proof.kl_mean, proof.kl_p99, proof.top1_agreement, proof.perplexity


@dataclass(frozen=True, kw_only=True)
class ArtifactWords:
    base: str
    text: str
    unquantized: bool


@lru_cache(4096)
def place_of(data: bytes) -> str:
    return msgspec.json.decode(data, type=Machine).fingerprint


@lru_cache(4096)
def tasks_of(data: bytes) -> str:
    """The scores of tasks as they stand in the record; empty for none."""
    found = msgspec.json.decode(data, type=list[TaskScore] | None)
    return json.dumps(msgspec.json.decode(data)) if found else ""


@lru_cache(4096)
def artifact_of(data: bytes) -> ArtifactWords:
    known = msgspec.json.decode(data, type=WhatWasServed)
    return ArtifactWords(
        base=str(known.base_key),
        text=json.dumps(msgspec.json.decode(data), sort_keys=True),
        unquantized=known.method == "none",
    )


@lru_cache(4096)
def configuration(artifact: str, serve: bytes) -> str:
    """An artifact is the same wherever it lies, and an option that is left to the engine is no part of a configuration."""
    known = json.loads(artifact)
    same = {"key": known["key"]} if known.get("key") else {n: v for n, v in known.items() if n != "path"}
    msgspec.json.decode(serve, type=ServeOptions)
    options = msgspec.json.decode(serve)
    asked = {name: value for name, value in options.items() if value not in (None, [], ())}
    name = known.get("label") or known.get("quantization")
    return json.dumps({"name": name, "artifact": same, "serve": asked}, sort_keys=True)


@lru_cache(65_536)
def cache_type(configuration: str) -> str | None:
    """Of a ``configuration``, as ``served_as`` has it."""
    return served_as(json.loads(configuration)["serve"])


def served_as(serve: Mapping[str, Any]) -> str | None:
    """The type of the KV cache, for which an artifact is proven: a smaller one costs quality that the artifact does not.

    ``None`` where adapters, or what is handed to the engine as it is (vLLM: --quantization fp8), may change what it says:
    no proof of the artifact holds then.
    """
    own = (word.partition("=")[0].replace("_", "-") for word in serve.get("extra_args") or ())
    if serve.get("lora_modules") or any(OF_QUALITY.search(word) for word in own):
        return None
    return str(serve.get("kv_cache_dtype") or "auto")


@lru_cache(4096)
def load_of(data: bytes) -> tuple[str, str, float | None, str]:
    """The loop, the shape, the level and the SLOs of a workload."""
    msgspec.json.decode(data, type=Workload)
    workload = msgspec.json.decode(data)
    form = shape(workload)
    slos = sorted(workload.get("slos") or ())
    return str(form["load"]), json.dumps(form, sort_keys=True), level(workload), json.dumps(slos)
