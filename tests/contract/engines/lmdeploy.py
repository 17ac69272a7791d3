"""``lmdeploy serve api_server MODEL``: spellings of 0.18 (``cli/serve.py``, ``cli/utils.py``)."""

from __future__ import annotations

import argparse
import sys

from tests.contract.engines.fake_engine import Face, refuse, run

FACE = Face(
    name="lmdeploy",
    owned_by="lmdeploy",
    pages={"/health": {"status": "healthy"}, "/metrics": "lmdeploy.metrics"},
)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="lmdeploy serve api_server")
    found.add_argument("model_path")
    found.add_argument("--server-name", default="0.0.0.0")
    found.add_argument("--server-port", type=int, default=23333)
    found.add_argument("--model-name")
    found.add_argument("--backend", choices=["pytorch", "turbomind"], default="turbomind")
    for name in (
        "--session-len",
        "--max-batch-size",
        "--max-prefill-token-num",
        "--cache-block-seq-len",
        "--quant-policy",
        "--tp",
    ):
        found.add_argument(name, type=int)
    found.add_argument("--cache-max-entry-count", type=float, default=0.8)
    found.add_argument("--adapters", nargs="*")
    for name in ("--enable-prefix-caching", "--eager-mode", "--disable-metrics"):
        found.add_argument(name, action="store_true")
    return found


if __name__ == "__main__":
    if sys.argv[1:3] != ["serve", "api_server"]:
        sys.exit("lmdeploy: error: invalid choice")
    args = parser().parse_args(sys.argv[3:])
    if args.backend == "turbomind":  # the fields of its configuration, and words that are of the other engine alone
        if args.quant_policy not in (None, 0, 4, 8):
            refuse("pydantic_core._pydantic_core.ValidationError: invalid quant_policy")
        if args.eager_mode or args.adapters:
            refuse("AssertionError: of the PyTorch engine alone")
    run(FACE, host=args.server_name, port=args.server_port, model=args.model_name, slots=args.max_batch_size or 8)
