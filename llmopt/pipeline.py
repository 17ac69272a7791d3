"""quantize → prove → serve → bench → save → recommend; the only module that knows all the packages."""

from __future__ import annotations

import contextlib
import datetime
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import llmopt
from llmopt import demo, quality, serve
from llmopt.bench.prompts import load_tokenizer
from llmopt.bench.runner import RunResult, Target, measure
from llmopt.core import environments
from llmopt.core.artifacts import (
    MANIFEST,
    WEIGHTS,
    manifest_of,
    open_artifact,
    open_model,
    read_manifest,
    safetensors_header,
    unquantized,
)
from llmopt.core.domain import Artifact, Case, Goal, Measurement, ModelRef, ServeOptions, Workload, stable_hash
from llmopt.core.environments import Environment
from llmopt.core.errors import MissingEnvironment, ModelError, UsageError
from llmopt.core.files import disk_errors, folder_bytes, partial_folder, write_atomic
from llmopt.core.machine import this_machine
from llmopt.core.store import load_runs, save_run
from llmopt.core.worker import run_job
from llmopt.quantize import UNQUANTIZED, Method, method
from llmopt.recipe import Plan
from llmopt.recommend.candidates import comparable
from llmopt.recommend.rank import recommend
from llmopt.report.document import ranking_document
from llmopt.serve import Backend, require_loadable
from llmopt.serve.process import RunningServer, serving

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)
# An artifact this far from its base is broken, not quantized: even 2-bit weights stay well below.
BROKEN_KL = 2.0
QUALITY_FILE = "quality.json"


class Reporter(Protocol):
    """Who is told how far things are."""

    def say(self, text: str) -> None: ...
    def task(self, text: str, total: int | None = None) -> AbstractContextManager[Callable[[], None]]: ...


@dataclass(frozen=True, kw_only=True)
class QualityText:
    """The text that artifacts are proven on, and how many tokens of it."""

    path: Path = demo.HELD_OUT_TEXT
    tokens: int = quality.MAX_TOKENS


# --- quantize ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What is to be made; ``key`` says whether it is there already."""

    model: ModelRef
    method: Method
    settings: dict[str, Any]
    calibration: Path
    environment: Environment

    @property
    def key(self) -> str:
        """A hash of the base, the method, its settings, the calibration text and the library's version."""
        text = stable_hash(self.calibration.read_text()) if self.method.calibrated else None
        version = environments.freeze(self.environment).get(self.method.distribution)
        return stable_hash([self.model.fingerprint, self.method.quantization.name, self.settings, text, version])


def quantize_request(
    model: ModelRef,
    name: str,
    *,
    calibration: Path = demo.CALIBRATION_TEXT,
    samples: int | None = None,
    python: str | None = None,
) -> QuantizeRequest:
    """Check everything that can be checked before work starts. Raises UsageError, MissingEnvironment."""
    chosen = method(name)
    if not calibration.is_file():
        raise UsageError(f"no calibration text at {calibration}", hint="name a text file, or leave --calibration out")
    if samples is not None and samples < 1:
        raise UsageError(f"--samples must be 1 or more, got {samples}", hint="--samples 64")
    settings = chosen.settings | ({"samples": samples} if samples and chosen.calibrated else {})
    environment = environments.find(chosen.needs, python)
    return QuantizeRequest(
        model=model, method=chosen, settings=settings, calibration=calibration, environment=environment
    )


def quantize(
    request: QuantizeRequest, out: Path, report: Reporter, *, proof: QualityText | None = None
) -> tuple[Artifact, bool]:
    """Make an artifact in ``out``, or find it there; returns it and whether it was there already.

    Everything happens in a folder beside ``out`` that is renamed at the end, after the result was reloaded and
    compared with its base: whatever kills us, nothing half-made has the artifact's name.
    """
    if (found := already_there(request, out)) is not None:
        return found, True
    name = request.method.quantization.name
    log = logs_folder(out) / f"quantize-{name}.log"
    aside = partial_folder(out)
    try:
        with report.task(f"quantizing {name}"):
            job = run_job(
                request.environment,
                request.method.function,
                {
                    "model": request.model.path,
                    "out": str(aside),
                    "settings": request.settings,
                    "calibration": str(request.calibration.resolve()),
                },
                log=log,
            )
        copy_tokenizer(Path(request.model.path), aside)
        artifact = describe(request, aside, job.value)
        manifest = {
            "method": request.method.quantization.method,
            "settings": request.settings,
            "base": {
                "path": request.model.path,
                "fingerprint": request.model.fingerprint,
                "parameters": request.model.parameters,
            },
            "calibration": {"text_sha256": stable_hash(request.calibration.read_text(), 64)}
            if request.method.calibrated
            else None,
            "seconds": round(job.seconds, 2),
            "peak_memory_bytes": job.peak_memory_bytes,
            "details": job.value,
            "versions": environments.freeze(request.environment),
            "llmopt_version": llmopt.__version__,
        }
        write_atomic(aside / MANIFEST, manifest_of(artifact, **manifest))
        if proof is not None:
            prove(artifact, proof, report, log_folder=logs_folder(out))
        artifact = replace(artifact, path=str(out.resolve()))
        write_atomic(aside / MANIFEST, manifest_of(artifact, **manifest))
        with disk_errors(out):
            aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return artifact, False


def logs_folder(out: Path) -> Path:
    return out.resolve().parent / "logs"


def already_there(request: QuantizeRequest, out: Path) -> Artifact | None:
    """The finished artifact of this very request; raises UsageError when ``out`` holds anything else."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UsageError(f"{out} is a file", hint="name a folder that does not exist yet: -o DIR")
    manifest = read_manifest(out)
    if manifest is None:
        if any(out.iterdir()):
            raise UsageError(f"{out} holds something else and is not overwritten", hint="name another folder: -o DIR")
        out.rmdir()
        return None
    if manifest["artifact"]["key"] != request.key:
        held = manifest["artifact"]["quantization"]["name"]
        raise UsageError(
            f"{out} holds {held} made from another model or with other settings or versions",
            hint="name another folder, or remove that one",
        )
    return open_artifact(out)


def copy_tokenizer(model: Path, out: Path) -> None:
    """The base's own tokenizer, byte for byte: token ids must not depend on what a library re-saved."""
    with disk_errors(out):
        for name in TOKENIZER_FILES:
            if (model / name).exists():
                shutil.copyfile(model / name, out / name)
        if not (out / "config.json").exists():
            shutil.copyfile(model / "config.json", out / "config.json")


def describe(request: QuantizeRequest, folder: Path, details: dict[str, Any]) -> Artifact:
    """The artifact with its real bits per weight; raises ModelError when the quantizer left no weights."""
    size = folder_bytes(folder, WEIGHTS)
    if not size:
        raise ModelError(f"{request.method.quantization.name} left no weights", hint=f"see {logs_folder(folder)}")
    weight_bytes = details.get("weight_bytes") or sum(tensor_bytes(f) for f in folder.glob("*.safetensors"))
    return Artifact(
        path=str(folder.resolve()),
        quantization=request.method.quantization,
        base=request.model.path,
        base_fingerprint=request.model.fingerprint,
        size_bytes=size,
        bits_per_weight=round(weight_bytes * 8 / request.model.parameters, 3),
        key=request.key,
    )


def tensor_bytes(file: Path) -> int:
    header = safetensors_header(file)
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())


# --- prove ------------------------------------------------------------------------------------------------------


def prove(
    artifact: Artifact, text: QualityText, report: Reporter, *, log_folder: Path, python: str | None = None
) -> dict[str, Any]:
    """Quality against the base, measured once per artifact and text; raises ModelError for a broken artifact."""
    if not text.path.is_file():
        raise UsageError(f"no text at {text.path}", hint="name a text file, or leave --text out")
    if not Path(artifact.base).is_dir():
        raise ModelError(
            f"the base of {artifact.path} is gone: {artifact.base}", hint="put the base model back, or quantize again"
        )
    file, key = quality_file(artifact), stable_hash([artifact.key, text.path.read_text(), text.tokens])
    if (known := read_quality(file, key)) is not None:
        return known
    with report.task(f"comparing {artifact.label} with its base"):
        job = run_job(
            environments.find(quality.needs(artifact), python),
            quality.FUNCTION,
            quality.arguments(artifact, text.path.resolve(), text.tokens),
            log=log_folder / f"quality-{artifact.label}.log",
        )
    result: dict[str, Any] = job.value
    if result["kl_mean"] > BROKEN_KL:
        raise ModelError(
            f"{artifact.label} is broken: its mean KL divergence to the base is {result['kl_mean']:.2f} nats",
            hint="this quantizer does not work for this model; try another",
        )
    write_atomic(file, json.dumps({"key": key, "quality": result}, indent=1).encode())
    return result


def quality_file(artifact: Artifact) -> Path:
    """Beside the weights; for a base, which is not ours to write to, in llmopt's own folder."""
    folder = Path(artifact.path)
    if (folder / MANIFEST).exists():
        return folder / QUALITY_FILE
    return environments.home() / "quality" / f"{artifact.key}.json"


def read_quality(file: Path, key: str | None = None) -> dict[str, Any] | None:
    """Stored quality, of that key where one is given; ``None`` when there is none."""
    try:
        stored = json.loads(file.read_text())
        found: dict[str, Any] | None = stored["quality"] if key in (None, stored["key"]) else None
    except (OSError, ValueError, KeyError):
        return None
    return found


# --- serve and bench --------------------------------------------------------------------------------------------


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
            run_id = new_run_id()
            word = f"measuring {case.label}" + (f", run {number + 1} of {repeats}" if repeats > 1 else "")
            with report.task(word, case.workload.requests) as advance:
                result = measure(
                    target,
                    case.workload,
                    salt=run_id,
                    source=demo.CALIBRATION_TEXT.read_text(),
                    tokenizer=tokenizer,
                    alive=lambda: server.process.running,
                    done=lambda _: advance(),
                )
            server.require_alive(backend)
            run = record(case, result, run_id, backend_record(backend, environment, server), quality_of_case)
            save_run(results, run, result.traces)
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


def backend_record(backend: Backend, environment: Environment, server: RunningServer) -> dict[str, Any]:
    frozen = environments.freeze(environment)
    return {
        "name": backend.name,
        "version": version_of(backend, environment),
        "argv": list(server.command.argv),
        "environment": server.command.environment,
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
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no address", hint="--url http://127.0.0.1:8000/v1")
    run_id = new_run_id()
    with report.task(f"measuring {model} at {url}", workload.requests) as advance:
        result = measure(
            Target(base_url=url.rstrip("/"), model=model),
            workload,
            salt=run_id,
            source=demo.CALIBRATION_TEXT.read_text(),
            tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
            done=lambda _: advance(),
        )
    run = Measurement(
        run_id=run_id,
        started_at=now(),
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
    )
    save_run(results, run, result.traces)
    return run


def without_secrets(url: str) -> str:
    """The address without user, password and query: they may be keys."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def record(
    case: Case, result: RunResult, run_id: str, backend: dict[str, Any], quality_of_case: dict[str, Any] | None
) -> Measurement:
    return Measurement(
        run_id=run_id,
        started_at=now(),
        case_key=case.key,
        machine=this_machine(),
        backend=backend,
        artifact=artifact_record(case.artifact),
        serve=asdict(case.serve),
        workload=asdict(case.workload),
        verdict=result.verdict,
        metrics=result.metrics | {"weights_bytes": case.artifact.size_bytes},
        intervals=result.intervals,
        quality=quality_of_case,
        telemetry=result.telemetry,
        llmopt_version=llmopt.__version__,
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


# --- a whole plan -----------------------------------------------------------------------------------------------


def run_plan(plan: Plan, folder: Path, report: Reporter) -> dict[str, Any]:
    """Make, prove and measure every case of a plan, then rank them; what is there already is taken up as it is."""
    model = open_model(plan.model)
    results = folder / "results"
    text = QualityText(path=plan.quality_text, tokens=plan.quality_tokens)
    keys = []
    for number, (name, options) in enumerate(plan.cases, 1):
        report.say(f"[{number}/{len(plan.cases)}] {name} on {options.backend}")
        artifact = artifact_of(plan, model, name, folder, report, text)
        found = prove(artifact, text, report, log_folder=folder / "artifacts" / "logs")
        case = Case(artifact=artifact, serve=options, workload=plan.workload)
        keys.append(case.key)
        have = stored_runs(results, case)
        if have < plan.repeats:
            bench_artifact(case, report, results=results, repeats=plan.repeats - have, quality_of_case=found)
        else:
            report.say(f"already measured: {have} run(s)")
    runs = [run for run in load_runs(results, machine=this_machine()) if run.case_key in keys]
    return rank_runs(runs, plan.goal)


def artifact_of(plan: Plan, model: ModelRef, name: str, folder: Path, report: Reporter, text: QualityText) -> Artifact:
    if name in UNQUANTIZED:
        return unquantized(model)
    request = quantize_request(model, name, calibration=plan.calibration_text, samples=plan.calibration_samples)
    out = folder / "artifacts" / f"{name}-{request.key[:8]}"
    artifact, there = quantize(request, out, report, proof=text)
    if there:
        report.say(f"already there: {out}")
    return artifact


def stored_runs(results: Path, case: Case) -> int:
    """Usable runs of this case, on this machine, with the engine version that would be used now."""
    if not results.exists():
        return 0
    version = engine_version(case.serve.backend)
    runs = load_runs(results, machine=this_machine())
    same = [run for run in runs if run.case_key == case.key and run.backend.get("version") == version]
    return sum(run.verdict.status != "invalid" for run in same)


def rank_runs(runs: list[Measurement], goal: Goal) -> dict[str, Any]:
    """The ranking document of what can be compared among these runs. Raises Inconclusive without any."""
    group = comparable(runs)
    ranked, rejected = recommend(group.candidates, goal)
    return ranking_document(
        goal,
        ranked,
        rejected,
        machine=group.machine,
        workload=group.workload,
        base=group.base,
        left_out=group.left_out,
    )


def open_case(path: Path, options: ServeOptions, workload: Workload) -> Case:
    """An artifact or a base model on disk as a case; without a backend the first that loads it. Raises UsageError."""
    artifact = open_artifact(path)
    name = options.backend or serve.first_able(artifact.quantization)
    require_loadable(name, artifact.quantization)
    return Case(artifact=artifact, serve=replace(options, backend=name), workload=workload)


def ensure_environment(plan: Plan, report: Reporter) -> None:
    """Create the environment that a plan needs when nothing here has it."""
    wanted = [serve.backend(options.backend).needs for _, options in plan.cases]
    wanted += [method(name).needs for name, _ in plan.cases if name not in UNQUANTIZED]
    try:
        for needs in wanted:
            environments.find(needs)
    except MissingEnvironment as error:
        report.say(f"{error.message}: making one (about 2 GB, two or three minutes, once)")
        with report.task("environment local"):
            environments.create("local", report=report.say)
