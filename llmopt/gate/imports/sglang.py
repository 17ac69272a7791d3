"""SGLang's ``bench_serving``: a line of JSON for each run, written behind what the file has already.

Its clients end the latency with ``[DONE]``, after the last token, so neither it nor TPOT, which is made of it, is ours;
with ``--output-details`` the gaps of every request tell both.  Only the native client (``--backend sglang``) divides a
gap over its tokens, and counts them as the server does; the OpenAI clients take the length that was asked for.
"""

from __future__ import annotations

from typing import Any

from llmopt.core.domain import Workload
from llmopt.core.errors import UsageError
from llmopt.gate.imports import Document, ForeignRun, Reader
from llmopt.gate.imports.figures import count, flat, mean_length, number, of_values, part, positive, required, spread

TITLE = "SGLang bench_serving"
STATISTICS = {"mean": "mean", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99"}
TIMES = ("ttft", "tpot", "itl", "e2e_latency")
RATES = ("duration", "request_throughput", "input_throughput", "output_throughput", "total_throughput", "concurrency",
         "accept_length", "max_output_tokens_per_s", "max_concurrent_requests")  # fmt: skip


def recognises(document: Document) -> bool:
    return {"request_throughput", "completed", "total_input_tokens", "mean_e2e_latency_ms"} <= document.keys()


def read(document: Document) -> list[ForeignRun]:
    """Raises UsageError for a line that is not whole."""
    ok, (failed, errors) = count(document, "completed"), failures(document)
    prompt, output = (count(document, name) for name in ("total_input_tokens", "total_output_tokens"))
    unlike = ["e2e_latency: ends with [DONE]", "tpot: made of that", "itl: pooled over all requests"]
    metrics: dict[str, Any] = {
        "requests_per_s_whole": required(document, "request_throughput"),
        "output_tps_whole": number(document, "output_throughput") if not failed else None,
        "total_tps_whole": number(document, "total_throughput") if not failed else None,
    }
    metrics |= times(document, ok, failed)
    info = part(document, "server_info")
    version = info.get("version")
    return [
        ForeignRun(
            document=document, title=TITLE, version=None, model=model_of(document),
            workload=workload(document, ok, prompt, output), metrics=metrics,
            figures=flat(document, [*(f"{s}_{n}_ms" for n in TIMES for s in (*STATISTICS, "std")), *RATES]),
            unlike=tuple(unlike), ok=ok, failed=failed, errors=errors, prompt_tokens=prompt, output_tokens=output,
            engine="sglang" if info else None, engine_version=str(version) if version else None,
            options={n: str(document[n]) for n in ("backend", "dataset_name", "tag") if document.get(n)},
        )
    ]  # fmt: skip


def failures(document: Document) -> tuple[int, dict[str, int]]:
    """Its line has no count of them: they are known only with ``--output-details``."""
    told = document.get("errors")
    words = [str(e) for e in told if e] if isinstance(told, list) else []
    return len(words), {"error": len(words)} if words else {}


def times(document: Document, ok: int, failed: int) -> dict[str, Any]:
    told = [document.get(name) for name in ("ttfts", "itls", "output_lens", "errors")]
    if not all(isinstance(column, list) for column in told):
        statistics = {ours: number(document, f"{theirs}_ttft_ms") for theirs, ours in STATISTICS.items()}
        return {"ttft_service_s": spread(statistics, ok=ok, failed=failed)}
    if len({len(column) for column in told if column is not None}) != 1:
        raise UsageError("its lists of requests have different lengths", hint="run the benchmark again")
    rows = zip(*(column for column in told if column is not None), strict=True)
    good = [(first, gaps, tokens) for first, gaps, tokens, error in rows if not error and tokens]
    found: dict[str, Any] = {
        "ttft_service_s": of_values([first for first, _, _ in good], failed=failed),
        "e2e_service_s": of_values([first + sum(gaps) for first, gaps, _ in good], failed=failed),
    }
    # The native client has a gap for every token after the first event, the others one for every event after it.
    native = str(document.get("backend")) in ("sglang", "sglang-native")
    several = [gaps for _, gaps, tokens in good if tokens > 1 and (native or len(gaps) == tokens - 1)]
    if several and all(several) and len(several) == sum(tokens > 1 for _, _, tokens in good):
        each = [sum(gaps) / len(gaps) for gaps in several]
        found["tpot_s"] = of_values(each, failed=failed)
    return found


def model_of(document: Document) -> str:
    """The line does not name it, but what the server told of itself does."""
    info = part(document, "server_info")
    path = str(info.get("served_model_name") or info.get("model_path") or "unknown")
    return path.rstrip("/").rpartition("/")[2] or "unknown"


def workload(document: Document, ok: int, prompt: int, output: int) -> Workload:
    synthetic = str(document.get("dataset_name") or "").startswith("random")
    exact = number(document, "random_range_ratio") == 1.0
    asked = [number(document, f"random_{name}_len") if synthetic and exact else None for name in ("input", "output")]
    rate, most = document.get("request_rate"), positive(document, "max_concurrency")
    errors = document.get("errors")
    planned = len(errors) if isinstance(errors, list) else ok
    common: dict[str, Any] = {
        "input_tokens": int(asked[0] or mean_length(prompt, ok)), "output_tokens": int(asked[1] or mean_length(output, ok)),
        "requests": planned, "endpoint": "chat" if "chat" in str(document.get("backend")) else "completions",
    }  # fmt: skip
    if rate == "trace":
        return Workload(load="trace", max_concurrency=most, **common)
    if rate is None or rate == "inf" or rate == float("inf"):
        return Workload(concurrency=most or planned, **common)
    return Workload(
        load="open", rate=number(document, "request_rate"), arrival="poisson",
        max_concurrency=most, **common,
    )  # fmt: skip


READER = Reader(
    name="sglang", title=TITLE, command="python -m sglang.bench_serving --output-file FILE --output-details",
    known=("0.5.23",), recognises=recognises, read=read,
)  # fmt: skip
