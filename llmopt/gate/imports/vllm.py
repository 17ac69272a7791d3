"""``vllm bench serve --save-result`` and ``--append-result``: one JSON object a run.

Its formulas stand in ``llmopt.bench.definitions``.  TTFT and end-to-end latency run from the send, so they are our
``*_service``; not over the chat API, whose client takes the role-only first event for a token.  TPOT divides by n − 1,
which is ours only where every event brought one token: ``--save-detailed`` shows it.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.gate.imports import Document, ForeignRun, Reader
from llmopt.gate.imports.figures import count, flat, in_utc, mean_length, number, of_values, positive, required, spread

TITLE = "vllm bench serve"
TIMES = ("ttft", "tpot", "itl", "e2el")
STATISTICS = {"mean": "mean", "median": "p50", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
RATES = ("request_throughput", "request_goodput", "output_throughput", "total_token_throughput")
OTHERS = ("duration", "max_output_tokens_per_s", "max_concurrent_requests", "spec_decode_acceptance_rate",
          "spec_decode_acceptance_length")  # fmt: skip


def recognises(document: Document) -> bool:
    return {"request_throughput", "completed", "num_prompts"} <= document.keys() and bool(
        {"endpoint_type", "backend", "model_id"} & document.keys()
    )


def read(document: Document) -> list[ForeignRun]:
    """Raises UsageError for a result that is not whole."""
    ok, prompts = count(document, "completed"), count(document, "num_prompts")
    failed = count(document, "failed") if document.get("failed") is not None else max(0, prompts - ok)
    client = str(document.get("backend") or document.get("endpoint_type"))
    chat = "chat" in client
    prompt, output = (required(document, name) for name in ("total_input_tokens", "total_output_tokens"))
    unlike = ["itl: gaps between events, pooled, as they were parsed"]
    metrics: dict[str, Any] = {
        "requests_per_s_whole": required(document, "request_throughput"),
        # Of the answers that were whole; ours counts what came before a stream failed too.
        "output_tps_whole": number(document, "output_throughput") if not failed else None,
        "total_tps_whole": number(document, "total_token_throughput") if not failed else None,
    }
    if chat:
        unlike.append("ttft, tpot: its chat client takes an event without text for the first token")
        metrics["e2e_service_s"] = told(document, "e2el", ok, failed)
    else:
        metrics |= times(document, ok, failed)
        if metrics.get("tpot_s") is None:
            unlike.append("tpot: divides by n − 1; ours where --save-detailed shows one token an event")
    return [
        ForeignRun(
            document=document, title=TITLE, version=None, model=str(document.get("model_id") or "unknown"),
            workload=workload(document, prompts, mean_length(prompt, ok), mean_length(output, ok), chat),
            metrics=metrics, figures=flat(document, [*figure_names(), *RATES, *OTHERS]), unlike=tuple(unlike),
            ok=ok, failed=failed, prompt_tokens=int(prompt), output_tokens=int(output),
            started_at=started(document), options={"client": client} | label(document),
        )
    ]  # fmt: skip


def figure_names() -> list[str]:
    return [f"{statistic}_{name}_ms" for name in TIMES for statistic in (*STATISTICS, "std")]


def label(document: Document) -> dict[str, Any]:
    """What somebody called the run, and which tokenizer counted: another one counts otherwise."""
    tokenizer = str(document.get("tokenizer_id") or "").rstrip("/").rpartition("/")[2]
    found = {"label": document.get("label"), "tokenizer": tokenizer}
    return {name: value for name, value in found.items() if value}


def told(document: Document, name: str, ok: int, failed: int) -> dict[str, Any] | None:
    found = {ours: number(document, f"{theirs}_{name}_ms") for theirs, ours in STATISTICS.items()}
    found["p50"] = number(document, f"median_{name}_ms")
    return spread(found, ok=ok, failed=failed)


def times(document: Document, ok: int, failed: int) -> dict[str, Any]:
    """Of every request where they were saved, else by its own statistics."""
    requests = detailed(document)
    if requests is None:
        return {
            "ttft_service_s": told(document, "ttft", ok, failed),
            "e2e_service_s": told(document, "e2el", ok, failed),
        }
    found: dict[str, Any] = {
        "ttft_service_s": of_values([first for first, _, _ in requests], failed=failed),
        "e2e_service_s": of_values([first + sum(gaps) for first, gaps, _ in requests], failed=failed),
    }
    several = [(gaps, tokens) for _, gaps, tokens in requests if tokens > 1]
    if several and all(len(gaps) == tokens - 1 for gaps, tokens in several):
        each = [sum(gaps) / len(gaps) for gaps, _ in several]
        found["tpot_s"] = of_values(each, failed=failed)
        if all(each):
            found["tps"] = of_values([1 / value for value in each], failed=0) if not failed else None
    return found


def detailed(document: Document) -> list[tuple[float, list[float], int]] | None:
    """TTFT, gaps and tokens of every request that was answered; ``None`` where they were not saved."""
    columns = [document.get(name) for name in ("ttfts", "itls", "output_lens", "errors")]
    if not all(isinstance(column, list) for column in columns):
        return None
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) != 1:
        raise UsageError("its lists of requests have different lengths", hint="run the benchmark again")
    rows = zip(*(column for column in columns if column is not None), strict=True)
    return [(first, gaps, tokens) for first, gaps, tokens, error in rows if not error and tokens]


def started(document: Mapping[str, Any]) -> str | None:
    """``20261122-053858``, in the time of the machine that it ran on."""
    try:
        return in_utc(datetime.datetime.strptime(str(document.get("date")), "%Y%m%d-%H%M%S"))
    except ValueError:
        return None


def workload(document: Document, prompts: int, input_tokens: int, output_tokens: int, chat: bool) -> Workload:
    rate, most = document.get("request_rate"), positive(document, "max_concurrency")
    common: dict[str, Any] = {
        "input_tokens": input_tokens, "output_tokens": output_tokens, "requests": prompts,
        "endpoint": "chat" if chat else "completions",
    }  # fmt: skip
    if document.get("ramp_up_strategy"):
        return Workload(
            load="ramp", rate=number(document, "ramp_up_start_rps"), rate_to=number(document, "ramp_up_end_rps"),
            arrival="poisson", max_concurrency=most, **common,
        )  # fmt: skip
    if rate in (None, "inf") or rate == float("inf"):
        return Workload(concurrency=most or prompts, **common)
    burstiness = number(document, "burstiness") or 1.0
    return Workload(
        load="open", rate=number(document, "request_rate"), arrival="poisson" if burstiness == 1 else "gamma",
        burstiness=burstiness, max_concurrency=most, **common,
    )  # fmt: skip


READER = Reader(
    name="vllm", title=TITLE, command="vllm bench serve --save-result --save-detailed", known=("0.32.0",),
    recognises=recognises, read=read,
)  # fmt: skip
