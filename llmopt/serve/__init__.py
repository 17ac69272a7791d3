"""Every engine that llmopt can start, in one table.

How to add one:

1. Write ``llmopt/serve/ENGINE.py`` with one ``Backend`` object named ``BACKEND``: its command line, how its readiness is
   asked, the formats that it loads and what its log lines mean.  It measures nothing.
2. Add one line to ``BACKENDS``.
3. Run ``make test``: the contract tests start, ask, measure and stop every line of the table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmopt.core.domain import Artifact, Quantization, ServeOptions, ServerCommand
from llmopt.core.environments import Environment, Needs
from llmopt.core.errors import UsageError, nearest
from llmopt.core.machine import available_cores

# name → module that holds BACKEND; imported only when it is used.
BACKENDS = {
    "hf": "llmopt.serve.hf",
    "llamacpp": "llmopt.serve.llamacpp",
    "scripted": "llmopt.serve.scripted",
}


@dataclass(frozen=True, kw_only=True)
class LaunchContext:
    """What a backend gets to build its command from."""

    artifact: Artifact
    options: ServeOptions
    environment: Environment
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A pattern in an engine's log, what it means and what to do; tried in order."""

    pattern: str
    cause: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A description of one engine; ``distribution`` is the package whose version names the engine's."""

    name: str
    title: str
    formats: tuple[str, ...]
    needs: Needs
    distribution: str
    command: Callable[[LaunchContext], ServerCommand]
    failures: tuple[Failure, ...] = ()
    version: Callable[[Environment], str | None] | None = None
    # What a reader of its numbers must know about a format: format → note, printed beside every ranking.
    format_notes: dict[str, str] = field(default_factory=dict)

    def refusal(self, quantization: Quantization) -> str | None:
        """Why this engine cannot load that quantization; ``None`` when it can."""
        if quantization.format in self.formats:
            return None
        return f"{self.name} does not load {quantization.name}: it reads {' and '.join(self.formats)}, not {quantization.format}"


def backend(name: str) -> Backend:
    """The description by name; raises UsageError with the nearest names."""
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}", hint=nearest(name, list(BACKENDS)))
    found: Backend = importlib.import_module(BACKENDS[name]).BACKEND
    return found


def require_loadable(name: str, quantization: Quantization) -> Backend:
    """The backend, or a UsageError that names one which does load this quantization."""
    chosen = backend(name)
    if reason := chosen.refusal(quantization):
        raise UsageError(reason, hint=f"--backend {first_able(quantization)}")
    return chosen


def first_able(quantization: Quantization) -> str:
    """The first real engine that loads this quantization; raises UsageError when none does."""
    for name in BACKENDS:
        if name != "scripted" and backend(name).refusal(quantization) is None:
            return name
    raise UsageError(f"no engine here loads {quantization.name}", hint="quantize with another method")


def engine_threads(options: ServeOptions) -> int:
    """The threads asked for, or all cores but one: the client that measures, and the server's own HTTP half, need a core.

    On two cores, two computing threads halved the throughput of a small model (benchmarks/threads.md).
    """
    return options.threads or max(1, available_cores() - 1)


def gguf_file(artifact: Artifact) -> Path:
    return Path(artifact.path) / "model.gguf"
