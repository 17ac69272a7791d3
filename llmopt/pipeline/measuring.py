"""Serve a case, or take a running server, and turn each run into a stored ``Measurement``."""

from __future__ import annotations

import contextlib
import datetime
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import llmopt
from llmopt import demo, serve
from llmopt.bench.endpoint import Endpoint
from llmopt.bench.gpu import used_by_gpu
from llmopt.bench.load import Progress
from llmopt.bench.prompts import load_tokenizer
from llmopt.bench.runner import RunResult, Traffic, measure
from llmopt.bench.symptoms import Knobs, symptoms
from llmopt.bench.target import Target
from llmopt.core import environments
from llmopt.core.commit import commit_here
from llmopt.core.domain import Artifact, Case, Measurement, ServeOptions, Workload, stable_hash, workload_identity
from llmopt.core.environments import Environment
from llmopt.core.errors import Interrupted, UsageError
from llmopt.core.files import read_text
from llmopt.core.interrupts import Interrupts
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION
from llmopt.core.store import prepare_results, save_run
from llmopt.pipeline.reporter import Reporter
from llmopt.serve import Backend, require_loadable
from llmopt.serve.adapters import require_adapters
from llmopt.serve.logs import log_stem, own_log
from llmopt.serve.process import RunningServer, serving
from llmopt.serve.recognise import recognise

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LOG_LINES = 1 << 20  # all of it: what an engine said while it loaded stands above its requests
# Only as the last word of a flag: --max-prefill-token-num is none.
SECRET_FLAG = re.compile(r"--?(?:\S*[-_])?(?:api-?key|key|token|secret|password|hft)(?<!max-token)$", re.IGNORECASE)
SECRET_VALUE = re.compile(r"(?:hf_|sk-)\w")
BEARER = re.compile(r"(?i)(bearer\s+)\S+")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A running server, and what the record of a run says about it."""

    target: Target
    backend: dict[str, Any]
    artifact: dict[str, Any]
    serve: dict[str, Any]
    tokenizer: Tokenizer | None
    case_key: Callable[[Workload], str]
    label: str
    metrics: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] | None = None
    session: str = field(default_factory=lambda: new_run_id())  # one start of a server, one session
    alive: Callable[[], bool] = lambda: True
    options: frozenset[str] | None = (
        None  # that its engine has; of a server that we did not start nothing can be turned
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out and kept; none of it changes what is asked of the server.

    ``race`` and ``gate``: what the record says of the search, or of the gate, that it belongs to.
    """

    results: Path
    workers: int = 1
    definitions: tuple[str, ...] = ()
    salt: str | None = None
    race: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)


def measure_and_save(
    subject: Subject,
    workload: Workload,
    options: RunOptions,
    report: Reporter,
    *,
    warm: bool = False,
    word: str = "",
    stop_when: Callable[[Progress], bool] | None = None,
) -> Measurement:
    """One run and its record. Interrupted, it keeps what it has and raises Interrupted, which names the file."""
    run_id, started_at = new_run_id(), now()
    traffic = Traffic(
        salt=run_id if options.salt is None else options.salt,
        source=read_text(demo.CALIBRATION_TEXT),
        tokenizer=subject.tokenizer,
    )
    with Interrupts() as interrupts:
        with report.task(word or f"measuring {subject.label}", workload.requests) as work:
            result = measure(
                subject.target,
                workload,
                traffic,
                workers=options.workers,
                warm=warm,
                alive=subject.alive,
                warming=lambda p: work.at(
                    0, workload.requests, f"warming up, {p.finished} answered, {p.active} not yet"
                ),
                progress=lambda p: work.at(p.finished, workload.requests),
                stop_when=stop_when,
                ended=interrupts.hold,
            )
        run = record(subject, workload, result, run_id, started_at, definitions_of(options.definitions, result))
        run = replace(run, race=options.race, gate=options.gate, session=subject.session)
        file = save_run(options.results, run, result.traces, result.series)
    if interrupts.came or result.stopped == "interrupted":
        raise Interrupted(f"interrupted; the {len(result.traces)} requests measured until then are kept in {file}")
    return run


def check_definitions(names: Sequence[str]) -> tuple[str, ...]:
    """Raise UsageError for a tool whose formulas are not known."""
    from llmopt.bench.definitions import DEFINITIONS

    for name in names:
        if name not in DEFINITIONS:
            raise UsageError(f"no definitions of {name!r}", hint=f"--definitions {', '.join(DEFINITIONS)}")
    return tuple(names)


def definitions_of(names: Sequence[str], result: RunResult) -> dict[str, Any]:
    """The same traces by the definitions of other tools."""
    from llmopt.bench.definitions import DEFINITIONS

    return {name: DEFINITIONS[name][1](result.traces, result.client["seconds"]) for name in names}


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
    workers: int = 1,
    definitions: tuple[str, ...] = (),
) -> list[Measurement]:
    """Start the engine once, measure ``repeats`` runs, save each as soon as it is done."""
    options = RunOptions(results=results, workers=workers, definitions=definitions)
    runs = []
    with serving_case(
        case, report, results=results, python=python, port=port, ready_timeout_s=ready_timeout_s
    ) as subject:
        subject = replace(subject, quality=quality_of_case)
        for number in range(repeats):
            word = f"measuring {case.label}" + (f", run {number + 1} of {repeats}" if repeats > 1 else "")
            runs.append(measure_and_save(subject, case.workload, options, report, warm=number > 0, word=word))
    return runs


@contextlib.contextmanager
def serving_case(
    case: Case,
    report: Reporter,
    *,
    results: Path,
    python: str | None = None,
    port: int | None = None,
    ready_timeout_s: float | None = None,
) -> Iterator[Subject]:
    """The engine of a case, running for the time of the ``with`` block."""
    backend = require_loadable(case.serve.backend, case.artifact.quantization)
    require_adapters(backend, case.serve, case.workload.adapters)
    environment = environments.find(backend.needs, python)
    log = own_log(results / "logs" / log_stem(case.artifact, case.serve))
    prepare_results(results, this_machine())
    tokenizer, vram_before = load_tokenizer(case.artifact.path), used_by_gpu()
    if doubt := backend.doubt(version_of(backend, environment)):
        report.say(doubt)
    with started(backend, case, environment, report, log, port, ready_timeout_s) as server:
        yield Subject(
            target=Target(
                base_url=server.command.base_url,
                model=server.command.model,
                pid=server.pid,
                load_s=server.load_s,
                usage_per_chunk=server.command.usage_per_chunk,
                metrics_url=metrics_url(server.command.base_url, backend),
                metric_names=backend.metrics,
                facts=lambda: asdict(backend.facts(server.process.log_tail(LOG_LINES))),
                vram_before=vram_before,
                adapter_form=backend.adapter_form or "{adapter}",
            ),
            backend=backend_record(backend, environment, server, case.artifact.quantization.format),
            artifact=artifact_record(case.artifact),
            serve=options_document(case.serve),
            tokenizer=tokenizer,
            case_key=lambda workload: replace(case, workload=workload).key,
            label=case.label,
            metrics={"weights_bytes": case.artifact.size_bytes},
            alive=lambda: server.process.running,
            options=backend.options,
        )
        server.require_alive(backend)


def metrics_url(base_url: str, backend: Backend) -> str | None:
    """Where an engine that we started counts; ``None`` for one that does not."""
    return urlsplit(base_url)._replace(path=backend.metrics_path).geturl() if backend.metrics else None


def url_subject(
    url: str, model: str, *, results: Path, tokenizer: str | None = None, headers: Mapping[str, str] | None = None
) -> Subject:
    """Any running OpenAI-compatible server; nothing is known of its memory, and its engine only by what it shows."""
    check_url(url)
    prepare_results(results, this_machine())
    shown = without_secrets(url)
    found = recognise(url, Endpoint.of(url, "completions", headers).identified())
    backend = {"name": "url", "version": found.version, "engine": found.engine, "evidence": list(found.evidence)}
    return Subject(
        target=Target(
            base_url=url.rstrip("/"),
            model=model,
            headers=headers or {},
            metrics_url=found.metrics_url,
            metric_names=found.metrics,
            adapter_form=found.adapter_form,
        ),
        backend=backend | {"argv": [], "url": shown, "headers": sorted(headers or {})},
        artifact={"quantization": model, "method": "unknown", "base_name": model, "base_key": stable_hash(model)},
        serve={"backend": "url", "url": shown},
        tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
        case_key=lambda workload: stable_hash([url, model, workload_identity(asdict(workload))]),
        label=f"{model} at {shown}",
        session="",  # when it was started nobody tells: all that is measured of it is one session, as far as we know
    )


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
        "files": server.command.files,
        "note": backend.format_notes.get(format),
        "freeze": frozen,
    }


def engine_version(name: str, python: str | None = None) -> str | None:
    backend = serve.backend(name)
    return version_of(backend, environments.find(backend.needs, python))


def version_of(backend: Backend, environment: Environment) -> str | None:
    own = backend.version(environment) if backend.version else None
    return own or environments.freeze(environment).get(backend.distribution)


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
        elif SECRET_VALUE.match(word) or (place and SECRET_FLAG.match(argv[place - 1]) and not word.startswith("--")):
            shown.append("***")
        else:
            shown.append(BEARER.sub(r"\1***", word))
    return shown


def options_document(options: ServeOptions) -> dict[str, Any]:
    """The options as they may be kept and shown."""
    return asdict(options) | {"extra_args": without_secret_arguments(options.extra_args)}


def without_secrets(url: str) -> str:
    """The address without user, password and query: they may be keys."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def record(
    subject: Subject, workload: Workload, result: RunResult, run_id: str, started_at: str, definitions: dict[str, Any]
) -> Measurement:
    found = symptoms(result.traces, result.series, Knobs(options=subject.options, asked=subject.serve))
    return Measurement(
        run_id=run_id,
        started_at=started_at,
        case_key=subject.case_key(workload),
        machine=this_machine(),
        backend=subject.backend,
        artifact=subject.artifact,
        serve=subject.serve,
        workload=asdict(workload),
        verdict=result.verdict,
        metrics=subject.metrics | result.metrics,
        intervals=result.intervals,
        client=result.client,
        tokens=result.tokens | {"tokenizer": tokenizer_key(subject.tokenizer)},
        definitions=definitions,
        quality=subject.quality,
        telemetry=result.telemetry | {"symptoms": [asdict(s) for s in found]},
        memory=result.memory,
        server=result.server,
        commit=commit_here(),
        llmopt_version=llmopt.__version__,
        measuring_revision=MEASURING_REVISION,
    )


def tokenizer_key(tokenizer: Tokenizer | None) -> str | None:
    """The same for the same vocabulary and rules: prompts that another one cut are not the same lengths."""
    return None if tokenizer is None else stable_hash(tokenizer.to_str())[:16]


def artifact_record(artifact: Artifact) -> dict[str, Any]:
    return {
        "quantization": artifact.quantization.name,
        "label": artifact.label,
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
