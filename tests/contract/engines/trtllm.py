"""``trtllm-serve MODEL``: spellings of 1.2 (``commands/serve.py``), and the fields that its file may hold."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from tests.contract.engines.fake_engine import Face, refuse, run

FACE = Face(
    name="trtllm",
    owned_by="tensorrt_llm",
    pages={"/health": None, "/version": {"version": "1.2.1"}, "/metrics": [], "/prometheus/metrics": "trtllm.metrics"},
)
FIELDS = {
    "return_perf_metrics", "enable_iter_perf_stats", "kv_cache_config", "attn_backend", "cuda_graph_config", "speculative_config",
}  # fmt: skip
CACHE_FIELDS = {"enable_block_reuse", "free_gpu_memory_fraction", "dtype", "tokens_per_block", "max_tokens"}
DRAFT_FIELDS = {"decoding_type", "max_draft_len", "speculative_model"}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="trtllm-serve")
    found.add_argument("model")
    found.add_argument("--host", default="localhost")
    found.add_argument("--port", type=int, default=8000)
    found.add_argument("--backend", choices=["pytorch", "tensorrt", "_autodeploy", "trt"], default="pytorch")
    for name in ("--max_batch_size", "--max_num_tokens", "--max_seq_len", "--max_beam_width"):
        found.add_argument(name, type=int)
    found.add_argument("--tp_size", "--tensor_parallel_size", type=int, default=1)
    found.add_argument("--pp_size", "--pipeline_parallel_size", type=int, default=1)
    found.add_argument("--free_gpu_memory_fraction", "--kv_cache_free_gpu_memory_fraction", type=float)
    found.add_argument("--enable_chunked_prefill", action="store_true")
    found.add_argument("--config", "--extra_llm_api_options", dest="file")
    return found


def check(file: str) -> None:
    """Its file is validated as pydantic does: a field that is none is an error."""
    held = yaml.safe_load(Path(file).read_text())
    parts = [
        (held, FIELDS),
        (held.get("kv_cache_config") or {}, CACHE_FIELDS),
        (held.get("speculative_config") or {}, DRAFT_FIELDS),
    ]
    for part, known in parts:
        if strange := set(part) - known:
            refuse(f"pydantic_core._pydantic_core.ValidationError: {strange.pop()}\n  Extra inputs are not permitted")


if __name__ == "__main__":
    args = parser().parse_args()
    if args.file:
        check(args.file)
    run(FACE, host=args.host, port=args.port, model=Path(args.model).name, slots=args.max_batch_size or 8)
