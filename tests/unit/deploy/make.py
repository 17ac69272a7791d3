"""A deployment made by hand; a test names only what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmopt.deploy.plan import Capacity, Deployment, Engine, Evidence, Figure, Image, Launch, Slo, Wishes

VLLM_METRICS = {
    "time_to_first_token": "vllm:time_to_first_token_seconds",
    "inter_token_latency": "vllm:inter_token_latency_seconds",
    "queue_time": "vllm:request_queue_time_seconds",
    "e2e_time": "vllm:e2e_request_latency_seconds",
    "prefix_cache_queries": "vllm:prefix_cache_queries_total",
    "prefix_cache_hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
}


def launch(host: str = "0.0.0.0", port: int = 8000, model: str = "/model") -> Launch:
    argv = (
        "python3",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--host",
        host,
        "--port",
        str(port),
    )
    return Launch(argv=argv, environment={"VLLM_NO_USAGE_STATS": "1"})


def engine(**changes: Any) -> Engine:
    path = changes.get("artifact", "/srv/models/tiny")
    made = Engine(
        backend="vllm",
        title="vLLM",
        version="0.32.0",
        native=lambda host, port: launch(host, port, path),
        inside=launch(),
        image=Image(name="vllm/vllm-openai:v0.32.0", entrypoint="", gpu=True, shared_memory_bytes=16 * 2**30),
        model="tiny",
        artifact=path,
        artifact_bytes=15 * 2**30,
        health_path="/health",
        metrics_path="/metrics",
        metrics=VLLM_METRICS,
        histogram_bounds={"vllm:time_to_first_token_seconds": (0.1, 0.25, 0.5, 0.75, 1.0)},
        gpus=1,
        max_num_seqs=16,
        max_model_len=4096,
    )
    return replace(made, **changes)


def evidence(**changes: Any) -> Evidence:
    made = Evidence(
        source="ranking.json",
        label="gptq-int4-g128 on vllm",
        key="0123456789abcdef",
        rank=1,
        verdict="valid",
        reasons=(),
        evidence="measured",
        runs=5,
        run_ids=("20261120T100000-00000001",),
        machine={"cpu": "Some CPU 9000", "gpus": ["NVIDIA H100"], "memory_bytes": 2**37},
        workload={"input_tokens": 512, "output_tokens": 128, "concurrency": 16, "requests": 256, "load": "closed"},
        load="concurrency 16",
        concurrency=16,
        figures={
            "ttft_p95": Figure(value=0.4, low=0.38, high=0.42, unit="s"),
            "tpot_p95": Figure(value=0.02, low=0.019, high=0.021, unit="s"),
            "requests_per_s": Figure(value=5.0, low=4.8, high=5.2, unit="1/s"),
            "output_tps": Figure(value=640.0, low=620.0, high=660.0, unit="tokens/s"),
        },
        curve=(),
        quality={"kl_mean": 0.01, "top1_agreement": 0.97},
        slos=(
            Slo(text="ttft_p95<500ms", metric="ttft", share=0.95, bound=0.5, measured=0.4),
            Slo(text="tpot_p95<50ms", metric="tpot", share=0.95, bound=0.05, measured=0.02),
        ),
        peak_memory_bytes=18 * 2**30,
        peak_vram_bytes=70 * 2**30,
        load_s=60.0,
    )
    return replace(made, **changes)


def capacity(**changes: Any) -> Capacity:
    made = Capacity(
        replicas=2,
        spare=1,
        per_replica_rps=4.8,
        total_rps=9.6,
        after_one_lost_rps=4.8,
        load_rps=4.0,
        per_month=None,
        per_month_spot=None,
        words=("2 replicas: 4.0 requests/s need 1, and one may be lost",),
    )
    return replace(made, **changes)


def deployment(**changes: Any) -> Deployment:
    """``engine``, ``evidence``, ``capacity`` and ``wishes`` are whole nouns, or dicts of what is another in them."""
    makers = {"engine": engine, "evidence": evidence, "capacity": capacity, "wishes": wishes}
    parts = {n: made(**g) if isinstance(g := changes.pop(n, {}), dict) else g for n, made in makers.items()}
    return Deployment(**parts, llmopt_version="0.1.0", **changes)


def wishes(**changes: Any) -> Wishes:
    return replace(Wishes(name="tiny", target="compose", replicas=2, monitoring=True), **changes)
