"""From stored timelines to what the page draws of them: distributions of every request, and one run request by request.

The records are read from beside the runs that a ranking names; a run whose timelines are gone is said, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmopt.core.domain import RequestTrace
from llmopt.core.errors import StoreError
from llmopt.core.metric_table import METRICS, NS
from llmopt.core.metrics import Columns, gaps
from llmopt.core.store import load_traces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POOLED_RUNS = 3  # newest of a load: enough for a shape, and a page reads no more than it draws
STEPS = 120  # points of a distribution
REQUESTS_SHOWN = 160
STALL = 5.0  # times the median gap of the run
STALLS_SHOWN = 300


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Of one configuration at its load. ``requests`` of its newest run, times in seconds since its first was planned.

    ``shares`` holds, for ``ttft`` and ``itl`` (or ``icl``, where the tokens of a chunk are not known), values in seconds with
    the share of requests or gaps that are no longer; failed requests never arrive, so a share may end below 1.
    """

    run_id: str
    runs: int
    requests_in_all: int
    shares: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    stalls: list[dict[str, float]] = field(default_factory=list)
    stall_s: float | None = None
    stalls_in_all: int = 0


def timelines_of(results: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Timeline]:
    """By the key of a row; without those whose timelines are not beside their records, or cannot be read."""
    folders = list(folders_of(results))
    found = {}
    for row in rows:
        chosen = next((p for p in row["curve"] if p["chosen"]), None)
        runs = [(r, t) for r in reversed((chosen or {"run_ids": []})["run_ids"]) if (t := traces_of(folders, r))]
        if runs:
            found[row["key"]] = timeline(runs[0][0], [traces for _, traces in runs[:POOLED_RUNS]])
    return found


def folders_of(results: Path) -> Iterator[Path]:
    folder = results if results.is_dir() else results.parent
    yield folder
    yield from (path for path in sorted(folder.rglob("*")) if path.is_dir())


def traces_of(folders: Sequence[Path], run_id: str) -> list[RequestTrace]:
    record = next((f / f"{run_id}.json" for f in folders if (f / f"{run_id}.traces.json.gz").is_file()), None)
    if record is None:
        return []
    try:
        return load_traces(record)
    except StoreError:
        return []


def timeline(run_id: str, runs: Sequence[Sequence[RequestTrace]]) -> Timeline:
    """The newest run comes first."""
    newest = sorted(runs[0], key=lambda t: t.planned_ns)
    shown, start = newest[:REQUESTS_SHOWN], newest[0].planned_ns
    long, stalls = stalls_of(newest, shown, start)
    return Timeline(
        run_id=run_id, runs=len(runs), requests_in_all=len(newest), shares=shares_of(runs),
        requests=[request_of(number, t, start) for number, t in enumerate(shown, 1)],
        stalls=sorted(stalls, key=lambda s: -s["seconds"])[:STALLS_SHOWN], stall_s=long, stalls_in_all=len(stalls),
    )  # fmt: skip


def shares_of(runs: Sequence[Sequence[RequestTrace]]) -> dict[str, list[tuple[float, float]]]:
    import numpy as np

    columns = [Columns(traces) for traces in runs]
    found = {"ttft": steps(np.concatenate([c.of(METRICS["ttft"]) for c in columns]))}
    pooled = [gaps(c) for c in columns]
    counted = [each for _, each in pooled if each is not None]
    if len(counted) == len(pooled):
        found["itl"] = steps(np.concatenate(counted))
    else:
        found["icl"] = steps(np.concatenate([chunks for chunks, _ in pooled]))
    return {name: points for name, points in found.items() if points}


def steps(values: NDArray[np.float64]) -> list[tuple[float, float]]:
    """The distribution function at up to ``STEPS`` values; of all, those that never came included."""
    import numpy as np

    values = np.sort(values[~np.isnan(values)])
    known = values[np.isfinite(values)]
    if not len(known):
        return []
    places = np.unique(np.linspace(0, len(known) - 1, min(STEPS, len(known))).round().astype(int))
    return [(float(known[place]), (int(place) + 1) / len(values)) for place in places]


def request_of(number: int, trace: RequestTrace, start: int) -> dict[str, Any]:
    stamps = {"planned": trace.planned_ns, "sent": trace.sent_ns, "first": trace.first_token_ns,
              "last": trace.last_token_ns, "closed": trace.closed_ns}  # fmt: skip
    at = {name: None if stamp is None else round((stamp - start) * NS, 6) for name, stamp in stamps.items()}
    return {"request": number, "tokens": trace.output_tokens, "error": trace.error or ""} | at


def stalls_of(
    every: Sequence[RequestTrace], shown: Sequence[RequestTrace], start: int
) -> tuple[float | None, list[dict[str, float]]]:
    """How long a gap is a stall in this run, and those of the requests that are shown."""
    import numpy as np

    pooled, _ = gaps(Columns(every))
    if not len(pooled):
        return None, []
    long = STALL * float(np.median(pooled))
    found = []
    for number, trace in enumerate(shown, 1):
        stamps = np.array(trace.chunks_ns, np.int64)
        lengths = np.diff(stamps) * NS
        found += [
            {"request": number, "from": (int(stamps[place]) - start) * NS, "to": (int(stamps[place + 1]) - start) * NS,
             "seconds": float(lengths[place])}
            for place in np.flatnonzero(lengths > long)
        ]  # fmt: skip
    return long, found
