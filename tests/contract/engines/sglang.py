"""``sglang serve``: spellings of 0.5.23 (``srt/arg_groups/fields``), of which these are the ones that matter here."""

from __future__ import annotations

import argparse
import sys

from tests.contract.engines.fake_engine import Face, run

FACE = Face(
    name="sglang",
    owned_by="sglang",
    pages={
        "/health": None,
        "/metrics": "sglang.metrics",
        "/server_info": {"version": "0.5.23", "launch_command": "sglang serve", "internal_states": []},
        "/get_server_info": {"version": "0.5.23", "launch_command": "sglang serve", "internal_states": []},
    },
)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="sglang serve")
    for name in ("--model-path", "--model"):
        found.add_argument(name, dest="model_path")
    found.add_argument("--served-model-name")
    found.add_argument("--host", default="127.0.0.1")
    found.add_argument("--port", type=int, default=30000)
    for name in (
        "--context-length", "--max-running-requests", "--max-prefill-tokens", "--chunked-prefill-size", "--page-size",
        "--speculative-num-steps", "--speculative-eagle-topk", "--speculative-num-draft-tokens",
    ):  # fmt: skip
        found.add_argument(name, type=int)
    found.add_argument("--tp-size", "--tensor-parallel-size", "--tp", type=int, default=1)
    found.add_argument("--pp-size", "--pipeline-parallel-size", type=int, default=1)
    found.add_argument("--mem-fraction-static", type=float)
    found.add_argument("--kv-cache-dtype", choices=["auto", "fp8_e5m2", "fp8_e4m3", "bf16", "bfloat16", "fp4_e2m1"])
    found.add_argument(
        "--attention-backend", choices=["triton", "torch_native", "flex_attention", "fa3", "fa4", "flashinfer"]
    )
    found.add_argument("--speculative-algorithm")
    found.add_argument("--speculative-draft-model-path", "--speculative-draft-model")
    found.add_argument("--lora-paths", nargs="*")
    for name in ("--disable-radix-cache", "--disable-cuda-graph", "--enable-metrics", "--enable-cache-report"):
        found.add_argument(name, action="store_true")
    return found


if __name__ == "__main__":
    if sys.argv[1:2] != ["serve"]:
        sys.exit("sglang: error: argument subcommand: invalid choice")
    args = parser().parse_args(sys.argv[2:])
    run(FACE, host=args.host, port=args.port, model=args.served_model_name, slots=args.max_running_requests or 8)
