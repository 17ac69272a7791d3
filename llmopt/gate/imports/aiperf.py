"""AIPerf's ``profile_export_aiperf.json`` and its predecessor's ``profile_export_genai_perf.json``: one object a run.

Both have TTFT and request latency from the send to the events with content, so they are our ``*_service``.  Inter-token
latency divides by n − 1 where the server does not count its chunks: ours where as many gaps as tokens came, which
AIPerf's ``inter_chunk_latency`` tells (from 0.6 on, whose statistics have a count) and genai-perf never does.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.gate.imports import Document, ForeignRun, Reader
from llmopt.gate.imports.figures import MS, in_utc, mean_length, number, part, positive, spread

STATISTICS = ("avg", "p50", "p90", "p95", "p99", "min", "max")
SCALES = {"ms": MS, "sec": 1.0, "s": 1.0, "us": 1e-6, "ns": 1e-9}
MEASURES = ("request_throughput", "request_latency", "time_to_first_token", "time_to_second_token",
            "inter_token_latency", "inter_chunk_latency", "output_token_throughput",
            "output_token_throughput_per_user", "total_token_throughput", "goodput", "request_goodput")  # fmt: skip


def recognises(document: Document) -> bool:
    return isinstance(document.get("request_throughput"), Mapping) and (
        "input_config" in document or "aiperf_version" in document
    )


def read(document: Document) -> list[ForeignRun]:
    """Raises UsageError for an export that is not whole."""
    own = "aiperf_version" in document
    ok, failed = requests(document)
    prompt, output = (tokens(document, name) for name in ("input_sequence_length", "output_sequence_length"))
    unlike = ["output_token_throughput_per_user: 1 / inter-token latency"]
    metrics: dict[str, Any] = {
        "ttft_service_s": times(document, "time_to_first_token", ok, failed),
        "e2e_service_s": times(document, "request_latency", ok, failed),
        "requests_per_s_whole": value(document, "request_throughput"),
        "output_tps_whole": value(document, "output_token_throughput") if not failed else None,
        "total_tps_whole": value(document, "total_token_throughput") if not failed else None,
    }
    if one_token_a_chunk(document, ok, output):
        metrics["tpot_s"] = times(document, "inter_token_latency", ok, failed)
    else:
        unlike.append("inter_token_latency: divides by n − 1, and how many tokens came first is not told")
    return [
        ForeignRun(
            document=document, title="AIPerf" if own else "genai-perf", version=document.get("aiperf_version"),
            model=model_of(document), workload=workload(document, ok + failed, ok, prompt, output),
            metrics=metrics, figures=figures(document), unlike=tuple(unlike), ok=ok, failed=failed,
            errors=errors(document), prompt_tokens=prompt, output_tokens=output, started_at=started(document),
            machine=machine(document),
            cut_short="it was cancelled" if document.get("was_cancelled") or document.get("is_complete") is False else None,
        )
    ]  # fmt: skip


def value(document: Document, name: str) -> float | None:
    """A figure that is one number: it stands as ``avg``."""
    return number(part(document, name), "avg")


def requests(document: Document) -> tuple[int, int]:
    told = value(document, "request_count")
    if told is None:
        told = number(part(document, "request_latency"), "count")
    if told is None:
        raise UsageError(
            "it does not say how many requests there were", hint="it has no request_count: export it again"
        )
    return int(told), int(value(document, "error_request_count") or 0)


def tokens(document: Document, name: str) -> int | None:
    """The sum over all answers: told, or the mean times their number."""
    told = number(part(document, name), "sum")
    if told is None and (mean := value(document, name)) is not None:
        told = mean * requests(document)[0]
    return None if told is None else round(told)


def times(document: Document, name: str, ok: int, failed: int) -> dict[str, Any] | None:
    told = part(document, name)
    if not told:
        return None
    unit = str(told.get("unit"))
    if unit not in SCALES:
        raise UsageError(f"its {name} is in {unit!r}, which is no unit of time", hint="export it again")
    counted = number(told, "count")
    if counted is not None and int(counted) < ok and name != "inter_token_latency":
        return None  # of some of the answers only
    statistics = {("mean" if s == "avg" else s): number(told, s) for s in STATISTICS}
    return spread(statistics, ok=ok, failed=failed, scale=SCALES[unit])


def one_token_a_chunk(document: Document, ok: int, output: int | None) -> bool:
    gaps = number(part(document, "inter_chunk_latency"), "count")
    return gaps is not None and output is not None and int(gaps) == output - ok


def figures(document: Document) -> dict[str, Any]:
    rows = {f"{name}.{s}": part(document, name).get(s) for name in MEASURES for s in STATISTICS}
    return {name: told for name, told in rows.items() if isinstance(told, int | float) and math.isfinite(told)}


def errors(document: Document) -> dict[str, int]:
    """How many failed in which way, by the type that it tells."""
    found: dict[str, int] = {}
    for row in document.get("error_summary") or ():
        kind = str(part(row, "error_details").get("type") or part(row, "error_details").get("code") or "error")
        found[kind] = found.get(kind, 0) + int(row.get("count") or 0)
    return found


def model_of(document: Document) -> str:
    config = part(document, "input_config")
    items = part(config, "models").get("items")
    if isinstance(items, list) and items:
        return str(items[0].get("name"))
    names = part(config, "endpoint").get("model_names") or config.get("model_names")
    return str(names[0] if isinstance(names, list) and names else names or "unknown")


def started(document: Document) -> str | None:
    """Its own time has no zone: that of the machine that it ran on."""
    try:
        return in_utc(datetime.datetime.fromisoformat(str(document.get("start_time"))))
    except ValueError:
        return None


def machine(document: Document) -> tuple[str, ...]:
    """The GPUs, where it watched them."""
    endpoints = part(document, "telemetry_data", "endpoints")
    names = [str(part(gpu).get("gpu_name")) for e in endpoints.values() for gpu in part(e, "gpus").values()]
    return tuple(f"gpu_info {name}" for name in sorted(names))


def workload(document: Document, planned: int, ok: int, prompt: int | None, output: int | None) -> Workload:
    """Of AIPerf's phases and data sets (schema 1.4), its earlier ``loadgen`` and ``input``, or genai-perf's options."""
    config = part(document, "input_config")
    phase = measured_phase(config) or part(config, "loadgen") or part(config, "perf_analyzer", "stimulus")
    rate = number(phase, "rate") or number(phase, "request_rate")
    most = positive(phase, "concurrency")
    if not rate and not most:
        raise UsageError("it does not say its load: neither concurrency nor request rate", hint="export it again")
    endpoint = str(part(config, "endpoint").get("type") or "")
    asked = [asked_length(config, name) for name in ("isl", "osl")]
    common: dict[str, Any] = {
        "input_tokens": asked[0] or mean_length(prompt, ok), "output_tokens": asked[1] or mean_length(output, ok),
        "requests": positive(phase, "requests") or positive(phase, "request_count") or planned,
        "endpoint": "chat" if "chat" in endpoint else "completions",
    }  # fmt: skip
    if not rate:
        return Workload(concurrency=most or 1, **common)
    kind = str(phase.get("type") or phase.get("arrival_pattern") or phase.get("request_rate_mode") or "poisson").lower()
    arrival: Any = "constant" if "constant" in kind else "gamma" if "gamma" in kind else "poisson"
    return Workload(load="open", rate=rate, arrival=arrival, max_concurrency=most, **common)


def measured_phase(config: Mapping[str, Any]) -> Mapping[str, Any]:
    phases = config.get("phases")
    found = [p for p in phases if p.get("kind") == "profiling"] if isinstance(phases, list) else []
    return found[-1] if found else {}


def asked_length(config: Mapping[str, Any], name: str) -> int | None:
    """The mean length that was asked for; ``None`` where the data set decides."""
    sets = config.get("datasets")
    if isinstance(sets, list) and sets:
        mean = number(part(sets[0], "prompts", name), "mean")
    else:
        where = {"isl": ("synthetic_tokens", "input_tokens"), "osl": ("output_tokens", "output_tokens")}[name]
        told = part(config, "input")
        mean = next((m for key in where if (m := number(part(told, key), "mean")) is not None), None)
    return round(mean) if mean and mean > 0 else None


READER = Reader(
    name="aiperf", title="AIPerf", command="aiperf profile …: profile_export_aiperf.json", known=("0.13.0",),
    recognises=recognises, read=read,
)  # fmt: skip
