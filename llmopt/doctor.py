"""What is here, what can run, what is missing and how to get it; ends with what can be done right now.

Nothing is imported and no interpreter started where the folders tell enough: the answer comes within two seconds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict
from typing import Any

from llmopt import serve
from llmopt.core import environments, hardware, provision, versions
from llmopt.core.environments import Environment, Needs
from llmopt.core.errors import MissingEnvironment
from llmopt.core.hardware import Gpus
from llmopt.core.llamacpp_source import c_compiler
from llmopt.core.machine import this_machine
from llmopt.quantize import METHODS
from llmopt.serve import Backend

# The programs of llama.cpp that adapters use where they are found.
TOOLS = ("llama-server", "llama-quantize", "llama-imatrix", "llama-perplexity")
# An engine's own program, for one that lies on the PATH in an environment that llmopt does not know.
PROGRAMS = {
    "vllm": "vllm", "sglang": "sglang", "trtllm": "trtllm-serve", "tgi": "text-generation-launcher", "lmdeploy": "lmdeploy",
}  # fmt: skip
DOCKER_S = 1.0
# A program of the user's own, or that we compiled, which goes before the engine's package.
OWN_PROGRAMS = {"llamacpp": "llama-server"}
# The package that a quantization's route is made by → what people call it.
LIBRARIES = {
    "llmcompressor": "llm-compressor",
    "GPTQModel": "gptqmodel",
    "torch": "torch dynamic",
    "cyllama": "llama.cpp",
}


def examine() -> dict[str, Any]:
    """The machine, and for each engine, quantizer and tool where it is, or what is missing; JSON-like.

    ``container``: docker can run the engine's image here now.
    """
    gpus = hardware.gpus()
    here = ("cpu", gpus.kind) if gpus.kind else ("cpu",)
    containers = docker()
    in_containers = bool(containers["docker"]) and not containers["docker_problem"]
    engines = [engine_row(serve.backend(name), here, in_containers) for name in serve.BACKENDS if name != "scripted"]
    quantizations = [{"name": name, **availability(m.needs)} for name, m in METHODS.items()]
    return {
        "machine": machine_row(gpus),
        "python": sys.executable,
        "python_version": platform.python_version(),
        "c_compiler": c_compiler(),
        **containers,
        "engines": engines,
        "quantizers": quantizer_rows(),
        "quantizations": quantizations,
        "environments": provision.overview(sizes=False),
        "tools": [tool_row(name) for name in TOOLS],
        "bad_pairs": bad_pair_rows(),
        "now": {
            "serve": [row["name"] for row in engines if row["available"] and row["runs_here"]],
            "quantize": [row["name"] for row in quantizations if row["available"]],
        },
    }


def docker() -> dict[str, str | None]:
    """Its program, and why it cannot run a container now: a daemon that does not run, or may not be asked."""
    program = shutil.which("docker")
    if program is None:
        return {"docker": None, "docker_problem": None}
    try:
        asked = subprocess.run(
            [program, "version"], capture_output=True, text=True, errors="replace", timeout=DOCKER_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"docker": program, "docker_problem": f"its daemon did not answer within {DOCKER_S:g} s"}
    except OSError as error:
        return {"docker": program, "docker_problem": error.strerror}
    said = asked.stderr.strip().splitlines() or [f"status {asked.returncode}"]
    return {"docker": program, "docker_problem": said[-1] if asked.returncode else None}


def machine_row(gpus: Gpus) -> dict[str, Any]:
    total, available = hardware.memory()
    return asdict(this_machine()) | {
        "cpu_features": list(hardware.cpu_features()),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "gpu": asdict(gpus),
    }


def engine_row(backend: Backend, here: tuple[str, ...], in_containers: bool = False) -> dict[str, Any]:
    """``runs_here``: this machine has a device that it runs on, installed or not.

    ``environment``: where it is, or its program where that lies in none.
    """
    runs_here = any(device in here for device in backend.devices)
    container = backend.container
    row = {"name": backend.name, "title": backend.title, **availability(backend.needs), "runs_here": runs_here}
    environment = found(backend.needs)
    version = version_of(backend, environment) if environment else None
    if program := environments.tool(OWN_PROGRAMS.get(backend.name, "")):
        row["environment"] = str(program)
    if not row["available"] and (own := shutil.which(PROGRAMS.get(backend.name, ""))):
        row["hint"] = f"{own} is on the PATH: --env {own.rpartition('/bin/')[0]}"
    return row | {
        "version": version,
        "doubt": backend.doubt(version) if version else None,
        "devices": list(backend.devices),
        "image": container.image if container else None,
        "container": in_containers and container is not None and any(device in here for device in container.devices),
        "needs_device": None if runs_here else " or ".join(hardware.DEVICE_WORDS[device] for device in backend.devices),
    }


def version_of(backend: Backend, environment: Environment) -> str | None:
    own = backend.version(environment) if backend.version else None
    return own or version_in(environment, backend.distribution)


def quantizer_rows() -> list[dict[str, Any]]:
    """Each library with the quantizations that it makes, in the order of the table."""
    makes: dict[str, list[str]] = defaultdict(list)
    needs: dict[str, Needs] = {}
    for name, method in METHODS.items():
        for route in method.routes:
            needs.setdefault(route.distribution, route.needs)
            if name not in makes[route.distribution]:
                makes[route.distribution].append(name)
    rows = []
    for distribution, names in makes.items():
        environment = found(needs[distribution])
        rows.append(
            {
                "name": LIBRARIES.get(distribution, distribution),
                "makes": names,
                "version": version_in(environment, distribution) if environment else None,
                **availability(needs[distribution]),
            }
        )
    return rows


def found(needs: Needs) -> Environment | None:
    try:
        return environments.find(needs)
    except MissingEnvironment:
        return None


@functools.cache
def packages(environment: Environment) -> dict[str, str]:
    """Name → version, without starting its interpreter."""
    if environment.origin == "current":
        return {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    return versions.installed(environment.site_packages)


def version_in(environment: Environment, distribution: str) -> str | None:
    """Names of distributions differ in case and hyphens between their metadata and what people write."""
    wanted = distribution.lower().replace("_", "-")
    return {name.lower().replace("_", "-"): v for name, v in packages(environment).items()}.get(wanted)


def availability(needs: Needs) -> dict[str, Any]:
    try:
        return {"available": True, "environment": str(environments.find(needs).prefix), "hint": None}
    except MissingEnvironment as error:
        return {"available": False, "environment": None, "hint": error.hint, "missing": error.message}


def bad_pair_rows() -> list[dict[str, Any]]:
    """Packages of one environment that are known not to work together."""
    return [
        {"environment": str(environment.prefix), "found": words, **asdict(pair)}
        for environment in (environments.current(), *environments.created())
        for words, pair in versions.bad_pairs(packages(environment))
    ]


def tool_row(name: str) -> dict[str, Any]:
    path = environments.tool(name)
    version = environments.tool_version(path) if path else None
    return {"name": name, "path": str(path) if path else None, "version": version}
