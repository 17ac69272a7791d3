"""Task scores of an artifact: its server, started here or named, and lm-eval in an environment of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmopt import serve
from llmopt.core import environments
from llmopt.core.artifacts import read_config
from llmopt.core.domain import Artifact, ServeOptions
from llmopt.core.errors import MissingEnvironment, UsageError
from llmopt.core.kv_cache import positions
from llmopt.core.worker import run_job
from llmopt.pipeline.measuring import check_url
from llmopt.pipeline.reporter import Reporter
from llmopt.quality import tasks as handover
from llmopt.serve.logs import log_stem, own_log
from llmopt.serve.process import serving

LONGEST = 4096  # tokens of context that the tasks get, where the model has them
AT_ONCE = 4


def score(
    artifact: Artifact,
    asked: str,
    report: Reporter,
    *,
    log_folder: Path,
    url: str | None = None,
    model: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``task metric value stderr samples``. Raises UsageError, MissingEnvironment, ServerError."""
    names, folders = handover.task_names(asked)
    environment = environments.find(handover.NEEDS)
    folder = Path(artifact.path) if (Path(artifact.path) / "tokenizer.json").exists() else Path(artifact.base)
    length = context_of(folder)
    arguments = {
        "tasks": names,
        "folders": folders,
        "tokenizer": str(folder),
        "max_length": length,
        "concurrent": AT_ONCE,
    }
    with contextlib.ExitStack() as stack:
        serving_it = server(artifact, report, log_folder, length) if url is None else named(url, model or "")
        base_url, name = stack.enter_context(serving_it)
        arguments |= {
            "base_url": base_url,
            "model": name,
            "prompt_logprobs": handover.gives_prompt_logprobs(base_url, name),
            "offline": bool(os.environ.get("HF_HUB_OFFLINE")),
        }
        work = stack.enter_context(report.task(f"scoring {artifact.label} on {', '.join(names)}"))
        log = own_log(log_folder / f"tasks-{artifact.label}")
        job = run_job(environment, handover.FUNCTION, arguments, log=log, progress=work.at)
    return list(job.value)


def context_of(folder: Path) -> int:
    return min(LONGEST, positions(read_config(folder)) or LONGEST)


@contextlib.contextmanager
def named(url: str, model: str) -> Iterator[tuple[str, str]]:
    """A server that runs already."""
    check_url(url)
    yield url.rstrip("/"), model


@contextlib.contextmanager
def server(artifact: Artifact, report: Reporter, log_folder: Path, length: int) -> Iterator[tuple[str, str]]:
    """The artifact served for the time of the ``with`` block; (base URL, name of the model)."""
    backend, environment = first_here(artifact)
    options = ServeOptions(backend=backend.name, max_model_len=length, max_num_seqs=AT_ONCE)
    log = own_log(log_folder / f"serve-{log_stem(artifact, options)}")
    with contextlib.ExitStack() as stack:
        with report.task(f"starting {backend.name} with {artifact.label}"):
            running = stack.enter_context(serving(backend, artifact, options, environment, log=log))
        yield running.command.base_url, running.command.model


def first_here(artifact: Artifact) -> tuple[serve.Backend, environments.Environment]:
    """The engine that loads this artifact and is installed; one that gives prompt log-probabilities goes first."""
    able = [name for name in serve.BACKENDS if name != "scripted"]
    able = [
        name
        for name in sorted(able, key=lambda name: name != "vllm")
        if not serve.backend(name).refusal(artifact.quantization)
    ]
    if not able:
        raise UsageError(f"no engine here loads {artifact.label}", hint="serve it yourself: --url URL --model NAME")
    lacking: MissingEnvironment | None = None
    for name in able:
        try:
            return serve.backend(name), environments.find(serve.backend(name).needs)
        except MissingEnvironment as error:
            lacking = lacking or error
    raise lacking or MissingEnvironment("no engine is installed", hint="llmopt env create local")
