"""``text-generation-launcher``: spellings of 3.3 (``docs/source/reference/launcher.md``)."""

from __future__ import annotations

import argparse
import os
import sys

from tests.contract.engines.fake_engine import Face, refuse, run

INFO = {
    "model_id": "/model",
    "sha": "…",
    "router": "text-generation-router",
    "version": "3.3.5",
    "max_total_tokens": 1024,
}
FACE = Face(name="tgi", owned_by="/model", server="", pages={"/health": None, "/info": INFO, "/metrics": "tgi.metrics"})


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="text-generation-launcher", exit_on_error=False)
    found.add_argument("--model-id", default="bigscience/bloom-560m")
    found.add_argument("--hostname", default="0.0.0.0")
    found.add_argument("--port", "-p", type=int, default=3000)
    found.add_argument("--usage-stats", choices=["on", "off", "no-stack"])
    for name in (
        "--num-shard", "--speculate", "--max-input-tokens", "--max-total-tokens", "--max-batch-prefill-tokens",
        "--max-batch-total-tokens", "--max-batch-size", "--max-concurrent-requests",
    ):  # fmt: skip
        found.add_argument(name, type=int)
    found.add_argument("--kv-cache-dtype", choices=["fp8_e4m3fn", "fp8_e5m2"])
    found.add_argument("--cuda-memory-fraction", type=float, default=1.0)
    found.add_argument("--cuda-graphs")
    found.add_argument("--lora-adapters")
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print("text-generation-launcher 3.3.5")
        sys.exit(0)
    args, strange = parser().parse_known_args()
    if strange:
        refuse(f"error: unexpected argument '{strange[0]}' found", 2)
    if args.max_total_tokens and (args.max_input_tokens or 0) >= args.max_total_tokens:
        refuse('Error: ArgumentValidation("`max_input_tokens` must be < `max_total_tokens`")')
    cuts = not args.speculate and os.environ.get("ATTENTION") != "paged"
    if not cuts and args.max_batch_prefill_tokens and args.max_batch_prefill_tokens < (args.max_input_tokens or 0):
        refuse('Error: ArgumentValidation("`max_batch_prefill_tokens` must be >= `max_input_tokens`. Given: 8 and 16")')
    if os.environ.get("ATTENTION", "flashinfer") not in ("flashinfer", "flashdecoding", "paged"):
        refuse('Error: ArgumentValidation("Invalid attention")')
    run(FACE, host=args.hostname, port=args.port, model=args.model_id, slots=args.max_batch_size or 8)
