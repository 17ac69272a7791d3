"""Every engine that llmopt can start, in one table.

How to add one:

1. Write ``llmopt/serve/ENGINE.py`` with one ``Backend`` object named ``BACKEND``: its command line, which of our options
   it has and how it spells them, how its readiness is asked, the formats that it loads, what its log lines mean.  It
   measures nothing.
2. Add one line to ``BACKENDS``.
3. Run ``make test``: the contract tests start, ask, measure and stop every line of the table.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmopt.core import loading
from llmopt.core.domain import Artifact, Quantization, ServeOptions, ServerCommand
from llmopt.core.environments import Environment, Needs
from llmopt.core.errors import UsageError, nearest
from llmopt.core.machine import available_cores
from llmopt.serve.facts import EngineFacts
from llmopt.serve.options import Flag, arguments

# name → module that holds BACKEND; imported only when it is used.  In the order in which an engine is chosen.
BACKENDS = {
    "hf": "llmopt.serve.hf",
    "llamacpp": "llmopt.serve.llamacpp",
    "vllm": "llmopt.serve.vllm",
    "sglang": "llmopt.serve.sglang",
    "trtllm": "llmopt.serve.trtllm",
    "tgi": "llmopt.serve.tgi",
    "lmdeploy": "llmopt.serve.lmdeploy",
    "rayserve": "llmopt.serve.rayserve",
    "triton": "llmopt.serve.triton",
    "scripted": "llmopt.serve.scripted",
}


MODEL_IN_CONTAINER = "/model"
OURS_IN_CONTAINER = "/opt/llmopt"  # files of ours in an image that is made by a recipe
FILES_IN_CONTAINER = "/llmopt"


@dataclass(frozen=True, kw_only=True)
class LaunchContext:
    """What a backend gets to build its command from; ``environment`` is ``None`` where it goes into a container."""

    artifact: Artifact
    options: ServeOptions
    environment: Environment | None
    host: str
    port: int
    # Where the command's own files go (``ServerCommand.files``), as the engine sees it.
    folder: str = FILES_IN_CONTAINER

    @property
    def model(self) -> str:
        """The artifact's folder as the engine sees it."""
        return self.artifact.path if self.environment else MODEL_IN_CONTAINER

    @property
    def base_url(self) -> str:
        """Where the engine will answer."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def python(self) -> str:
        return str(self.environment.python) if self.environment else "python3"

    def program(self, name: str) -> str:
        """A program of the engine: beside its environment's interpreter, else the one on the PATH."""
        return name if self.environment is None else program(self.environment, name)


def program(environment: Environment, name: str) -> str:
    """A program of an engine: beside this environment's interpreter, else the one on the PATH."""
    own = environment.python.with_name(name)
    return str(own) if own.exists() else shutil.which(name) or str(own)


@dataclass(frozen=True, kw_only=True)
class Container:
    """The engine's own image, by a tag that stands still. ``options`` are words of ``docker run`` that it needs.

    ``devices``: what the image is built for; the engine may run on more (vLLM's image is for CUDA alone).  ``of_version``:
    the image of a version as runs record it, ``None`` where its tags do not tell; ``on_cuda``: another image for GPUs.
    """

    image: str
    devices: tuple[str, ...] = ("cuda",)
    entrypoint: str | None = None
    options: tuple[str, ...] = ()
    of_version: Callable[[str], str | None] = lambda version: None
    on_cuda: str | None = None
    probe: str = "python3"  # what is in it to ask with: python3 or curl


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an image is made where an engine publishes none for a device: the template of its Dockerfile and what that is given.

    ``packages`` are those that are named and pinned, the first alone and first (``of_format``: those that one format of weights
    needs besides); ``files`` are copied beside the Dockerfile, to
    be found in ``/opt/llmopt`` (place on this machine by name).  What a package pulls in is pinned by the measured freeze.
    """

    template: str
    packages: tuple[str, ...]
    of_format: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    system_packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    probe: str = "python3"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A pattern in an engine's log, what it means and what to do; tried in order."""

    pattern: str
    cause: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A description of one engine; ``distribution`` is the package whose version names the engine's.

    ``flags``: how it spells those of our options that it has (``options.py``); the others are refused by name.
    ``sequences_reserved``: how many sequences of the full context it reserves memory for when it starts.
    ``facts``: reads from its log where memory goes.  ``metrics``: our names of what it counts (``time_to_first_token``,
    ``queue_time``, ``prefix_cache_hits``) → its own in ``metrics_path``, in the text format of Prometheus.
    ``known``: the versions that this description was tried with, empty where it never was.  ``devices``: what it runs
    on (``cpu``, ``cuda``, ``rocm``).
    """

    name: str
    title: str
    formats: tuple[str, ...]
    needs: Needs
    distribution: str
    command: Callable[[LaunchContext], ServerCommand]
    flags: Mapping[str, Flag]
    failures: tuple[Failure, ...] = ()
    container: Container | None = None
    sequences_reserved: Callable[[ServeOptions], int] = lambda options: 1
    facts: Callable[[Sequence[str]], EngineFacts] = lambda lines: EngineFacts()
    metrics: Mapping[str, str] = field(default_factory=dict)
    metrics_path: str = "/metrics"
    known: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    version: Callable[[Environment], str | None] | None = None
    # Raises UsageError for a package that these options need and that the environment lacks; no matter to a dry run.
    require_packages: Callable[[ServeOptions, Environment], None] = lambda options, environment: None
    # What a reader of its numbers must know about a format: format → note, printed beside every ranking.
    format_notes: dict[str, str] = field(default_factory=dict)
    # How its image is made for a device (``cpu``, ``cuda``) for which nobody publishes one.
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    # Upper bounds of the buckets of its histograms, by their names, as it shows them.
    bounds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    # How a request names a LoRA adapter in place of the model; ``None``: every request gets all of them.
    adapter_form: str | None = "{adapter}"

    @property
    def options(self) -> frozenset[str]:
        """The fields of ServeOptions that it has; words of the engine's own are always passed on."""
        return frozenset((*self.flags, "extra_args"))

    def arguments(self, options: ServeOptions) -> list[str]:
        """Our options in the engine's words, and what is passed as it is."""
        return [*arguments(options, self.flags), *options.extra_args]

    def doubt(self, version: str | None) -> str | None:
        """One line about a version that this description was not tried with; ``None`` where there is nothing to say."""
        if (
            version is None
            or self.distribution == "llmopt"
            or version in self.known
            or version.partition(" ")[0] in self.known
        ):
            return None
        if not self.known:
            return f"{self.name} {version}: llmopt knows {self.title} from its sources alone and was never run with it"
        return f"{self.name} {version}: llmopt was tried with {' and '.join(self.known)}; options and logs may differ"

    def refusal(self, quantization: Quantization) -> str | None:
        """Why this engine cannot load that quantization on this machine; ``None`` when it can, or nobody knows better."""
        known = loading.seen(self.name, loading.device_here(), quantization)
        if known is not None and not known.loads:
            return f"{self.name} does not load {quantization.name} on this machine ({known.evidence}): {known.note}"
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
