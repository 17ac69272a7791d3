"""GuideLLM's ``benchmarks.json``: a report of several benchmarks (the points of a sweep), each with every request.

Its requests tell enough to work out ours: first and last token since the send, and in how many events the tokens came.
Its own TPOT has the wait for the first token in it, its percentiles weigh by tokens, and its request latency ends with
the response: none of them is ours.  Report versions 2 (0.6 and later) and 1 (0.4 and 0.5) tell the same of a request;
0.3 and earlier had no version, and other names.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.gate.imports import Document, ForeignRun, Reader
from llmopt.gate.imports.figures import in_utc, mean_length, number, of_values, part, per_second, positive

TITLE = "GuideLLM"
MEASURES = ("requests_per_second", "output_tokens_per_second", "request_latency", "time_to_first_token_ms",
            "time_per_output_token_ms", "inter_token_latency_ms", "request_concurrency")  # fmt: skip
STATISTICS = ("mean", "median", "min", "max")
PERCENTILES = ("p90", "p95", "p99")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request that was answered; moments in seconds, ``None`` where unknown."""

    start: float
    first: float | None
    last: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    events: int | None

    @property
    def tpot_s(self) -> float | None:
        """Only where each event brought one token: then the first one did, and n − 1 came after it."""
        tokens = self.output_tokens
        if self.first is None or self.last is None or not tokens or tokens < 2 or self.events != tokens:
            return None
        return (self.last - self.first) / (tokens - 1)


def recognises(document: Document) -> bool:
    found = document.get("benchmarks")
    return isinstance(found, list) and all(isinstance(b, Mapping) and "metrics" in b and "requests" in b for b in found)


def read(document: Document) -> list[ForeignRun]:
    """Raises UsageError for a report without a benchmark, and for one that is not whole."""
    benchmarks = document["benchmarks"]
    if not benchmarks:
        raise UsageError("it has no benchmark", hint="guidellm run … --output kind=json,path=FILE")
    return [read_one(benchmark, document) for benchmark in benchmarks]


def read_one(benchmark: Document, report: Document) -> ForeignRun:
    groups = part(benchmark, "requests")
    answers = [answer(request) for request in groups.get("successful") or ()]
    told = totals(benchmark)
    ok, failed = told.get("successful", len(answers)), told.get("errored", len(groups.get("errored") or ()))
    prompts, outputs = ([getattr(a, name) for a in answers] for name in ("prompt_tokens", "output_tokens"))
    whole = len(answers) == ok  # a sample of the requests says nothing of their percentiles
    unlike = [
        "time_per_output_token_ms: the wait for the first token is in it",
        "request_latency: ends with the response",
    ]
    if not whole:
        unlike.append(f"all times: the report has {len(answers)} of {ok} requests")
    metrics = times(answers, failed) if whole else {}
    if whole and metrics.get("tpot_s") is None:
        unlike.append("inter_token_latency_ms: divides by n − 1, and several tokens came in one event")
    output, prompt = (sum(c) if whole and None not in c else None for c in (outputs, prompts))
    return ForeignRun(
        document=benchmark, title=TITLE, version=part(report, "metadata").get("guidellm_version"),
        model=model_of(benchmark, report), workload=workload(benchmark, report, prompts, outputs),
        metrics=metrics | rates(benchmark, ok, failed, prompt, output), figures=figures(benchmark), unlike=tuple(unlike),
        ok=ok, failed=failed, errors=errors(groups), prompt_tokens=prompt, output_tokens=output,
        started_at=in_utc(number(benchmark, "start_time")), options=options(benchmark, report),
        cut_short="requests were cut off when it ended" if told.get("incomplete") else None,
    )  # fmt: skip


def answer(request: Document) -> Answer:
    """Of report versions 2 and 1, and of the time before."""
    timings = part(request, "info", "timings")
    if timings:
        names = ("request_start", "first_token_iteration", "last_token_iteration")
        start, first, last = (number(timings, name) for name in names)
        events = number(timings, "token_iterations")
    else:
        start, first, last = (number(request, name) for name in ("start_time", "first_token_time", "last_token_time"))
        events = number(request, "output_tokens_iterations")
    if start is None:
        raise UsageError("a request of it has no start", hint="run the benchmark again")
    tokens = [number(request, name) for name in ("prompt_tokens", "output_tokens")]
    prompt, output, count = (None if value is None else int(value) for value in (*tokens, events))
    return Answer(start=start, first=first, last=last, prompt_tokens=prompt, output_tokens=output, events=count)


def totals(benchmark: Document) -> dict[str, int]:
    """How many requests ended how, whatever the report still has of them."""
    for path in (("scheduler_metrics", "requests_made"), ("run_stats", "requests_made"), ("metrics", "request_totals")):
        found = part(benchmark, *path)
        if found:
            return {name: int(value) for name, value in found.items() if isinstance(value, int)}
    return {}


def times(answers: Sequence[Answer], failed: int) -> dict[str, Any]:
    first = [a.first - a.start for a in answers if a.first is not None]
    last = [a.last - a.start for a in answers if a.last is not None]
    several = [a for a in answers if a.output_tokens is None or a.output_tokens > 1]
    each = [a.tpot_s for a in several]
    known = [value for value in each if value is not None]
    proven = known if known and len(known) == len(each) else []
    return {
        "ttft_service_s": of_values(first, failed=failed) if len(first) == len(answers) else None,
        "e2e_service_s": of_values(last, failed=failed) if len(last) == len(answers) else None,
        "tpot_s": of_values(proven, failed=failed),
        "tps": of_values([1 / v for v in proven], failed=0) if all(proven) and not failed else None,
    }


def rates(benchmark: Document, ok: int, failed: int, prompt: int | None, output: int | None) -> dict[str, Any]:
    """Over the whole run. Its own are means over intervals, and leave out what it calls warm-up."""
    begin, end = span(benchmark)
    seconds = end - begin if begin is not None and end is not None else None
    tokens = output if not failed else None
    both = tokens + prompt if tokens is not None and prompt is not None else None
    return {
        "requests_per_s_whole": per_second(ok, seconds),
        "output_tps_whole": per_second(tokens, seconds),
        "total_tps_whole": per_second(both, seconds),
    }


def span(benchmark: Document) -> tuple[float | None, float | None]:
    """From the first send to the last end, warm-up and cool-down included."""
    told = part(benchmark, "scheduler_metrics")
    if "request_start_time" in told:
        return number(told, "request_start_time"), number(told, "request_end_time")
    told = told or part(benchmark, "run_stats") or benchmark
    return number(told, "start_time"), number(told, "end_time")


def figures(benchmark: Document) -> dict[str, Any]:
    """Its own statistics of the successful requests, as it names them."""
    found: dict[str, Any] = {}
    for name in MEASURES:
        told = part(benchmark, "metrics", name, "successful")
        rows = [(s, told.get(s)) for s in STATISTICS] + [(p, part(told, "percentiles").get(p)) for p in PERCENTILES]
        found |= {f"{name}.{s}": v for s, v in rows if isinstance(v, int | float) and math.isfinite(v)}
    return found


def errors(groups: Mapping[str, Any]) -> dict[str, int]:
    """How many failed in which way, by the first words of what it says."""
    told = [part(request, "info").get("error") or request.get("error") for request in groups.get("errored") or ()]
    return dict(Counter(str(words or "error").split("(")[0].split(":")[0][:40].strip() for words in told))


def backend(benchmark: Document, report: Document) -> Mapping[str, Any]:
    return (
        part(benchmark, "config", "backend") or part(benchmark, "worker") or part(report, "config", "spec", "backend")
    )


def model_of(benchmark: Document, report: Document) -> str:
    found = backend(benchmark, report)
    return str(found.get("model") or found.get("backend_model") or part(report, "args").get("model") or "unknown")


def options(benchmark: Document, report: Document) -> dict[str, Any]:
    """What is cut off the run as warm-up changes its figures, and the API changes what a first token is."""
    told = {
        name: value
        for name in ("warmup", "cooldown")
        for value in [part(benchmark, "config", name).get("value") or part(benchmark, "config", name).get("percent")]
        if value
    }
    return told | ({"data": data} if (data := data_name(report)) else {})


def data_name(report: Document) -> str:
    """The name of its data set, without folders; synthetic data is told by its lengths."""
    found = data_of(report)
    name = found.get("path") or found.get("source") or found.get("kind")
    return "" if found.get("prompt_tokens") or not name else str(name).rstrip("/").rpartition("/")[2]


def data_of(report: Document) -> Mapping[str, Any]:
    told = part(report, "config", "spec").get("data") or part(report, "args").get("data")
    first = told[0] if isinstance(told, list) and told else told
    if isinstance(first, str) and "=" in first:  # prompt_tokens=256,output_tokens=128, as it was typed
        return {
            k.strip(): int(v) if v.strip().isdigit() else v for k, _, v in (p.partition("=") for p in first.split(","))
        }
    return first if isinstance(first, Mapping) else {"source": first} if first else {}


def workload(benchmark: Document, report: Document, prompts: Sequence[Any], outputs: Sequence[Any]) -> Workload:
    asked, lengths = data_of(report), []
    for name, seen in (("prompt_tokens", prompts), ("output_tokens", outputs)):
        known = [value for value in seen if value is not None]
        lengths.append(positive(asked, name) or mean_length(sum(known), len(known)))
    spreads = [str(asked[f"{n}_stdev"]) if asked.get(f"{n}_stdev") else "" for n in ("prompt_tokens", "output_tokens")]
    strategy = part(benchmark, "config", "strategy") or part(benchmark, "args", "strategy")
    path = str(backend(benchmark, report).get("request_format") or part(benchmark, "args").get("request_type") or "")
    limits = part(benchmark, "config", "constraints")
    most = positive(part(limits, "max_requests", "args"), "count") or positive(part(limits, "max_requests"), "max_num")
    lasts = number(part(limits, "max_duration", "args"), "seconds") or number(
        part(limits, "max_duration"), "max_duration"
    )
    return Workload(
        input_tokens=lengths[0], output_tokens=lengths[1], endpoint="chat" if "chat" in path else "completions",
        input_lengths=f"stdev {spreads[0]}" if spreads[0] else "", output_lengths=f"stdev {spreads[1]}" if spreads[1] else "",
        requests=most or positive(part(benchmark, "args"), "max_number"),
        duration_s=lasts or number(part(benchmark, "args"), "max_duration"),
        **loop(strategy),
    )  # fmt: skip


def loop(strategy: Mapping[str, Any]) -> dict[str, Any]:
    """Its strategies: one at once, so many at once, as many as go, or arrivals at a rate. Raises UsageError for others."""
    kind = str(strategy.get("type_") or strategy.get("kind") or "")
    rate, most = number(strategy, "rate"), positive(strategy, "max_concurrency")
    if kind == "synchronous":
        return {"concurrency": 1}
    if kind == "concurrent":
        return {"concurrency": positive(strategy, "streams") or most or 1}
    if kind == "throughput":
        return {"concurrency": most or positive(strategy, "worker_count") or 1}
    if kind in ("constant", "async", "poisson") and rate:
        arrival = "poisson" if kind == "poisson" else "constant"
        return {"load": "open", "rate": rate, "arrival": arrival, "max_concurrency": most}
    raise UsageError(
        f"its strategy {kind or 'unknown'!r} is none that is known",
        hint="synchronous, concurrent, throughput, constant and poisson are; a sweep is made of them",
    )


READER = Reader(
    name="guidellm", title=TITLE, command="guidellm run … --output kind=json,path=FILE",
    known=("0.8.1", "0.5.3", "0.3.1"), recognises=recognises, read=read,
)  # fmt: skip
