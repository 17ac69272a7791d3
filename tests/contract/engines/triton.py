"""Triton's ``openai_frontend/main.py``: its own options, and a model repository that must be there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.contract.engines.fake_engine import Face, refuse, run

FACE = Face(
    name="triton", owned_by="Triton Inference Server", pages={"/health/ready": None, "/metrics": "triton.metrics"}
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-repository", required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--backend", choices=["vllm", "tensorrtllm"])
    parser.add_argument("--lora-separator")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--openai-port", type=int, default=9000)
    parser.add_argument("--enable-kserve-frontends", action="store_true")
    args = parser.parse_args()
    configurations = list(Path(args.model_repository).glob("*/config.pbtxt"))
    if not configurations or 'backend: "vllm"' not in configurations[0].read_text():
        refuse("tritonserver._c.triton_bindings.InvalidArgumentError: failed to load all models")
    arguments = json.loads((configurations[0].parent / "1" / "model.json").read_text())
    if not Path(arguments["model"]).is_dir():
        refuse(f"failed to load 'model' version 1: Internal: OSError: {arguments['model']} is not a local folder")
    run(
        FACE,
        host=args.host,
        port=args.openai_port,
        model=configurations[0].parent.name,
        slots=arguments.get("max_num_seqs", 8),
    )
