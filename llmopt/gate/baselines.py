"""Accepted runs, kept in the results folder under a name: ``RESULTS/baselines/NAME/CASE.json``, one small file a case.

A file has what a gate asks of a run and no more: figures, counts, what it was measured on and with.  Keys are sorted
and numbers are as they were, so git shows what changed; timelines stay where they are.
"""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

import llmopt
from llmopt.core.domain import Measurement
from llmopt.core.errors import StoreError, UsageError
from llmopt.core.files import write_atomic
from llmopt.core.run_row import read_row
from llmopt.gate.counts import Counts
from llmopt.gate.quality import KEYS

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OLD_DAYS = 90  # from then on a gate says how old its baseline is
# Of the record, what neither a verdict nor a list of differences asks for; and of its parts, what is only of one machine's disk.
LEFT_OUT: dict[str, Any] = {
    "intervals": {},
    "definitions": {},
    "server": {},
    "memory": {},
    "race": {},
    "gate": {},
}


class Kept(msgspec.Struct, kw_only=True):
    """One file."""

    name: str
    accepted_at: str
    runs: list[Measurement]
    counts: list[Counts]
    llmopt_version: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Baseline:
    name: str
    accepted_at: str
    runs: tuple[Measurement, ...]
    counts: dict[str, Counts]

    @property
    def age_days(self) -> float:
        then = datetime.datetime.fromisoformat(self.accepted_at)
        return (datetime.datetime.now(datetime.UTC) - then).total_seconds() / 86_400


def baseline_folder(results: Path, name: str) -> Path:
    return results / "baselines" / name


def set_baseline(results: Path, name: str, runs: Sequence[tuple[Measurement, Counts]]) -> list[Path]:
    """Accept runs under a name, in the place of what stood there for their cases. Raises UsageError, StoreError."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a baseline", hint="letters, digits, dots and dashes: main, v1.2")
    bad = [run for run, _ in runs if run.verdict.status == "invalid"]
    if bad:
        why = next(
            (doubt.message for doubt in bad[0].verdict.reasons if doubt.severity == "invalid"), "no reason is given"
        )
        raise UsageError(
            f"{len(bad)} of {len(runs)} runs are invalid ({why})",
            hint="accept only runs that count; measure again",
        )
    cases: dict[str, list[tuple[Measurement, Counts]]] = defaultdict(list)
    for pair in runs:
        cases[pair[0].case_key].append(pair)
    accepted_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {}
    for key, pairs in cases.items():
        kept = Kept(
            name=name, accepted_at=accepted_at, runs=[trimmed(run, packages=place == 0) for place, (run, _) in enumerate(pairs)],
            counts=[counts for _, counts in pairs], llmopt_version=llmopt.__version__,
        )  # fmt: skip
        try:
            require_whole(kept)
        except (msgspec.DecodeError, ValueError) as error:
            raise UsageError(
                f"no gate could read this baseline: {error}", hint="leave that run out; or measure, or prove, it again"
            ) from error
        file = baseline_folder(results, name) / f"{slug(pairs[0][0])}-{key[:8]}.json"
        found[file] = msgspec.json.format(msgspec.json.encode(kept, order="sorted"), indent=1) + b"\n"
    for file, data in found.items():
        write_atomic(file, data)
    return list(found)


def trimmed(run: Measurement, *, packages: bool) -> Measurement:
    """Without what no gate asks for. The list of ``packages`` is long, and the same in all runs of a case: the first has it."""
    backend = {name: value for name, value in run.backend.items() if name not in ("environment", "files", "freeze")}
    backend["argv"] = [word.rpartition("/")[2] for word in backend.get("argv") or ()]
    if packages:
        backend["freeze"] = run.backend.get("freeze")
    tokens = {"tokenizer": run.tokens["tokenizer"]} if "tokenizer" in run.tokens else {}  # its sums stand in the counts
    return replace(run, **LEFT_OUT, backend=backend, artifact=run.artifact | {"path": None}, tokens=tokens)


def whole(runs: Sequence[Measurement]) -> list[Measurement]:
    """With the packages of the first in all of them, as ``trimmed`` found them."""
    packages = runs[0].backend.get("freeze")
    return [replace(run, backend={"freeze": packages} | run.backend) for run in runs]


def slug(run: Measurement) -> str:
    words = f"{run.artifact.get('label') or run.artifact.get('quantization')}-{run.backend.get('name')}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", words).strip("-")[:60] or "case"


def read_baseline(results: Path, name: str) -> Baseline:
    """Raises StoreError where there is none of that name, for a damaged file, and for another schema."""
    files = sorted(baseline_folder(results, name).glob("*.json")) if NAME.fullmatch(name) else []
    if not files:
        if name in names(results):
            raise StoreError(
                f"baseline {name!r} in {results} has no file",
                hint="restore it from git, or llmopt baseline set NAME RUNS",
            )
        known = ", ".join(names(results)) or "none"
        raise StoreError(
            f"there is no baseline {name!r} in {results}", hint=f"known: {known}; llmopt baseline set NAME RUNS"
        )
    kept = [read(file) for file in files]
    return Baseline(
        name=name,
        accepted_at=min(one.accepted_at for one in kept),
        runs=tuple(run for one in kept for run in one.runs),
        counts={run.run_id: counts for one in kept for run, counts in zip(one.runs, one.counts, strict=True)},
    )


def read(file: Path) -> Kept:
    try:
        document = msgspec.json.decode(file.read_bytes())
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA or isinstance(schema, bool):
            raise StoreError(
                f"{file} has schema {schema!r}, and this llmopt reads {SCHEMA}",
                hint="accept it anew: llmopt baseline set",
            )
        kept = msgspec.convert(document, Kept)
        require_whole(kept)
        kept.runs = whole(kept.runs)
    except (msgspec.DecodeError, ValueError, OSError) as error:
        raise StoreError(
            f"{file} is no whole baseline: {error}", hint="restore it from git, or accept it anew"
        ) from error
    return kept


def require_whole(kept: Kept) -> None:
    """What a gate asks of a file, before it is written and when it is read. Raises ValueError, msgspec.DecodeError."""
    if len(kept.runs) != len(kept.counts) or not kept.runs:
        raise ValueError("not as many counts as runs")
    if datetime.datetime.fromisoformat(kept.accepted_at).tzinfo is None:
        raise ValueError(f"accepted_at {kept.accepted_at!r} has no time zone")
    for run in kept.runs:
        require_figures(run)
        read_row(msgspec.json.encode(run))  # what is asked of a record
    for counts in kept.counts:
        require_counts(counts)


MARK = "interpolated"  # of a distribution out of a server's histogram, beside its figures


def require_figures(run: Measurement) -> None:
    """Metrics are numbers, or distributions and counts of them; so is what a gate reads of quality. Raises ValueError."""
    quality = run.quality or {}
    for name, value in (run.metrics | {key: quality.get(key) for key in KEYS.values()}).items():
        parts = value if isinstance(value, dict) else {"": value}
        for part, figure in parts.items():
            if part == MARK and isinstance(figure, bool):
                continue
            if figure is not None and (isinstance(figure, bool) or not isinstance(figure, int | float)):
                raise ValueError(f"{' '.join([name, part]).strip()} of run {run.run_id} is {figure!r}, and no number")
    perplexity = quality.get("perplexity")
    if perplexity is not None and perplexity <= 0:
        raise ValueError(f"perplexity of run {run.run_id} is {perplexity!r}, which cannot be")


def require_counts(counts: Counts) -> None:
    """None is below zero, and no part is more than its whole. Raises ValueError."""
    numbers = {name: value for name, value in asdict(counts).items() if isinstance(value, int)}
    for name, value in (*numbers.items(), *counts.errors.items()):
        if value < 0:
            raise ValueError(f"{value} {name} were counted")
    for name, part, every in (
        ("failed", counts.failed, counts.planned), ("dropped", counts.dropped, counts.planned), ("short", counts.short or 0, counts.ok),
    ):  # fmt: skip
        if part > every:
            raise ValueError(f"{part} {name} of {every} requests were counted")


def names(results: Path) -> list[str]:
    folder = results / "baselines"
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
