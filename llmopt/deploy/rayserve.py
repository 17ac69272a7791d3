"""Ray Serve: vLLM through Ray's own ``ray.serve.llm``, every other engine as the measured command in each replica.

``ray.serve.llm`` takes the arguments of vLLM's engine, not words of a command line: where some of those have no such name
(``Engine.arguments`` is ``None``) vLLM is run like the others.  Replicas follow the requests in flight, of which one replica
had the measured concurrency when the SLOs held.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmopt.core import keeper, segments
from llmopt.core.files import read_text
from llmopt.deploy import Target
from llmopt.deploy.documents import yaml_text
from llmopt.deploy.limits import silence_s
from llmopt.deploy.plan import Deployment, File
from llmopt.deploy.scaling import bounds
from llmopt.deploy.templates import FOLDER, without_nul

CONFIG = "serve_config.yaml"
# Tried. ray.serve.llm looks for routes where newer FastAPIs do not have them, and refuses every request (core/versions.toml).
REQUIREMENTS = {"llm": ("ray[serve,llm]==2.60.0", "fastapi==0.133.0"), "app": ("ray[serve]==2.60.0", "aiohttp>=3.9")}
NO_PROMPTS_IN_LOGS = {"RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0"}
GRACE_S = 10
DOWN_AFTER_S = 300
# Two ports that share neither first nor last digit: where the words of two starts differ, there is the port.
PORTS = (41113, 52224)


def refusal(deployment: Deployment) -> str | None:
    wishes = deployment.wishes
    asked = {
        "--gateway litellm": wishes.gateway != "nginx",
        "--cache": wishes.cache is not None,
        "--tls": wishes.tls,
        "--rate-limit": wishes.rate_limit_rps is not None,
    }
    if there := [name for name, wanted in asked.items() if wanted]:
        return f"Ray Serve has a proxy of its own, without {' and '.join(there)}"
    if wishes.monitoring:
        return "--monitoring asks for metrics that an engine behind Ray Serve does not show; llmopt watch can ask it"
    if deployment.engine.arguments is None:
        try:
            settings(deployment)
        except ValueError as error:
            return f"{deployment.engine.title} does not run behind Ray Serve: {error}"
    return None


def files(deployment: Deployment) -> Mapping[str, File]:
    llm = deployment.engine.arguments is not None
    application = llm_application(deployment) if llm else engine_application(deployment)
    # Beyond this machine only where a name was asked for, which somebody then guards.
    host = "0.0.0.0" if deployment.wishes.domain else "127.0.0.1"
    document = {
        "proxy_location": "EveryNode" if deployment.wishes.domain else "HeadOnly",
        "http_options": {"host": host, "port": deployment.wishes.port},
        "applications": [{"name": deployment.name, "route_prefix": "/", **application}],
    }
    head = (f"{deployment.evidence.label}, as llmopt measured it: serve run {CONFIG}",)
    written = {
        CONFIG: File(text=yaml_text(document, head=head)),
        "requirements.txt": File(text="".join(f"{line}\n" for line in REQUIREMENTS["llm" if llm else "app"])),
    }
    if not llm:
        beside = (FOLDER / "rayserve" / "app.py", Path(keeper.__file__), Path(segments.__file__))
        written |= {place.name: File(text=read_text(place)) for place in beside}
    return written


def llm_application(deployment: Deployment) -> dict[str, Any]:
    """Ray Serve LLM; weights by their folder, which every node must have."""
    engine = deployment.engine
    model: dict[str, Any] = {
        "model_loading_config": {"model_id": engine.model, "model_source": engine.artifact},
        "engine_kwargs": dict(engine.arguments or {}),
        "deployment_config": replicas(deployment),
    }
    if not engine.gpus:  # it asks for a GPU where nothing else is said
        model["placement_group_config"] = {"bundles": [{"CPU": engine.threads or 1}]}
    if (
        engine.backend != "rayserve"
    ):  # measured without Ray, which would hold tokens back for 50 ms to send several at once
        model["experimental_configs"] = {"stream_batching_interval_ms": 0}
    environment = dict(engine.native("127.0.0.1", PORTS[0]).environment)
    model["runtime_env"] = {"env_vars": environment | NO_PROMPTS_IN_LOGS}
    # The ingress only passes requests on. It asks for a core of its own, and waits for ever where engines have them all.
    ingress = {"ray_actor_options": {"num_cpus": 0}}
    arguments = {"llm_configs": [model], "ingress_deployment_config": ingress}
    return {"import_path": "ray.serve.llm:build_openai_app", "args": arguments}


def engine_application(deployment: Deployment) -> dict[str, Any]:
    engine = deployment.engine
    resources = {"num_cpus": engine.threads or 1, "num_gpus": engine.gpus}
    return {
        "import_path": "app:application",
        "args": settings(deployment),
        "deployments": [{"name": "Engine", "ray_actor_options": resources, **replicas(deployment)}],
    }


def replicas(deployment: Deployment) -> dict[str, Any]:
    """How many, when more, and when one is given up."""
    known, engine = deployment.evidence, deployment.engine
    least, most = bounds(deployment)
    good = math.ceil(known.concurrency) if known.concurrency else engine.max_num_seqs
    start = math.ceil(known.load_s or deployment.ready_timeout_s)
    several = {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": good,
        "upscale_delay_s": max(10, start // 2),  # a peak that is over before a replica has come needs none
        "downscale_delay_s": max(DOWN_AFTER_S, 2 * start),
    }
    asked = (
        {"num_replicas": deployment.replicas}
        if deployment.wishes.autoscaler == "none"
        else {"autoscaling_config": several}
    )
    return {
        **asked,
        # As many as the engine takes at once, or as were measured: what is beyond waits where another replica can take it.
        "max_ongoing_requests": max(good, engine.max_num_seqs),
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 2,
        "graceful_shutdown_timeout_s": silence_s(deployment) + GRACE_S,
    }


def settings(deployment: Deployment) -> dict[str, Any]:
    """What ``app.py`` starts a replica by. Raises ValueError where the words of a start are not one text around one port."""
    engine = deployment.engine
    first, second = (engine.native("127.0.0.1", port) for port in PORTS)
    if len(first.argv) != len(second.argv) or first.environment.keys() != second.environment.keys():
        raise ValueError("its command line depends on the port in more than the port itself")
    named = [(name, first.environment[name], second.environment[name]) for name in sorted(first.environment)]
    written = zip(first.files.items(), second.files.items(), strict=True)
    return {
        "command": [around_port(*pair) for pair in zip(first.argv, second.argv, strict=True)],
        "environment": {name: around_port(*pair) for name, *pair in named},
        "files": [[around_port(p, q), around_port(a, b)] for (p, a), (q, b) in written],
        "model": engine.model,
        "health_path": engine.health_path,
        "ready_timeout_s": deployment.ready_timeout_s,
        "silence_s": silence_s(deployment),
        "grace_s": GRACE_S,
    }


def around_port(first: str, second: str) -> str | list[str]:
    """The same text, or what stands before, between and behind the ports. Raises ValueError where more than them differs."""
    if first == second:
        return without_nul(first)
    pieces = first.split(str(PORTS[0]))
    if pieces != second.split(str(PORTS[1])):
        raise ValueError(f"{first!r} depends on the port in more than the port itself")
    return [without_nul(piece) for piece in pieces]


TARGET = Target(
    name="rayserve",
    title="Ray Serve",
    refusal=refusal,
    files=files,
    start=lambda deployment: ("serve", "run", CONFIG),
    before=lambda deployment: ((("pip", "install", "-r", "requirements.txt"), "where Ray runs, on every node"),),
    url=lambda deployment: f"http://127.0.0.1:{deployment.wishes.port}/v1",
    # Replicas have that of the Ray on their node; where one runs already, that of `serve run` reaches none of them.
    secrets=lambda deployment: "the environment that Ray is started in (`ray start` on each node, else `serve run`)",
    limits_memory=False,
)
