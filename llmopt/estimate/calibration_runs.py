"""Runs of a results folder as observations: only this device's, only the newest, only what a closed question describes."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmopt.core.domain import ServeOptions
from llmopt.core.errors import LlmoptError
from llmopt.core.load_level import whole
from llmopt.core.machine import available_cores
from llmopt.estimate.calibration import Observation
from llmopt.estimate.efficiency import group_of
from llmopt.estimate.hardware import by_words
from llmopt.estimate.load import Load
from llmopt.estimate.memory import Case, Devices
from llmopt.estimate.peak import engine_cores
from llmopt.estimate.roofline import Peak, demand_of, work_of
from llmopt.estimate.source import Source, open_source

MOST = 300  # records that are read, the newest: a moment's work
PAGE = "machine.json"
OTHER_QUESTIONS = ("images", "adapters", "prefix_tokens")  # of a workload, that the model says nothing of
MOST_CACHED = 0.05
DEFAULTS = asdict(ServeOptions(backend=""))  # of records that were written before an option was there

source_of = functools.cache(open_source)


def observations(places: Sequence[Path], peak: Peak) -> list[Observation]:
    """Of all usable runs of the device; damaged records and vanished artifacts are passed over, as nothing can be learnt of them."""
    found = []
    for file in newest(places, peak):
        try:
            record = json.loads(file.read_bytes())
            observation = observed(record, peak)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, LlmoptError):
            continue
        if observation is not None:
            found.append(observation)
    return found


def newest(places: Sequence[Path], peak: Peak) -> list[Path]:
    """Names begin with the time; those of one machine lie in a folder whose name ends with its fingerprint."""
    files = [
        file
        for place in places
        for folder in machine_folders(place)
        if of_device(folder, peak)
        for file in folder.glob("*.json")
        if file.name != PAGE
    ]
    return sorted(files, key=lambda file: file.name)[-MOST:]


def machine_folders(place: Path) -> Iterator[Path]:
    if (place / PAGE).is_file():
        yield place
    elif place.is_dir():
        yield from (page.parent for page in sorted(place.glob(f"*/{PAGE}")))


def of_device(folder: Path, peak: Peak) -> bool:
    """Whether a machine's page tells of this device: the same processor, or a GPU of that name."""
    try:
        page = json.loads((folder / PAGE).read_bytes())
        if peak.key == page["fingerprint"]:
            return True
        return bool(page["gpus"]) and peak.key in {one.key for one in by_words(page["gpus"][0])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def observed(record: dict[str, Any], peak: Peak) -> Observation | None:
    """``None`` for a run that this model says nothing of. Raises what a record of another making raises."""
    workload, serve, metrics = whole(record["workload"]), DEFAULTS | record["serve"], record["metrics"]
    users = at_once(workload, serve, metrics)
    if users is None or record["verdict"]["status"] == "invalid" or unlike(workload, metrics):
        return None
    artifact = record["artifact"]
    source: Source = source_of(artifact["path"])
    named = artifact["quantization"] if artifact["method"] != "none" else None
    layout, weights = source.in_layout(named, artifact["format"] if named else None)
    tensor_parallel = serve.get("tensor_parallel_size") or 1
    case = Case(
        shape=source.shape, layout=layout, weights=weights, backend=serve["backend"], kv_dtype=serve.get("kv_cache_dtype"),
        load=Load(
            sequences=users, prompt=int(workload["input_tokens"]), output=int(workload["output_tokens"]),
            step_tokens=serve.get("max_num_batched_tokens"),
        ),
        devices=Devices(count=tensor_parallel, tensor_parallel=tensor_parallel, kind=peak.kind),
    )  # fmt: skip
    return Observation(
        group=group_of(serve["backend"], layout, peak.kind), peak=with_threads(peak, serve.get("threads")),
        demand=demand_of(work_of(case), users, peak.link),
        measured=measured(workload, serve, metrics),
        key=str(record["case_key"]),
    )  # fmt: skip


def at_once(workload: dict[str, Any], serve: dict[str, Any], metrics: dict[str, Any]) -> int | None:
    """Sequences in a step: users of a closed loop, as far as the server has slots; of an open one what Little's law tells."""
    slots = int(serve["max_num_seqs"])
    if workload["load"] == "closed":
        return min(int(workload["concurrency"]), slots)
    if workload["load"] == "open" and metrics.get("requests_per_s") and (metrics.get("e2e_s") or {}).get("mean"):
        return int(max(1, min(slots, round(metrics["requests_per_s"] * metrics["e2e_s"]["mean"]))))
    return None


def unlike(workload: dict[str, Any], metrics: dict[str, Any]) -> bool:
    """Whether it asked something else than plain prompts, each its own."""
    return (
        any(workload.get(name) for name in OTHER_QUESTIONS)
        or workload.get("turns", 1) != 1
        or (metrics.get("cache_hit_rate") or 0.0) > MOST_CACHED
    )


def measured(workload: dict[str, Any], serve: dict[str, Any], metrics: dict[str, Any]) -> dict[str, float]:
    """Latencies by the median request.  An open loop's throughput is what was asked, and a queue is no time of a prompt."""
    closed = workload["load"] == "closed"
    queued = closed and int(workload["concurrency"]) > int(serve["max_num_seqs"])
    found = {
        "itl_s": (metrics.get("tpot_s") or {}).get("p50"),
        "output_tps": metrics.get("output_tps") if closed else None,
        "ttft_s": (metrics.get("ttft_s") or {}).get("p50") if closed and not queued else None,
    }
    return {name: float(value) for name, value in found.items() if value}


def with_threads(peak: Peak, threads: int | None) -> Peak:
    """Of a processor, with another number of threads than engines get by default."""
    if threads is None or peak.kind != "cpu":
        return peak
    share = min(threads, available_cores()) / engine_cores()
    return replace(
        peak, bandwidth=peak.bandwidth * share, flops={kind: value * share for kind, value in peak.flops.items()}
    )
