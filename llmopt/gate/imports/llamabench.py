"""``llama-bench -o json|jsonl|csv``: one entry a test, computed in its own process, with no server and no sampling.

A test is one case: ``n_prompt`` tokens read, ``n_gen`` tokens made, or both, again and again in a closed loop of one.  It
has no first token and no wait, so of ours it has rates over the whole run, and the bytes of the weights.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath, PureWindowsPath
from typing import Any

from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.gate.imports import Document, ForeignRun, Reader
from llmopt.gate.imports.figures import flat, in_utc

TITLE = "llama-bench"
# Settings that make it another case: n_threads, type_k … of whatever version; not its results, and not what it ran on.
RESULTS = ("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts", "test_time")
NOT_SETTINGS = (*RESULTS, "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "devices",
                "model_filename", "model_type", "model_size", "model_n_params", "n_prompt", "n_gen")  # fmt: skip
NS = 1e-9


def recognises(document: Document) -> bool:
    return {"n_prompt", "n_gen", "avg_ts", "model_filename"} <= document.keys()


def read(document: Document) -> list[ForeignRun]:
    """Raises UsageError for a test that is not whole."""
    prompt, made = (int(figure(document, key)) for key in ("n_prompt", "n_gen"))
    samples = sample_times(document)
    if not prompt + made or not samples:
        raise UsageError("a test of it has no token, or no repetition", hint="llama-bench -p 512 -n 128 -r 5 -o json")
    seconds, times = math.fsum(samples) * NS, len(samples)
    rate = times / seconds
    weights = figure(document, "model_size")
    name = PureWindowsPath(PurePath(str(document["model_filename"])).name).name
    words = {key: str(document.get(key) or "").strip() for key in ("cpu_info", "gpu_info")}
    return [
        ForeignRun(
            document=document, title=TITLE, version=str(document.get("build_commit") or "") or None, model=name,
            # CSV does not tell how often a test was repeated, and it is the same case.
            workload=Workload(input_tokens=prompt, output_tokens=made, concurrency=1, requests=None),
            metrics={
                # Without a token made there is no rate of them; "unknown" is not zero.
                "output_tps_whole": made * rate if made else None,
                "total_tps_whole": (prompt + made) * rate,
                "weights_bytes": int(weights),
            },
            figures=flat({n: numeric(document.get(n)) for n in RESULTS[:4]}, RESULTS[:4]),
            unlike=("avg_ts: a mean of rates, where ours is tokens / time",),
            ok=times, failed=0, prompt_tokens=prompt * times, output_tokens=made * times,
            requested_tokens=made * times, started_at=moment(document), engine="llama.cpp",
            engine_version=str(document.get("build_commit") or "") or None,
            machine=tuple(f"{key} {value}" for key, value in words.items() if value),
            options={key: plain(value) for key, value in document.items() if key not in NOT_SETTINGS},
            artifact={"format": "gguf", "size_bytes": int(weights), "method": "unknown", "type": document.get("model_type"),
                "label": f"{name} {name_of_test(document, prompt, made)}"},
            own_process=True,
        )
    ]  # fmt: skip


def name_of_test(document: Document, prompt: int, made: int) -> str:
    """``pp512``, ``tg128``, ``pp512+tg128``, with the depth it began at, as llama-bench's own table has it."""
    depth = numeric(document.get("n_depth"))
    words = "+".join(f"{word}{count}" for word, count in (("pp", prompt), ("tg", made)) if count)
    return words + (f" @ d{depth:.0f}" if depth else "")


def numeric(value: Any) -> float | None:
    """CSV has numbers as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def plain(value: Any) -> Any:
    """One spelling for all three outputs: CSV has ``0`` for ``false``, and every number as text."""
    if isinstance(value, bool):
        return str(int(value))
    return str(value)


def figure(document: Mapping[str, Any], key: str) -> float:
    value = numeric(document.get(key))
    if value is None or not math.isfinite(value) or value < 0:
        raise UsageError(f"its {key} is {str(document.get(key))[:40]}, and no number", hint="run llama-bench again")
    return value


def sample_times(document: Document) -> Sequence[float]:
    """Nanoseconds of every repetition. CSV keeps only their mean: then that is the one that is known."""
    told = document.get("samples_ns")
    values = (
        [figure({"samples_ns": v}, "samples_ns") for v in told]
        if isinstance(told, list)
        else [figure(document, "avg_ns")]
    )
    if not all(values):
        raise UsageError("a repetition of it took no time", hint="run llama-bench again")
    return values


def moment(document: Document) -> str | None:
    try:
        return in_utc(datetime.datetime.fromisoformat(str(document.get("test_time"))))
    except ValueError:
        return None


READER = Reader(
    name="llama-bench", title=TITLE, command="llama-bench -o json", known=("0c1e570",), recognises=recognises, read=read,
)  # fmt: skip
