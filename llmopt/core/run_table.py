"""Many runs as columns: what a ranking asks of each of them, without keeping a hundred thousand documents in memory.

Numbers are columns of float64, NaN where a run does not know one: ``ttft_s.p95``, ``output_tps``,
``interval.output_tps.low``.  Words (the machine, the configuration, the doubts) are small integers into a vocabulary.
The whole record of a run is read only when it is asked for.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from llmopt.core.domain import Evidence, Measurement, Status
from llmopt.core.load_level import level, shape
from llmopt.core.metric_table import METRICS, STATISTICS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
STATS = (*STATISTICS, "n", "missing")
QUALITY = {"kl": "kl_mean", "kl_p99": "kl_p99", "top1": "top1_agreement", "perplexity": "perplexity"}
INTERVALS = ("ttft_p50", "ttft_p95", "tps_p50", "e2e_p50", "output_tps", "error_rate", "slo_attainment")
SPREAD = tuple(m for m in METRICS.values() if m.kind == "distribution")
NOT_IN_RECORDS = (*QUALITY, "task_score", "cost", "cost_input", "cost_blended")
SINGLE = tuple(m for m in METRICS.values() if m.kind == "scalar" and m.name not in NOT_IN_RECORDS)
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


# --- what is read of a record -----------------------------------------------------------------------------------

Number = float | None


class Distribution(msgspec.Struct):
    mean: Number = None
    p50: Number = None
    p90: Number = None
    p95: Number = None
    p99: Number = None
    min: Number = None
    max: Number = None
    n: Number = None
    missing: Number = None


class Bounds(msgspec.Struct):
    low: Number = None
    high: Number = None


class Reason(msgspec.Struct):
    code: str
    severity: Literal["suspect", "invalid"]
    message: str
    remedy: str


class Judged(msgspec.Struct):
    status: Status
    reasons: list[Reason] = []


class Engine(msgspec.Struct):
    name: str = ""
    version: str | None = None


class Proof(msgspec.Struct):
    kl_mean: Number = None
    kl_p99: Number = None
    top1_agreement: Number = None
    perplexity: Number = None
    tasks: list[dict[str, Any]] | None = None


class Sender(msgspec.Struct):
    achieved_rate: Number = None


class Place(msgspec.Struct):
    fingerprint: str


Figures = msgspec.defstruct(
    "Figures",
    [(m.key, Distribution | None, None) for m in SPREAD] + [(m.key, Number, None) for m in SINGLE],
)


class Head(msgspec.Struct):
    """The part of a record that makes its row; ``Raw`` parts are alike in many runs and read once for all of them."""

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
    quality: Proof | None = None
    evidence: Evidence = "measured"
    measuring_revision: int = 0
    schema: int = SCHEMA


HEAD = msgspec.json.Decoder(Head)
NO_SPREAD = (math.nan,) * len(STATS)
NO_BOUNDS = Bounds(low=math.nan, high=math.nan)


class Row(msgspec.Struct):
    """One run of a table while it is made."""

    run_id: str
    started_at: str
    words: tuple[str, ...]
    numbers: array[float]


def read_row(data: bytes) -> Row:
    """The row of a record. Raises msgspec.ValidationError for what is no whole record, and for figures that cannot be."""
    head = HEAD.decode(data)
    if head.schema != SCHEMA:
        raise msgspec.ValidationError(f"it has schema {head.schema}, and this llmopt reads {SCHEMA}")
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
    numbers += quality_numbers(head.quality, artifact.unquantized)
    numbers += (rate, head.client.achieved_rate)
    reasons = head.verdict.reasons
    words = (
        head.case_key, machine, artifact.base, loop, form, slos, str(head.measuring_revision),
        configuration(artifact.text, bytes(head.serve)), artifact.text, head.backend.version or "",
        head.verdict.status, ",".join(sorted(r.code for r in reasons)) if reasons else "", head.evidence,
        json.dumps(head.quality.tasks) if head.quality and head.quality.tasks else "",
    )  # fmt: skip
    # Three times as fast as leaving None to numpy.
    known = array("d", [math.nan if number is None else number for number in numbers])
    return Row(run_id=head.run_id, started_at=head.started_at, words=words, numbers=known)


def quality_numbers(proof: Proof | None, unquantized: bool) -> tuple[Number, ...]:
    """Under the names of the metrics table; the base is its own reference, measured or not."""
    if proof is None:
        return (0.0, 0.0, 1.0, None) if unquantized else (None, None, None, None)
    return proof.kl_mean, proof.kl_p99, proof.top1_agreement, proof.perplexity


@dataclass(frozen=True, kw_only=True)
class ArtifactWords:
    base: str
    text: str
    unquantized: bool


@lru_cache(4096)
def place_of(data: bytes) -> str:
    return msgspec.json.decode(data, type=Place).fingerprint


@lru_cache(4096)
def artifact_of(data: bytes) -> ArtifactWords:
    document = msgspec.json.decode(data, type=dict[str, Any])
    return ArtifactWords(
        base=str(document.get("base_key")),
        text=json.dumps(document, sort_keys=True),
        unquantized=document.get("method") == "none",
    )


@lru_cache(4096)
def configuration(artifact: str, serve: bytes) -> str:
    """An artifact is the same wherever it lies, and an option that is left to the engine is no part of a configuration."""
    known = json.loads(artifact)
    same = {"key": known["key"]} if known.get("key") else {n: v for n, v in known.items() if n != "path"}
    options = msgspec.json.decode(serve, type=dict[str, Any])
    asked = {name: value for name, value in options.items() if value not in (None, [], ())}
    name = known.get("label") or known.get("quantization")
    return json.dumps({"name": name, "artifact": same, "serve": asked}, sort_keys=True)


@lru_cache(4096)
def load_of(data: bytes) -> tuple[str, str, float | None, str]:
    """The loop, the shape, the level and the SLOs of a workload."""
    workload = msgspec.json.decode(data, type=dict[str, Any])
    form = shape(workload)
    slos = sorted(workload.get("slos") or ())
    return str(form["load"]), json.dumps(form, sort_keys=True), level(workload), json.dumps(slos)


# --- the table --------------------------------------------------------------------------------------------------


def unread(row: int) -> Measurement:
    raise LookupError(f"row {row} has no record behind it")


@dataclass(kw_only=True)
class RunTable:
    """``numbers``: one array a column; ``codes`` and ``vocabulary``: one a word; ``read`` gives the record of a row.

    ``rows`` are those of the arrays that the table consists of, in its order; ``None`` is all of them.
    """

    run_ids: NDArray[np.bytes_]
    started_at: NDArray[np.bytes_]
    numbers: dict[str, NDArray[np.float64]]
    codes: dict[str, NDArray[np.int32]]
    vocabulary: dict[str, list[str]]
    read: Callable[[int], Measurement] = unread
    rows: NDArray[np.int64] | None = None
    proofs: dict[int, dict[str, Any]] = field(default_factory=dict)
    seen: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.run_ids)

    def column(self, name: str) -> NDArray[np.float64]:
        """NaN all the way for a number that no run here has."""
        import numpy as np

        if name not in self.seen:
            found = self.numbers.get(name)
            if found is None:
                self.seen[name] = np.full(len(self), np.nan)
            else:
                self.seen[name] = found if self.rows is None else found[self.rows]
        return self.seen[name]

    def word(self, name: str, row: int) -> str:
        return self.vocabulary[name][int(self.codes[name][row])]

    def record(self, row: int) -> Measurement:
        """The whole run, with the quality that was filled in."""
        run = self.read(row)
        proof = self.proofs.get(int(self.codes["artifact"][row]))
        return replace(run, quality=proof) if proof is not None and run.quality is None else run

    def taken(self, rows: NDArray[np.int64], read: Callable[[int], Measurement]) -> RunTable:
        """These rows, in this order; the columns are cut when they are asked for."""
        return RunTable(
            run_ids=self.run_ids[rows],
            started_at=self.started_at[rows],
            numbers=self.numbers,
            codes={name: column[rows] for name, column in self.codes.items()},
            vocabulary=self.vocabulary,
            read=read,
            rows=rows if self.rows is None else self.rows[rows],
        )

    def same(self, one: int, other: int) -> bool:
        """Whether two rows tell of the same run."""
        import numpy as np

        return all(c[one] == c[other] for c in self.codes.values()) and all(
            np.array_equal(c[one], c[other], equal_nan=True) for c in map(self.column, self.numbers)
        )

    def fill_quality(self, known: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Ask ``known`` for the quality of every artifact that has runs without: it may have been measured after them."""
        import numpy as np

        lacking = np.isnan(self.column("kl"))
        for code in np.unique(self.codes["artifact"][lacking]):
            proof = known(json.loads(self.vocabulary["artifact"][code]))
            if proof is None:
                continue
            self.proofs[int(code)] = proof
            rows = lacking & (self.codes["artifact"] == code)
            for name, key in QUALITY.items():
                column = self.seen[name] = self.column(name).copy()
                column[rows] = np.nan if proof.get(key) is None else proof[key]
            if proof.get("tasks"):
                self.vocabulary = self.vocabulary | {"tasks": [*self.vocabulary["tasks"], json.dumps(proof["tasks"])]}
                tasks = self.codes["tasks"] = self.codes["tasks"].copy()
                tasks[rows] = len(self.vocabulary["tasks"]) - 1


def table_of(runs: Sequence[Measurement]) -> RunTable:
    """Of runs in memory. Raises msgspec.ValidationError for one that would be no record on disk either."""
    return assemble([read_row(msgspec.json.encode(run)) for run in runs], runs.__getitem__)


def assemble(rows: Sequence[Row], read: Callable[[int], Measurement] = unread) -> RunTable:
    import numpy as np

    codes: dict[str, NDArray[np.int32]] = {}
    vocabulary: dict[str, list[str]] = {}
    for place, name in enumerate(WORDS):
        known: dict[str, int] = {}
        codes[name] = np.array([known.setdefault(row.words[place], len(known)) for row in rows], np.int32)
        vocabulary[name] = list(known)
    matrix = np.array([row.numbers for row in rows], np.float64).reshape(len(rows), len(NUMBERS))
    numbers = {name: np.ascontiguousarray(matrix[:, place]) for place, name in enumerate(NUMBERS)}
    return RunTable(
        run_ids=np.array([row.run_id.encode() for row in rows], np.bytes_),
        started_at=np.array([row.started_at.encode() for row in rows], np.bytes_),
        numbers={name: column for name, column in numbers.items() if not np.isnan(column).all()},
        codes=codes,
        vocabulary=vocabulary,
        read=read,
    )


def joined(tables: Sequence[RunTable]) -> RunTable:
    """One table of several, their rows in this order."""
    import numpy as np

    codes: dict[str, NDArray[np.int32]] = {}
    vocabulary: dict[str, list[str]] = {}
    for name in WORDS:
        known: dict[str, int] = {}
        parts: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        for table in tables:
            anew = np.array([known.setdefault(word, len(known)) for word in table.vocabulary[name]], np.int32)
            parts.append(anew[table.codes[name]] if len(table) else np.zeros(0, np.int32))
        codes[name], vocabulary[name] = np.concatenate(parts), list(known)
    names = sorted({name for table in tables for name in table.numbers})
    return RunTable(
        run_ids=np.concatenate([np.zeros(0, "S1"), *(t.run_ids for t in tables)]),
        started_at=np.concatenate([np.zeros(0, "S1"), *(t.started_at for t in tables)]),
        numbers={name: np.concatenate([np.zeros(0), *(t.column(name) for t in tables)]) for name in names},
        codes=codes,
        vocabulary=vocabulary,
    )


OF_ALL = ("error_rate", "slo_attainment", "top1")  # shares that are counted, not told by an engine: never above 1


def limits_of_figures() -> dict[str, tuple[float, float]]:
    """What each figure can be at all: no size, time or rate is below nothing."""
    bounds = {}
    for name in NUMBERS:
        metric = METRICS.get(name) or next((m for m in METRICS.values() if name.partition(".")[0] == m.key), None)
        if metric is not None and metric.name != "kl":
            bounds[name] = (0.0, 1.0 + 1e-9 if metric.name in OF_ALL else math.inf)
    return bounds


def impossible(table: RunTable) -> dict[int, str]:
    """Rows with a figure that no run can have, and which: somebody wrote into the record."""
    import numpy as np

    found: dict[int, str] = {}
    for name, (low, high) in limits_of_figures().items():
        column = table.numbers.get(name)
        if column is None:
            continue
        with np.errstate(invalid="ignore"):
            wrong = np.flatnonzero((column < low) | (column > high))
        found |= {int(row): f"{name} is {column[row]:g}, which cannot be" for row in wrong}
    return found
