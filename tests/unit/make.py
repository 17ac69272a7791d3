"""Hand-made nouns: every builder has sound defaults, so a test names only what it is about."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmopt.core.artifacts import MANIFEST, manifest_of
from llmopt.core.domain import Artifact, Machine, Measurement, Quantization, RequestTrace, Verdict
from llmopt.recommend.candidates import Candidate, comparable

MACHINE = Machine(
    fingerprint="abc123",
    cpu="Some CPU 9000",
    physical_cores=2,
    logical_cores=4,
    memory_bytes=2**33,
    gpus=(),
    system="Linux x86_64",
)
WORKLOAD = {"input_tokens": 64, "output_tokens": 32, "concurrency": 4, "requests": 64}
QUALITY = {
    "kl_mean": 0.01,
    "kl_p99": 0.2,
    "top1_agreement": 0.97,
    "perplexity": 12.0,
    "kl_mean_interval": [0.009, 0.011],
    "top1_interval": [0.96, 0.98],
}


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def trace(
    *at_s: float, tokens: int | Sequence[int | None] | None = 1, planned_s: float = 0.0, sent_s: float | None = None,
    **fields: Any,
) -> RequestTrace:  # fmt: skip
    """A request whose token chunks were read at these seconds; ``tokens`` of all chunks, or of each; unknown with a ``None``."""
    counts = list(tokens) if isinstance(tokens, Sequence) else [tokens] * len(at_s)
    output = sum(n or 0 for n in counts) or None
    known = {
        "index": 0,
        "planned_ns": ns(planned_s),
        "sent_ns": ns(planned_s if sent_s is None else sent_s),
        "closed_ns": ns(max(at_s, default=planned_s)),
        "chunks_ns": tuple(ns(t) for t in at_s),
        "chunk_tokens": () if None in counts else tuple(counts),
        "requested_output_tokens": output or 0,
        "prompt_tokens_asked": 10,
        "prompt_tokens": 10,
        "output_tokens": output,
        "finish_reason": "length",
    }
    return RequestTrace(**known | fields)


def failed(planned_s: float = 0.0, **fields: Any) -> RequestTrace:
    return trace(planned_s=planned_s, **{"error": "refused: connection refused", "prompt_tokens": None} | fields)


def closed_loop(
    requests: int = 64, users: int = 4, first_s: float = 0.1, gap_s: float = 0.1, tokens: int = 10, **fields: Any
) -> list[RequestTrace]:
    """A perfect run: each user asks anew the moment the last answer ended."""
    length = first_s + gap_s * (tokens - 1)
    traces = []
    for index in range(requests):
        start = (index // users) * length
        at = [start + first_s + gap_s * n for n in range(tokens)]
        traces.append(trace(*at, planned_s=start, index=index, **fields))
    return traces


def open_loop(
    requests: int = 64, rate: float = 10.0, first_s: float = 0.1, gap_s: float = 0.1, tokens: int = 10, **fields: Any
) -> list[RequestTrace]:
    """A perfect run: requests arrive at a constant rate, and the server has room for all of them."""
    traces = []
    for index in range(requests):
        start = index / rate
        at = [start + first_s + gap_s * n for n in range(tokens)]
        traces.append(trace(*at, planned_s=start, index=index, **fields))
    return traces


def distribution(value: float, n: int = 64) -> dict[str, Any]:
    return dict.fromkeys(("mean", "p50", "p90", "p95", "min", "max"), value) | {"p99": None, "n": n, "missing": 0}


def metrics(throughput: float = 100.0, latency_s: float = 1.0, memory: float | None = 2**30) -> dict[str, Any]:
    return {
        "output_tps": throughput,
        "requests_per_s": throughput / 32,
        "ttft_s": distribution(latency_s / 10),
        "tps": distribution(32 / latency_s),
        "e2e_s": distribution(latency_s),
        "peak_rss_bytes": memory,
        "peak_vram_bytes": None,
        "error_rate": 0.0,
    }


def run(name: str = "nf4-dq", engine: str = "hf", throughput: float = 100.0, **fields: Any) -> Measurement:
    number = f"{abs(hash((name, engine, throughput, str(fields)))):016x}"[-8:]
    rate = fields.get("metrics", {}).get("output_tps", throughput)
    known = {
        "run_id": f"20250101T000000-{number}",
        "started_at": "2025-01-01T00:00:00.000+00:00",
        "case_key": f"{name}-{engine}",
        "machine": MACHINE,
        "backend": {"name": engine, "version": "1.0", "argv": ["serve"]},
        "artifact": {"quantization": name, "method": "none" if name == "bf16" else "some", "base_key": "base",
                     "base_name": "some model", "bits_per_weight": 4.5},
        "serve": {"backend": engine},
        "workload": WORKLOAD,
        "verdict": Verdict(status="valid"),
        "metrics": metrics(throughput),
        "intervals": {"output_tps": {"low": rate * 0.99, "high": rate * 1.01, "over": "blocks"}} if rate else {},
        "quality": QUALITY,
    }  # fmt: skip
    return Measurement(**known | fields)


def candidate(
    name: str = "a", throughput: float = 100.0, latency_s: float = 1.0, memory: float | None = 2**30, kl: float | None = 0.01,
    spread: float = 0.01, runs: int = 3, figures: dict[str, Any] | None = None, **fields: Any,
) -> Candidate:  # fmt: skip
    """A configuration with one load point: so many runs whose throughputs lie within ± ``spread``; ``figures`` go over the rest."""
    quality = None if kl is None else QUALITY | {"kl_mean": kl, "kl_mean_interval": [0.9 * kl, 1.1 * kl]}
    steps = [0.0] if runs == 1 else [2 * n / (runs - 1) - 1 for n in range(runs)]
    made = [
        run(name, metrics=metrics(throughput * (1 + spread * step), latency_s, memory) | (figures or {}),
            **{"quality": quality, "started_at": f"2025-01-{day:02}", "intervals": {}} | fields)
        for day, step in enumerate(steps, 1)
    ]  # fmt: skip
    (found,) = comparable(made).candidates
    return found


def curve(name: str = "a", engine: str = "hf", runs: int = 1, **levels: Any) -> list[Measurement]:
    """Runs of one configuration in closed loops: ``u4=(throughput, ttft_s)`` is what four users get."""
    made = []
    for level, (throughput, ttft_s) in levels.items():
        users = int(level[1:])
        figures = metrics(throughput) | {"ttft_s": distribution(ttft_s)}
        for day in range(runs):
            made.append(
                run(name, engine, metrics=figures, workload=WORKLOAD | {"concurrency": users}, intervals={},
                    run_id=f"{name}-{engine}-{users}-{day}", started_at=f"2025-01-{day + 1:02}")
            )  # fmt: skip
    return made


def safetensors(file: Path, shape: tuple[int, ...] = (2, 4), dtype: str = "BF16", fill: int = 7) -> Path:
    """One tensor of two-byte numbers."""
    size = 2
    for extent in shape:
        size *= extent
    header = json.dumps({"weight": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes([fill]) * size)
    return file


def model(folder: Path, **config: Any) -> Path:
    """The smallest folder that passes for a model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["Tiny"]} | config))
    (folder / "tokenizer.json").write_text("{}")
    safetensors(folder / "model.safetensors")
    return folder


def artifact(folder: Path, name: str = "nf4-dq", format: str = "bitsandbytes") -> Artifact:
    """A folder that passes for a finished artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors(folder / "model.safetensors")
    made = Artifact(
        path=str(folder),
        quantization=Quantization(name=name, method="bitsandbytes", format=format, bits=4),  # type: ignore[arg-type]
        base="base",
        base_fingerprint="f" * 32,
        size_bytes=weights.stat().st_size,
        bits_per_weight=4.5,
        key="k" * 16,
    )
    (folder / MANIFEST).write_bytes(manifest_of(made))
    return made


def weights(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A safetensors file of zeros with these tensors of two-byte numbers."""
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(place))
    return file


def decoder(
    folder: Path, hidden: int = 256, inner: int = 512, layers: int = 2, vocabulary: int = 512, **config: Any
) -> Path:
    """A folder with the tensors of a small Qwen2, all zero, and the bundled tokenizer."""
    from llmopt import demo

    folder.mkdir(parents=True, exist_ok=True)
    known = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": hidden,
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(known | config))
    (folder / "tokenizer.json").write_bytes((demo.MODEL / "tokenizer.json").read_bytes())
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"} | {
            f"model.layers.{layer}.mlp.up_proj.weight": (inner, hidden),
            f"model.layers.{layer}.mlp.down_proj.weight": (hidden, inner),
            f"model.layers.{layer}.input_layernorm.weight": (hidden,),
        }
    weights(folder / "model.safetensors", shapes)
    return folder
