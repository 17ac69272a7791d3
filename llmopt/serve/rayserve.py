"""Ray Serve LLM: vLLM behind Ray's own HTTP proxy, from a configuration file (``serve run``).

Ray 2.60.0 with vLLM's CPU build 0.32.0 served the bundled model here: ready in 72 s, 4 users at 318 tokens/s, nothing left
after it was stopped.  FastAPI must be older than 0.139: Ray looks for its routes where newer ones do not have them, and every
request is refused (``core/versions.toml``).  On two cores its own HTTP half takes a core, which the TTFT shows.

Its metrics lie at an address of Ray's agent, not of the server, and are not read.  The proxy answers ``/-/healthz`` before
the model is there: that it is ready is told by the completion.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmopt.core.domain import ServerCommand
from llmopt.core.environments import Needs
from llmopt.core.loading import device_here
from llmopt.core.worker import QUIET_ENGINES
from llmopt.serve import Backend, Container, Failure, LaunchContext
from llmopt.serve import vllm as engine
from llmopt.serve.container import NVIDIA_GPUS, SHARED_MEMORY
from llmopt.serve.vllm_arguments import FLAGS, engine_arguments

START_S = 900.0
WAITING_ROOM = 1000  # requests that a replica may hold: the queue belongs to vLLM, as it does without Ray


def command(context: LaunchContext) -> ServerCommand:
    settings = f"{context.folder}/rayserve.yaml"
    name = Path(context.artifact.path).name
    # A cluster that is already there is left alone: what is measured has this machine to itself.
    environment = QUIET_ENGINES | {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    return ServerCommand(
        argv=(context.program("serve"), "run", settings, *BACKEND.arguments(context.options)),
        base_url=context.base_url,
        model=name,
        environment=environment,
        health_path="/-/healthz",
        usage_per_chunk=True,
        ready_timeout_s=START_S,
        files={settings: json.dumps(configuration(context, name), indent=1) + "\n"},
    )


def configuration(context: LaunchContext, name: str) -> dict[str, Any]:
    """One application with one replica of one model; JSON is YAML."""
    on_cpu = device_here() == "cpu" and context.environment is not None
    model: dict[str, Any] = {
        "model_loading_config": {"model_id": name, "model_source": context.model},
        "engine_kwargs": engine_arguments(context.options),
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": WAITING_ROOM},
    }
    if on_cpu:  # it asks for a GPU where nothing else is said
        model["placement_group_config"] = {"bundles": [{"CPU": 1}]}
        model["runtime_env"] = {"env_vars": engine.cpu_environment(context)}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": context.host, "port": context.port},
        "applications": [
            {
                "name": "llmopt",
                "route_prefix": "/",
                "import_path": "ray.serve.llm:build_openai_app",
                # The ingress only passes requests on: it takes no core from the cluster's count.
                "args": {
                    "llm_configs": [model],
                    "ingress_deployment_config": {"ray_actor_options": {"num_cpus": 0}},
                },
            }
        ],
    }


BACKEND = Backend(
    name="rayserve",
    title="Ray Serve LLM (vLLM)",
    formats=engine.BACKEND.formats,
    needs=Needs(modules=("ray", "vllm"), programs=("serve",), extra="ray"),
    known=("2.60.0",),
    distribution="ray",
    command=command,
    sequences_reserved=engine.sequences_reserved,
    facts=engine.facts,
    flags=FLAGS,
    container=Container(image="rayproject/ray-llm:2.58.0-py312-cu130", options=(*NVIDIA_GPUS, *SHARED_MEMORY)),
    failures=(
        Failure(pattern=r"No available node types can fulfill resource request|Insufficient resources.*?GPU",
                cause="its cluster has not the GPUs that the model asks for", remedy="a smaller --tensor-parallel-size"),
        Failure(pattern=r"Deploying app '\w+' failed with exception: *(.*)", cause="the application failed", remedy="see its log"),
        *engine.BACKEND.failures,
    ),
)  # fmt: skip
