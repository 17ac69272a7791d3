"""Serve a case, or take a running server, and turn each run into a stored ``Measurement``."""

from __future__ import annotations

import contextlib
import datetime
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import llmopt
from llmopt import demo, serve
from llmopt.bench.prompts import load_tokenizer
from llmopt.bench.runner import RunResult, Target, measure
from llmopt.core import environments
from llmopt.core.domain import Artifact, Case, Measurement, Workload, stable_hash
from llmopt.core.environments import Environment
from llmopt.core.errors import UsageError
from llmopt.core.files import read_text
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION
from llmopt.core.store import prepare_results, save_run
from llmopt.pipeline.reporter import Reporter
from llmopt.serve import Backend, require_loadable
from llmopt.serve.process import RunningServer, serving

SECRET_FLAG = re.compile(r"--?\S*(?:key|token|secret|password|hft)\b(?<!max-token)", re.IGNORECASE)
SECRET_VALUE = re.compile(r"(?:hf_|sk-)\w")


def bench_artifact(
    case: Case,
    report: Reporter,
    *,
    results: Path,
    repeats: int = 1,
    python: str | None = None,
    port: int | None = None,
    ready_timeout_s: float | None = None,
    quality_of_case: dict[str, Any] | None = None,
) -> list[Measurement]:
    """Start the engine once, measure ``repeats`` runs, save each as soon as it is done."""
    backend = require_loadable(case.serve.backend, case.artifact.quantization)
    environment = environments.find(backend.needs, python)
    log = results / "logs" / f"{case.artifact.label}-{backend.name}.log"
    prepare_results(results, this_machine())
    runs = []
    tokenizer = load_tokenizer(case.artifact.path)
    with started(backend, case, environment, report, log, port, ready_timeout_s) as server:
        target = Target(
            base_url=server.command.base_url,
            model=server.command.model,
            pid=server.pid,
            load_s=server.load_s,
            usage_per_chunk=server.command.usage_per_chunk,
        )
        for number in range(repeats):
            run_id, started_at = new_run_id(), now()
            word = f"measuring {case.label}" + (f", run {number + 1} of {repeats}" if repeats > 1 else "")
            with report.task(word, case.workload.requests) as work:
                result = measure(
                    target,
                    case.workload,
                    salt=run_id,
                    source=read_text(demo.CALIBRATION_TEXT),
                    tokenizer=tokenizer,
                    warm=number > 0,
                    alive=lambda: server.process.running,
                    done=lambda _: work.advance(),
                )
            run = record(
                case,
                result,
                run_id,
                started_at,
                backend_record(backend, environment, server, case.artifact.quantization.format),
                quality_of_case,
            )
            save_run(results, run, result.traces)
            server.require_alive(backend)
            runs.append(run)
    return runs


@contextlib.contextmanager
def started(
    backend: Backend,
    case: Case,
    environment: Environment,
    report: Reporter,
    log: Path,
    port: int | None,
    timeout_s: float | None,
) -> Iterator[RunningServer]:
    """``serving`` with a word of progress for the time until it is ready."""
    with contextlib.ExitStack() as stack:
        with report.task(f"starting {backend.name} with {case.artifact.label}"):
            server = stack.enter_context(
                serving(backend, case.artifact, case.serve, environment, log=log, port=port, ready_timeout_s=timeout_s)
            )
        yield server


def backend_record(backend: Backend, environment: Environment, server: RunningServer, format: str) -> dict[str, Any]:
    frozen = environments.freeze(environment)
    return {
        "name": backend.name,
        "version": version_of(backend, environment),
        "argv": without_secret_arguments(server.command.argv),
        "environment": server.command.environment,
        "note": backend.format_notes.get(format),
        "freeze": frozen,
    }


def engine_version(name: str, python: str | None = None) -> str | None:
    backend = serve.backend(name)
    return version_of(backend, environments.find(backend.needs, python))


def version_of(backend: Backend, environment: Environment) -> str | None:
    own = backend.version(environment) if backend.version else None
    return own or environments.freeze(environment).get(backend.distribution)


def bench_url(
    url: str, model: str, workload: Workload, report: Reporter, *, results: Path, tokenizer: str | None = None
) -> Measurement:
    """Measure any running OpenAI-compatible server; nothing is known of its memory."""
    check_url(url)
    prepare_results(results, this_machine())
    run_id, started_at = new_run_id(), now()
    with report.task(f"measuring {model} at {without_secrets(url)}", workload.requests) as work:
        result = measure(
            Target(base_url=url.rstrip("/"), model=model),
            workload,
            salt=run_id,
            source=read_text(demo.CALIBRATION_TEXT),
            tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
            done=lambda _: work.advance(),
        )
    run = Measurement(
        run_id=run_id,
        started_at=started_at,
        case_key=stable_hash([url, model, asdict(workload)]),
        machine=this_machine(),
        backend={"name": "url", "version": None, "argv": [], "url": without_secrets(url)},
        artifact={"quantization": model, "method": "unknown", "base_name": model, "base_key": stable_hash(model)},
        serve={"backend": "url", "url": without_secrets(url)},
        workload=asdict(workload),
        verdict=result.verdict,
        metrics=result.metrics,
        intervals=result.intervals,
        telemetry=result.telemetry,
        llmopt_version=llmopt.__version__,
        measuring_revision=MEASURING_REVISION,
    )
    save_run(results, run, result.traces)
    return run


def check_url(url: str) -> None:
    """Raise UsageError for what is no address of a server."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"{url.rpartition('@')[2].partition('?')[0]!r} is no address", hint="--url http://127.0.0.1:8000/v1"
        )


def without_secret_arguments(argv: Sequence[str]) -> list[str]:
    """The command line with the values of flags such as ``--api-key`` and ``--hf-token`` blotted out."""
    shown: list[str] = []
    for place, word in enumerate(argv):
        flag, equals, _ = word.partition("=")
        if equals and SECRET_FLAG.match(flag):
            shown.append(f"{flag}=***")
        elif SECRET_VALUE.match(word) or (place and SECRET_FLAG.match(argv[place - 1]) and not word.startswith("-")):
            shown.append("***")
        else:
            shown.append(word)
    return shown


def without_secrets(url: str) -> str:
    """The address without user, password and query: they may be keys."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def record(
    case: Case,
    result: RunResult,
    run_id: str,
    started_at: str,
    backend: dict[str, Any],
    quality_of_case: dict[str, Any] | None,
) -> Measurement:
    return Measurement(
        run_id=run_id,
        started_at=started_at,
        case_key=case.key,
        machine=this_machine(),
        backend=backend,
        artifact=artifact_record(case.artifact),
        serve=asdict(case.serve) | {"extra_args": without_secret_arguments(case.serve.extra_args)},
        workload=asdict(case.workload),
        verdict=result.verdict,
        metrics=result.metrics | {"weights_bytes": case.artifact.size_bytes},
        intervals=result.intervals,
        quality=quality_of_case,
        telemetry=result.telemetry,
        llmopt_version=llmopt.__version__,
        measuring_revision=MEASURING_REVISION,
    )


def artifact_record(artifact: Artifact) -> dict[str, Any]:
    return {
        "quantization": artifact.quantization.name,
        "method": artifact.quantization.method,
        "format": artifact.quantization.format,
        "bits": artifact.quantization.bits,
        "group_size": artifact.quantization.group_size,
        "bits_per_weight": artifact.bits_per_weight,
        "size_bytes": artifact.size_bytes,
        "key": artifact.key,
        "path": artifact.path,
        "base_name": "llmopt demo model" if Path(artifact.base) == demo.MODEL else Path(artifact.base).name,
        "base_key": artifact.base_fingerprint,
    }


def new_run_id() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
