"""The results folder: one immutable JSON document per run, its timelines beside it, and tables over many.

``RESULTS/<machine>/machine.json``, ``<run_id>.json``, ``<run_id>.traces.json.gz`` and, where something was sampled beside
the load, ``<run_id>.telemetry.json.gz``: one list a column, ``t_ns`` on the clock of the timelines.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llmopt.core.domain import Machine, Measurement, RequestTrace
from llmopt.core.errors import StoreError
from llmopt.core.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd


def machine_folder(results: Path, machine: Machine) -> Path:
    words = "".join(c if c.isalnum() else "-" for c in (machine.gpus[0] if machine.gpus else machine.cpu).lower())
    slug = "-".join(part for part in words.split("-") if part)[:40].rstrip("-")
    return results / f"{slug}-{machine.fingerprint}"


def prepare_results(results: Path, machine: Machine) -> None:
    """Make the folder and write the machine's page now: a folder that cannot be written to is no news after an hour."""
    folder = machine_folder(results, machine)
    write_atomic(folder / "machine.json", pretty(machine))


def record_file(results: Path, run: Measurement) -> Path:
    return machine_folder(results, run.machine) / f"{run.run_id}.json"


def save_run(
    results: Path, run: Measurement, traces: Sequence[RequestTrace], series: Mapping[str, Sequence[Any]] | None = None
) -> Path:
    """Write one run and its timelines; the record is written last, so a record always has its timelines."""
    folder = machine_folder(results, run.machine)
    if not (folder / "machine.json").exists():
        prepare_results(results, run.machine)
    write_atomic(folder / f"{run.run_id}.traces.json.gz", packed(traces))
    if series:
        write_atomic(folder / f"{run.run_id}.telemetry.json.gz", packed(series))
    return save_record(results, run)


def save_record(results: Path, run: Measurement) -> Path:
    """The record alone: of a run that has no timelines, or whose timelines are there."""
    path = record_file(results, run)
    write_atomic(path, pretty(run))
    return path


def packed(value: Any) -> bytes:
    return gzip.compress(msgspec.json.encode(value), compresslevel=5, mtime=0)


def pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def read_run(file: Path) -> Measurement | None:
    """One record; ``None`` for a JSON document that is not a run. Raises StoreError for a damaged run."""
    try:
        document = msgspec.json.decode(file.read_bytes())
        if not isinstance(document, dict) or "run_id" not in document:
            return None
        return msgspec.convert(document, Measurement)
    except (msgspec.DecodeError, ValueError, RecursionError, OSError) as error:
        raise StoreError(
            f"{file} is not a whole run record: {error}", hint="remove it, or restore it from git"
        ) from error


def load_traces(record: Path) -> list[RequestTrace]:
    """The timelines beside a record, for metrics that were added later."""
    file = record.with_name(record.stem + ".traces.json.gz")
    try:
        return msgspec.json.decode(gzip.decompress(file.read_bytes()), type=list[RequestTrace])
    except (msgspec.DecodeError, OSError, EOFError, zlib.error) as error:
        raise StoreError(f"the timelines {file} cannot be read: {error}") from error


def load_series(record: Path) -> dict[str, list[Any]]:
    """What was sampled beside a run, by column; empty where nothing was."""
    file = record.with_name(record.stem + ".telemetry.json.gz")
    if not file.exists():
        return {}
    try:
        return msgspec.json.decode(gzip.decompress(file.read_bytes()), type=dict[str, list[Any]])
    except (msgspec.DecodeError, OSError, EOFError, zlib.error) as error:
        raise StoreError(f"the samples {file} cannot be read: {error}") from error


def with_quality(run: Measurement, quality: dict[str, Any] | None) -> Measurement:
    return replace(run, quality=quality)


def frame(runs: Sequence[Measurement]) -> pd.DataFrame:
    """One row per run, nested fields flattened with dots (``metrics.ttft_s.p50``), for everything that looks at many."""
    import pandas as pd

    return pd.json_normalize([msgspec.to_builtins(run) for run in runs])
