"""Triton's OpenAI frontend with its vLLM backend. Described from the source of the 26.07 release; never run here.

It serves a model repository: a folder with one model's name, its configuration, and vLLM's engine arguments in a file.
The frontend is a script inside its image, and is reported ready at an address of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from llmopt.core.domain import ServerCommand
from llmopt.core.environments import Needs
from llmopt.core.worker import QUIET_ENGINES
from llmopt.serve import Backend, Container, Failure, LaunchContext
from llmopt.serve import vllm as engine
from llmopt.serve.container import NVIDIA_GPUS, SHARED_MEMORY
from llmopt.serve.vllm_arguments import FLAGS, engine_arguments

START_S = 900.0
FRONTEND = "/opt/tritonserver/python/openai/openai_frontend/main.py"
# vLLM places itself, and its own numbers are passed on only where they are asked for.
CONFIGURATION = """\
backend: "vllm"
instance_group [ { count: 1 kind: KIND_MODEL } ]
parameters: { key: "REPORT_CUSTOM_METRICS" value: { string_value: "true" } }
"""


def command(context: LaunchContext) -> ServerCommand:
    name = Path(context.artifact.path).name
    repository = f"{context.folder}/models"
    arguments = {"model": context.model, "disable_log_stats": False, **engine_arguments(context.options)}
    argv = [
        *(context.python, FRONTEND),
        *("--model-repository", repository, "--tokenizer", context.model, "--backend", "vllm"),
        *("--host", context.host, "--openai-port", str(context.port)),
        *BACKEND.arguments(context.options),
    ]
    return ServerCommand(
        argv=tuple(argv),
        base_url=context.base_url,
        model=name,
        environment=QUIET_ENGINES,
        health_path="/health/ready",
        ready_timeout_s=START_S,
        files={
            f"{repository}/{name}/config.pbtxt": CONFIGURATION,
            f"{repository}/{name}/1/model.json": json.dumps(arguments, indent=1) + "\n",
        },
    )


BACKEND = Backend(
    name="triton",
    title="Triton Inference Server (vLLM)",
    formats=engine.BACKEND.formats,
    needs=Needs(modules=("tritonserver", "vllm"), extra="triton"),
    distribution="tritonserver",
    devices=("cuda",),
    command=command,
    facts=engine.facts,
    flags=FLAGS,
    container=Container(image="nvcr.io/nvidia/tritonserver:26.07-vllm-python-py3", options=(*NVIDIA_GPUS, *SHARED_MEMORY)),
    metrics={
        "time_to_first_token": "vllm:time_to_first_token_seconds",
        "queue_time": "vllm:request_queue_time_seconds",
        "prefill_time": "vllm:request_prefill_time_seconds",
        "decode_time": "vllm:request_decode_time_seconds",
        "e2e_time": "vllm:e2e_request_latency_seconds",
        "preemptions": "vllm:num_preemptions_total",
        "kv_cache_usage": "vllm:gpu_cache_usage_perc",
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
    },
    failures=(
        Failure(pattern=r"failed to load '[^']+' version \d+: (.+)", cause="it could not load the model", remedy="see its log"),
        Failure(pattern=r"can't open file '(\S*openai_frontend/main\.py)'", cause="its OpenAI frontend is not here",
                remedy="--container: the script lies in its image"),
        *engine.BACKEND.failures,
    ),
)  # fmt: skip
