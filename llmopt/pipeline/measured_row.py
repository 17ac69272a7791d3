"""What ``llmopt deploy`` and ``verify`` read of a ranking, by type and range: whatever is asked of a row later is checked here.

A saved ranking may have been cut or edited since.  Parts that nobody asks for are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from llmopt.core.domain import Evidence, Limit, ServeOptions, Status, Workload
from llmopt.core.errors import UsageError
from llmopt.core.metric_table import METRICS, STATISTICS, Metric, parse_metric
from llmopt.core.run_record import Engine, Judged
from llmopt.core.units import SHARE_TOLD

T = TypeVar("T")
MOST = 1e18  # no figure of a run is more: an exabyte, thirty thousand million years
ROUNDED = 1e-6  # KL of equal distributions comes out a little below nothing
AGAIN = "make it anew with this version: llmopt recommend --json"
LONGEST_WORD = 4096  # of a path, or of an engine's argument

Real = Annotated[float, Meta(ge=-MOST, le=MOST)]
NotNegative = Annotated[float, Meta(ge=0, le=MOST)]
AboutNotNegative = Annotated[float, Meta(ge=-ROUNDED, le=MOST)]
Share = Annotated[float, Meta(ge=0, le=SHARE_TOLD)]
Count = Annotated[int, Meta(ge=1, le=int(MOST))]
Line = Annotated[str, Meta(max_length=LONGEST_WORD, pattern=r"\A[^\x00]*\Z")]  # what a system call takes
RunId = Annotated[str, Meta(max_length=200, pattern=r"\A[^/\x00]+\Z")]  # names a file


def kind_of(metric: Metric) -> Any:
    """The type of a metric's value in a record."""
    if metric.name == "task_score":
        return dict[str, Real | None] | None
    one = Share if metric.unit == "share" else AboutNotNegative if metric.source == "quality" else NotNegative
    if metric.kind == "scalar":
        return one | None
    return msgspec.defstruct("Spread", [(name, one | None, None) for name in (*STATISTICS, "n", "missing")]) | None


Metrics = msgspec.defstruct("Metrics", [(m.key, kind_of(m), None) for m in METRICS.values()])


class Told(msgspec.Struct):
    """A figure with its 95 % interval; ``name`` decides what it may be."""

    value: Real | None = None
    low: Real | None = None
    high: Real | None = None
    evidence: Evidence = "measured"


class Ends(msgspec.Struct):
    low: Real | None = None
    high: Real | None = None


class Served(msgspec.Struct):
    """The artifact: of a server that was there already little more than a name is known."""

    quantization: Line
    label: Line | None = None
    path: Line | None = None
    key: Line | None = None


class MeasuredCase(msgspec.Struct):
    """``serve`` may be of an engine that llmopt only met."""

    artifact: Served
    serve: ServeOptions
    workload: dict[str, Any]
    backend: Engine

    def __post_init__(self) -> None:
        for name, value in self.serve.asked.items():
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, str):
                    msgspec.convert(one, Line)
                elif not -MOST <= one <= MOST:
                    raise ValueError(f"{name} is {one}")


class Judgement(msgspec.Struct):
    """The load at which the row was judged."""

    load: str
    level: Real | None = None


class CurvePoint(msgspec.Struct):
    """One load that was measured."""

    metrics: Metrics  # type: ignore[valid-type]
    status: Status
    load: str = ""
    level: Real | None = None
    runs: Count = 1
    evidence: Evidence = "measured"
    saturated: bool = False
    chosen: bool = False
    run_ids: list[RunId] = []


class Proved(msgspec.Struct):
    """What is asked of an artifact's proof."""

    kl_mean: AboutNotNegative | None = None
    top1_agreement: Share | None = None


class Place(msgspec.Struct):
    """Where a row stands in its ranking, and what it is called."""

    label: str
    key: str
    rank: Count | None = None
    tie_group: int | None = None


class Row(Place, kw_only=True):
    """One row, ranked or rejected (``report/document.py``)."""

    case: MeasuredCase
    metrics: Metrics  # type: ignore[valid-type]
    verdict: Judged
    evidence: Evidence
    runs: Count
    point: Judgement
    curve: list[CurvePoint]
    numbers: dict[str, Told] = {}
    intervals: dict[str, Ends | None] = {}
    quality: dict[str, Any] | None = None
    reasons: list[str] = []
    because: list[str] = []

    def __post_init__(self) -> None:
        msgspec.convert(self.quality, Proved | None)
        require_possible({name: (told.value, told.low, told.high) for name, told in self.numbers.items()})
        require_possible({name: (ends.low, ends.high) for name, ends in self.intervals.items() if ends is not None})


class GoalOfIt(msgspec.Struct):
    limits: list[Limit]


class MeasuredMachine(msgspec.Struct):
    """Less is known of the machine of an imported run."""

    fingerprint: str
    cpu: str
    physical_cores: Count | None = None
    logical_cores: Count | None = None
    memory_bytes: Count | None = None
    gpus: list[str] = []
    system: str = ""


class Ranking(msgspec.Struct):
    """The rows as they are: one of them is read."""

    goal: GoalOfIt
    machine: MeasuredMachine
    workload: dict[str, Any]
    ranked: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


class Ran(msgspec.Struct):
    """What the record of a run keeps of its engine besides: environment of its process, name → version of its packages."""

    environment: dict[str, Line] = {}
    freeze: dict[str, Line] = {}


def require_possible(figures: Mapping[str, Sequence[float | None]]) -> None:
    """Raise ValueError for a figure that its metric never has; the ends of its interval come last."""
    for name, told in figures.items():
        try:
            metric, _ = parse_metric(name, bare_distribution=True)
        except UsageError:
            continue  # of another llmopt: nobody here asks for it
        least = -MOST if metric.name == "task_score" else -ROUNDED if metric.source == "quality" else 0.0
        most = SHARE_TOLD if metric.unit == "share" else MOST
        for value in told:
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} is {value:g}, which cannot be")
        low, high = told[-2:]
        if low is not None and high is not None and low > high:
            raise ValueError(f"the interval of {name} ends below its beginning")


# --- reading ---------------------------------------------------------------------------------------------------------


def read(value: Any, kind: type[T], source: str) -> T:
    """A part of the ranking ``source``, as it would be saved: NaN is unknown. Raises UsageError."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value), type=kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source} is no whole ranking: {error}", hint=AGAIN) from error


def read_ranking(document: Mapping[str, Any], source: str) -> Ranking:
    """Raises UsageError."""
    try:
        return msgspec.convert(dict(document), Ranking)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source} is no whole ranking: {error}", hint=AGAIN) from error


# Of a workload's numbers: the least that each may be.  Prompts of an imported run may have no tokens that anybody counted.
LEAST = {
    "input_tokens": 0, "output_tokens": 0, "concurrency": 1, "requests": 1, "max_concurrency": 1, "turns": 1,
    "warmup_requests": 0, "retries": 0, "prefix_tokens": 0, "images": 0, "think_s": 0,
}  # fmt: skip
ABOVE_NOTHING = ("rate", "rate_to", "duration_s", "request_timeout_s", "stall_timeout_s", "burstiness")
NEEDED = {"open": ("rate",), "ramp": ("rate", "rate_to")}


def workload_of(document: Mapping[str, Any]) -> Workload:
    """From a record; fields that it lacks are as they are unasked. Raises UsageError."""
    known = {f.name: document[f.name] for f in fields(Workload) if f.name in document}
    try:
        workload = msgspec.convert(known, Workload)
        require_numbers(workload)
    except ValueError as error:
        raise UsageError(
            f"the measured workload is none: {error}", hint="measure it again, or make the ranking anew"
        ) from error
    return workload


def require_numbers(workload: Workload) -> None:
    """Raise ValueError for numbers that no run can have had."""
    for name in NEEDED.get(workload.load, ()):
        if getattr(workload, name) is None:
            raise ValueError(f"its load is {workload.load}, without a {name}")
    for name in (*LEAST, *ABOVE_NOTHING):
        value = getattr(workload, name)
        if value is None:
            continue
        least = LEAST.get(name, math.ulp(0.0))
        if not least <= value <= MOST:
            raise ValueError(f"its {name} is {value:g}")
