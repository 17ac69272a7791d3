"""``llmopt import``: results of other tools become run records, whose figures are gated, followed and kept like ours.

What a record says of an imported run: the file's own words about where it ran (its machine is never this one by
itself), the tool as ``backend.name`` and ``client.tool``, the tool's figures in ``definitions``, and a verdict that is
suspect: whatever a run of ours checks about itself, nobody has checked here.  It has no timelines.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

import llmopt
from llmopt.core.domain import IMPORTED, Doubt, Machine, Measurement, Verdict, stable_hash, workload_identity
from llmopt.core.errors import LlmoptError, UsageError
from llmopt.core.files import read_text
from llmopt.core.metrics import MEASURING_REVISION
from llmopt.core.run_row import read_row
from llmopt.core.statistics import MIN_SAMPLES
from llmopt.core.store import prepare_results, pretty, read_run, record_file, save_record
from llmopt.gate.imports import Document, ForeignRun, Reader, reader, recognise

SCHEMA = 1
MAX_ERROR_RATE = 0.01
KNOWN = "files of vllm bench serve, GuideLLM, AIPerf, genai-perf, SGLang bench_serving and llama-bench can be read"


def import_files(
    files: Sequence[Path], results: Path, *, tool: str | None = None, machine_of: Path | None = None
) -> dict[str, Any]:
    """Read files into run records, and say what became of each.

    Raises UsageError for a file that is no result of a known tool, before anything of it is kept, and StoreError.
    """
    machine = None if machine_of is None else machine_in(machine_of)
    rows: list[dict[str, Any]] = []
    for file in files:
        found, runs = read_file(file, tool)
        records = [record_of(file, found, run, machine or told_machine(run)) for run in runs]
        require_usable(file, records)
        rows += [keep(file, found, run, record, results) for run, record in zip(runs, records, strict=True)]
    return {"schema": SCHEMA, "kind": "import", "results": str(results), "runs": rows}


def machine_in(record: Path) -> Machine:
    """That of a record. Raises UsageError for what is none, StoreError for a damaged one."""
    run = read_run(record) if record.is_file() else None
    if run is None:
        raise UsageError(
            f"--machine-of {record} is no run record", hint="llmopt runs shows them: RESULTS/MACHINE/RUN.json"
        )
    return run.machine


# --- reading ------------------------------------------------------------------------------------------------------


def read_file(file: Path, tool: str | None) -> tuple[Reader, list[ForeignRun]]:
    """Whose file it is, and its runs. Raises UsageError that names the file."""
    documents = documents_in(file)
    named = None if tool is None else reader(tool)
    found = named or recognise(documents)
    if found is None:
        raise UsageError(f"{file} is of no tool that is known", hint=f"{KNOWN}; --as NAME insists")
    if named is not None and not all(named.recognises(document) for document in documents):
        other = recognise(documents)
        hint = f"it looks like one of {other.title}: --as {other.name}" if other else f"made by: {named.command}"
        raise UsageError(f"{file} is no result of {named.title}", hint=hint)
    try:
        runs = [run for document in documents for run in found.read(document)]
        for run in runs:
            require_figures(run)
    except LlmoptError as error:
        raise UsageError(f"{file} ({found.title}): {error.message}", hint=error.hint) from error
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise UsageError(
            f"{file} ({found.title}): a part of it has another shape than is known ({error})",
            hint=f"known are the files of {', '.join(found.known)}: is this another version's?",
        ) from error
    return found, runs


def documents_in(file: Path) -> list[Document]:
    """A JSON object, an array or lines of them, or the rows of a CSV. Raises UsageError for what is none of these."""
    text = read_text(file).strip()
    if not text:
        raise UsageError(f"{file} is empty", hint="was the benchmark ended before it wrote its result?")
    if text[0] in "[{":
        found = json_values(file, text)
    else:
        found = list(csv.DictReader(io.StringIO(text), strict=True)) if "," in text.partition("\n")[0] else []
    if not found or not all(isinstance(value, dict) and None not in value for value in found):
        raise UsageError(f"{file} holds no JSON objects, and no table", hint=KNOWN)
    return found


def json_values(file: Path, text: str) -> list[Any]:
    """One document, or one a line: two of these tools write each run behind the last one."""
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise UsageError(f"{file} is nested too deeply to be a result", hint=KNOWN) from error
    except ValueError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise UsageError(f"{file} is no JSON: {error}", hint="was it cut off? make it again") from error
    return whole if isinstance(whole, list) else [whole]


def require_figures(run: ForeignRun) -> None:
    """Raises UsageError for a run without a request, and for figures that cannot be."""
    if run.ok + run.failed == 0:
        raise UsageError("it has no request", hint="was the benchmark ended before its first answer?")
    for name, value in run.metrics.items():
        for statistic, number in value.items() if isinstance(value, dict) else [("", value)]:
            if number is not None and not (math.isfinite(number) and number >= 0):
                raise UsageError(
                    f"{name} {statistic} would be {number}".replace("  ", " "), hint="run the benchmark again"
                )


# --- keeping ------------------------------------------------------------------------------------------------------


def require_usable(file: Path, records: Sequence[Measurement]) -> None:
    """Raises UsageError for what the store would skip later."""
    for record in records:
        try:
            read_row(pretty(record))
        except (msgspec.DecodeError, ValueError) as error:
            raise UsageError(
                f"{file}: its record could not be read back: {error}", hint="run the benchmark again"
            ) from error


def keep(file: Path, tool: Reader, run: ForeignRun, record: Measurement, results: Path) -> dict[str, Any]:
    """Store a run unless it is there; what is said of it."""
    there = sorted(results.glob(f"*/{record.run_id}.json"))
    path = there[0] if there else record_file(results, record)
    stored = read_run(path) if there else None
    if stored is None:
        prepare_results(results, record.machine)
        save_record(results, record)
    else:
        record = stored
    return {
        "file": str(file),
        "record": str(path),
        "run_id": record.run_id,
        "already_there": stored is not None,
        "tool": tool.name,
        "case_key": record.case_key,
        "label": record.artifact.get("label") or run.model,
        "workload": run.workload.shape,
        "machine": record.machine.fingerprint,
        "started_at": record.started_at,
        "metrics": [name for name, value in record.metrics.items() if value is not None and name in run.metrics],
        "unlike": list(run.unlike),
        "verdict": asdict(record.verdict),
    }


def told_machine(run: ForeignRun) -> Machine:
    """By the file's own words. Two files without any are of one unknown machine, which is none that we know."""
    words = dict(word.split(" ", 1) for word in run.machine if word.startswith("cpu_info"))
    gpus = tuple(word.split(" ", 1)[1] for word in run.machine if word.startswith("gpu_info"))
    return Machine(
        fingerprint=IMPORTED + stable_hash(list(run.machine), 10), cpu=words.get("cpu_info", "imported, unknown"),
        physical_cores=None, logical_cores=None, memory_bytes=None, gpus=gpus, system="unknown",
    )  # fmt: skip


def record_of(file: Path, tool: Reader, run: ForeignRun, machine: Machine) -> Measurement:
    name, run_id = IMPORTED + tool.name, IMPORTED + stable_hash([tool.name, run.document])
    artifact = {
        "quantization": run.model,
        "method": "unknown",
        "base_name": run.model,
        "base_key": stable_hash([name, run.model]),  # so that no ranking takes it for a model that we measured
    }
    planned = run.ok + run.failed
    counts = {
        "requests_ok": run.ok, "requests_failed": run.failed, "error_rate": run.failed / planned,
        "errors": run.errors or ({"unknown": run.failed} if run.failed else {}),
    }  # fmt: skip
    workload = asdict(run.workload)
    return Measurement(
        run_id=run_id,
        started_at=run.started_at or written(file),
        case_key=stable_hash([name, run.model, run.options, run.artifact, workload_identity(workload)]),
        machine=machine,
        backend={
            "name": name,
            "engine": run.engine,
            "version": run.engine_version,
            "argv": [],
            "note": f"read from a file of {run.title}{f' {run.version}' if run.version else ''}",
        },
        artifact=artifact | run.artifact,
        serve={"backend": name, "told": run.options},
        workload=workload,
        verdict=verdict_of(run),
        metrics=run.metrics | counts,
        intervals={},
        client={"tool": run.title, "version": run.version},
        tokens={"requested": run.requested_tokens, "server": run.output_tokens, "prompt": run.prompt_tokens},
        definitions={tool.name: run.figures},
        session=run_id if run.own_process else "",
        llmopt_version=llmopt.__version__,
        measuring_revision=MEASURING_REVISION,
    )


def written(file: Path) -> str:
    """When a file was written: where a run does not tell its own time."""
    moment = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")


def verdict_of(run: ForeignRun) -> Verdict:
    """Suspect at best: its client, its warm-up and its machine were not looked at. Failures count as in our own runs."""
    planned = run.ok + run.failed
    found = [
        Doubt(
            code="imported",
            severity="suspect",
            message=f"read from a file of {run.title}: its client, its warm-up and its machine were not checked",
            remedy="compare it with runs of the same tool and load alone; or measure it here: llmopt bench",
        )
    ]
    if run.failed > MAX_ERROR_RATE * planned:
        kinds = ", ".join(f"{n} {kind}" for kind, n in run.errors.items())
        found.append(
            Doubt(
                code="errors",
                severity="invalid",
                message=f"{run.failed} of {planned} requests failed{f' ({kinds})' if kinds else ''}",
                remedy="read the server's log; lower the load",
            )
        )
    if planned < MIN_SAMPLES[95] and any(isinstance(value, dict) for value in run.metrics.values()):
        found.append(
            Doubt(
                code="too_few_samples",
                severity="suspect",
                message=f"{planned} requests: p95 needs {MIN_SAMPLES[95]} and is not kept",
                remedy=f"{MIN_SAMPLES[95] + 5} requests or more",
            )
        )
    if run.cut_short:
        found.append(
            Doubt(code="ended_early", severity="suspect", message=run.cut_short, remedy="run it again to the end")
        )
    return Verdict.of(tuple(found))
