"""``serve run FILE`` of Ray 2.60: the file is checked by the fields of its schema (``serve/schema.py``, ``LLMConfig``)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from tests.contract.engines.fake_engine import Face, refuse, run

FACE = Face(name="rayserve", owned_by="organization-owner", pages={"/-/healthz": None, "/-/routes": {"/": "llmopt"}})
KNOWN = {
    "": {"proxy_location", "http_options", "grpc_options", "logging_config", "applications"},
    "http_options": {"host", "port", "root_path", "request_timeout_s", "keep_alive_timeout_s"},
    "applications": {"name", "route_prefix", "import_path", "runtime_env", "args", "deployments"},
    "llm_configs": {
        "runtime_env", "model_loading_config", "llm_engine", "engine_kwargs", "accelerator_type", "placement_group_config",
        "lora_config", "deployment_config", "experimental_configs", "log_engine_metrics",
    },
    "model_loading_config": {"model_id", "model_source", "tokenizer_source"},
}  # fmt: skip


def check(part: str, held: dict[str, Any]) -> None:
    if strange := set(held) - KNOWN[part]:
        refuse(f"pydantic_core._pydantic_core.ValidationError: {strange.pop()}\n  Extra inputs are not permitted")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="serve")
    parser.add_argument("command", choices=["run"])
    parser.add_argument("config_or_import_path")
    args = parser.parse_args()
    held = yaml.safe_load(Path(args.config_or_import_path).read_text())
    check("", held)
    check("http_options", held["http_options"])
    check("applications", held["applications"][0])
    model = held["applications"][0]["args"]["llm_configs"][0]
    check("llm_configs", model)
    check("model_loading_config", model["model_loading_config"])
    run(
        FACE,
        host=held["http_options"]["host"],
        port=held["http_options"]["port"],
        model=model["model_loading_config"]["model_id"],
        slots=model["engine_kwargs"].get("max_num_seqs", 8),
    )
