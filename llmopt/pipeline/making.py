"""Make an artifact: forecast, weights checked, quantized in a worker, proven; only then it gets its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import llmopt
from llmopt import demo
from llmopt.core import environments
from llmopt.core.artifacts import (
    MANIFEST,
    WEIGHTS,
    artifact_of,
    fingerprint,
    manifest_of,
    open_artifact,
    read_manifest,
    weight_files,
)
from llmopt.core.domain import Artifact, ModelRef, Quantization, stable_hash
from llmopt.core.environments import Environment
from llmopt.core.errors import LlmoptError, ModelError, UsageError
from llmopt.core.files import alive, disk_errors, folder_bytes, partial_folder, partial_folders, write_atomic
from llmopt.core.machine import this_machine
from llmopt.core.weights import require_finite, require_matching_tokenizer, safetensors_header
from llmopt.core.worker import run_job
from llmopt.pipeline.proving import (
    ProofFailed,
    ProofLimits,
    QualityText,
    prove,
    quality_file,
    read_quality,
    require_provable,
)
from llmopt.pipeline.reporter import Reporter
from llmopt.quantize import CALIBRATED, Method, Route, loading, method
from llmopt.quantize.calibration import BUILTIN, Samples, prepare, read_rows
from llmopt.quantize.preflight import Forecast, forecast, remember, require_possible, require_room
from llmopt.report.card import base_name, card

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)
CARD, REFUSED = "README.md", "refused.json"
SAMPLES_FILE = "samples.json"
LLAMA_TOOLS = ("llama-quantize", "llama-imatrix")
# What says how the work is done, not what comes out of it: no part of an artifact's key.
HOW = ("max_memory_bytes", "device_map", "resume_folder", "tools", "check_text")


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What is to be made; ``key`` says whether it is there already. ``engine``: for which it is made, and proven in."""

    model: ModelRef
    method: Method
    route: Route
    settings: dict[str, Any]
    environment: Environment
    calibration: str = BUILTIN
    engine: str | None = None
    seen: loading.Entry | None = None

    @property
    def quantization(self) -> Quantization:
        return self.method.as_written(self.route)

    @property
    def calibrated(self) -> bool:
        return "samples" in self.settings

    @property
    def library(self) -> dict[str, str | None]:
        name = self.route.distribution
        return {"name": name, "version": environments.freeze(self.environment).get(name)}

    @property
    def resumes(self) -> bool:
        return self.model.model_type in self.route.resumes

    @property
    def key(self) -> str:
        """A hash of the base, the method, its layout and settings, the calibration text and the library's version."""
        text = read_rows(self.calibration)[1] if self.calibrated else None
        settings = {name: value for name, value in self.settings.items() if name not in HOW}
        if (matrix := settings.get("imatrix")) not in (None, "none", "auto"):
            settings["imatrix"] = fingerprint([Path(matrix)])
        q = self.quantization
        return stable_hash([self.model.fingerprint, q.name, q.format, settings, text, self.library["version"]])


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to make it, as far as the table does not say: what the options of ``llmopt quantize`` and a recipe set."""

    layout: str | None = None
    engine: str | None = None
    calibration: str = BUILTIN
    samples: int | None = None
    sample_tokens: int | None = None
    seed: int | None = None
    imatrix: str | None = None
    max_memory_bytes: int | None = None
    shard_bytes: int | None = None
    device_map: str | None = None
    python: str | None = None


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is known before work starts; ``--dry-run`` prints it."""

    request: QuantizeRequest
    forecast: Forecast
    samples: Samples | None
    doubts: list[str] = field(default_factory=list)

    def document(self, out: Path) -> dict[str, Any]:
        request, coming = self.request, self.forecast
        return {
            "model": request.model.path,
            "quantization": request.quantization.name,
            "format": request.quantization.format,
            "out": str(out),
            "library": request.library,
            "environment": str(request.environment.prefix),
            "engine": request.engine,
            "loads": None if request.seen is None else {"loads": request.seen.loads, "evidence": request.seen.evidence},
            "size_bytes": coming.size_bytes,
            "bits_per_weight": coming.bits_per_weight,
            "quantized_layers": coming.linears,
            "fallback_tensors": coming.fallbacks,
            "disk_bytes": coming.disk_bytes,
            "memory_bytes": coming.memory_bytes,
            "seconds": round(coming.seconds, 1),
            "evidence": coming.evidence,
            "resumes": request.resumes,
            "calibration": self.samples.facts() if self.samples else None,
            "doubts": self.doubts,
        }


def quantize_request(model: ModelRef, name: str, options: Options | None = None) -> QuantizeRequest:
    """Check everything that needs no look at the weights. Raises UsageError, ModelError, MissingEnvironment."""
    options = options or Options()
    chosen = method(name)
    device = "cuda" if this_machine().gpus else "cpu"
    route, seen = loading.choose_route(chosen, options.layout, options.engine, device)
    settings = settings_of(route, options)
    environment = environments.find(route.needs, options.python)
    tools = {name: str(path) for name in LLAMA_TOOLS if (path := environments.tool(name))}
    if route.format == "gguf":
        settings |= {"tools": tools, "check_text": str(demo.HELD_OUT_TEXT)}
    require_possible(model, chosen, route, environment, tools.keys() >= set(LLAMA_TOOLS))
    return QuantizeRequest(
        model=model, method=chosen, route=route, settings=settings, environment=environment,
        calibration=options.calibration, engine=options.engine, seen=seen,
    )  # fmt: skip


def settings_of(route: Route, options: Options) -> dict[str, Any]:
    """The route's settings with what was asked for; raises UsageError for values that make none."""
    settings = dict(route.settings)
    if options.imatrix is not None:
        if route.format != "gguf":
            raise UsageError(f"--imatrix is of GGUF, not of {route.format}", hint="leave it out, or --quant gguf-…")
        if options.imatrix not in ("auto", "none") and not Path(options.imatrix).is_file():
            raise UsageError(f"no importance matrix at {options.imatrix}", hint="--imatrix auto, none, or a file")
        settings["imatrix"] = options.imatrix
    if settings.get("imatrix") == "auto":
        settings |= CALIBRATED
    for name in ("samples", "sample_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be 1 or more, got {value}", hint="--samples 64")
    if "samples" in settings:
        asked = {"samples": options.samples, "sample_tokens": options.sample_tokens, "seed": options.seed}
        settings |= {name: value for name, value in asked.items() if value is not None}
    elif options.calibration != BUILTIN:
        read_rows(options.calibration)  # a wrong name is wrong, although nothing is calibrated
    how = {name: getattr(options, name) for name in ("max_memory_bytes", "shard_bytes", "device_map")}
    return settings | {name: value for name, value in how.items() if value is not None}


def prepared(
    request: QuantizeRequest, out: Path, evaluation: Path | None, *, kv_cache_dtype: str = "auto", force: bool = False
) -> Preparation:
    """Calibration, forecast and doubts; raises when the proof could not start, or disk or memory will not do, unless forced.

    ``evaluation``: the text that the result will be proven on; ``None`` without a proof.
    """
    if evaluation is not None:
        require_provable(request.quantization, engine=request.engine, kv_cache_dtype=kv_cache_dtype)
    samples, settings = None, request.settings
    if request.calibrated:
        samples = prepare(
            request.calibration, Path(request.model.path), count=settings["samples"], length=settings["sample_tokens"],
            seed=settings["seed"], evaluation=evaluation, validate=settings.get("imatrix") == "auto",
        )  # fmt: skip
    tokens = samples.tokens if samples else 0
    coming = forecast(request.model, request.method, request.route, settings, tokens)
    if not force:
        require_room(coming, out, settings.get("max_memory_bytes"), request.quantization.name)
    doubts = [*coming.doubts, *(samples.doubts if samples else [])]
    if request.engine and request.seen is None:
        doubts.append(
            f"whether {request.engine} loads {request.quantization.format} is not known to llmopt: try it early"
        )
    return Preparation(request=request, forecast=coming, samples=samples, doubts=doubts)


def quantize(
    request: QuantizeRequest,
    out: Path,
    report: Reporter,
    *,
    proof: QualityText | None = None,
    limits: ProofLimits | None = None,
    kv_cache_dtype: str = "auto",
    force: bool = False,
) -> tuple[Artifact, bool]:
    """Make an artifact in ``out``, or find it there; returns it and whether it was there already.

    Everything happens in a folder beside ``out`` that is renamed at the end, after the result was reloaded and compared
    with its base: whatever kills us, nothing half-made has the artifact's name, and weights that were whole are taken
    up by the next start.  A result that fails its proof is kept aside as ``out``.refused.  Raises ProofFailed then.
    """
    out = out.resolve()

    def proven(artifact: Artifact) -> dict[str, Any] | None:
        if proof is None:
            return None
        return prove(
            artifact, proof, report, log_folder=logs_folder(out), limits=limits, engine=request.engine,
            kv_cache_dtype=kv_cache_dtype,
        )  # fmt: skip

    if (found := already_there(request, out)) is not None:
        proven(found)
        return found, True
    preparation = prepared(request, out, proof.path if proof else None, kv_cache_dtype=kv_cache_dtype, force=force)
    for doubt in preparation.doubts:
        report.say(f"doubt: {doubt}")
    with claimed(request, out) as (aside, whole):
        if whole:
            report.say(f"its weights were made before: {request.quantization.name} only needs its proof")
        else:
            make(preparation, aside, out, report)
        artifact = open_artifact(aside)
        try:
            quality = proven(artifact)
        except ProofFailed as failure:
            keep_refused(aside, out, failure)
            raise
        except ModelError:  # the files are not what they should be: nothing that a second proof could mend
            shutil.rmtree(aside, ignore_errors=True)
            raise
        artifact = replace(artifact, path=str(out))
        finish(artifact, aside, quality, command_line(request, out))
        with disk_errors(out):
            try:
                aside.rename(out)
            except OSError:
                if (found := already_there(request, out)) is None:  # another process was faster with the same
                    raise
                return found, True
    shutil.rmtree(resume_folder(request, out), ignore_errors=True)
    return artifact, False


def finish(artifact: Artifact, aside: Path, quality: dict[str, Any] | None, command: str) -> None:
    """The manifest with the final place, and the card."""
    manifest = {
        name: value for name, value in (read_manifest(aside) or {}).items() if name not in ("schema", "artifact")
    }
    write_atomic(aside / MANIFEST, manifest_of(artifact, **manifest))
    document = {**manifest, "artifact": asdict(artifact), "quality": quality}
    write_atomic(aside / CARD, card(document, command).encode())


@contextmanager
def claimed(request: QuantizeRequest, out: Path) -> Iterator[tuple[Path, bool]]:
    """The folder to work in, and whether it holds whole weights of this very request, left by a run that was killed.

    Whole weights survive an error too: only their proof is missing.  What is half made goes away.
    """
    left = [p for p in partial_folders(out) if not alive(p.name.rpartition("-")[2])] + [refused_folder(out)]
    whole = next((p for p in left if holds(p, request)), None)
    kept = whole.rename(out.with_name(f".{out.name}.kept")) if whole else None
    aside = partial_folder(out)
    if kept:
        aside.rmdir()
        kept.rename(aside)
        (aside / REFUSED).unlink(missing_ok=True)
    try:
        yield aside, kept is not None
    finally:
        if not holds(aside, request):
            shutil.rmtree(aside, ignore_errors=True)


def holds(folder: Path, request: QuantizeRequest) -> bool:
    """Whether a folder holds whole weights of this request."""
    try:
        manifest = read_manifest(folder)
        return manifest is not None and manifest["artifact"]["key"] == request.key and bool(open_artifact(folder))
    except LlmoptError:
        return False


def make(preparation: Preparation, aside: Path, out: Path, report: Reporter) -> None:
    """Check the base's weights, quantize in a worker, copy the tokenizer, write the manifest: whole weights in ``aside``."""
    request = preparation.request
    base, name = Path(request.model.path), request.quantization.name
    log = logs_folder(out) / f"quantize-{name}.log"
    with report.task("checking the base's weights") as work:
        require_matching_tokenizer(base)
        require_finite(weight_files(base), work.at)
    settings = request.settings
    if request.resumes:
        settings = settings | {"resume_folder": str(resume_folder(request, out))}
    samples = aside / SAMPLES_FILE
    if preparation.samples is not None:
        with disk_errors(samples):
            samples.write_text(json.dumps(preparation.samples.content()))
    arguments = {
        "model": request.model.path,
        "out": str(aside),
        "settings": settings,
        "samples": str(samples) if preparation.samples else "",
    }
    with report.task(f"quantizing {name}") as work:
        job = run_job(request.environment, request.route.function, arguments, log=log, progress=work.at)
    samples.unlink(missing_ok=True)
    copy_tokenizer(base, aside)
    details = job.value
    if "imatrix" in details:
        details = details | choose_matrix(preparation, aside, report, details)
    artifact = describe(request, aside, details)
    tokens = preparation.samples.tokens if preparation.samples else 0
    remember(
        name, request.route, parameters=request.model.parameters, tokens=tokens, seconds=job.seconds,
        memory_bytes=job.peak_memory_bytes,
    )  # fmt: skip
    manifest = {
        "method": request.quantization.method,
        "settings": {k: v for k, v in settings.items() if k not in ("tools", "check_text", "resume_folder")},
        "base": {
            "name": "llmopt demo model" if base == demo.MODEL else base_name(base),
            "path": request.model.path,
            "fingerprint": request.model.fingerprint,
            "parameters": request.model.parameters,
            "architecture": request.model.architecture,
        },
        "calibration": preparation.samples.facts() if preparation.samples else None,
        "engine": request.engine,
        "library": request.library,
        "seconds": round(job.seconds, 2),
        "peak_memory_bytes": job.peak_memory_bytes,
        "details": details,
        "weights_fingerprint": fingerprint(weight_files(aside)),
        "versions": environments.freeze(request.environment),
        "llmopt_version": llmopt.__version__,
    }
    write_atomic(aside / MANIFEST, manifest_of(artifact, **manifest))


def choose_matrix(preparation: Preparation, aside: Path, report: Reporter, details: dict[str, Any]) -> dict[str, Any]:
    """Of a GGUF made with and without an importance matrix, keep the one nearer to the base, on text seen by neither."""
    other = aside / "with-imatrix.gguf"
    if not other.exists():
        return {}
    text = aside / "validation.txt"
    text.write_text(preparation.samples.validation if preparation.samples else "", encoding="utf-8")
    kl = {}
    for name, file in (("without", aside / "model.gguf"), ("with", other)):
        trial = aside / f"trial-{name}"
        trial.mkdir()
        file.rename(trial / "model.gguf")
        candidate = replace(
            describe(preparation.request, trial, details), key=stable_hash([preparation.request.key, name])
        )
        found = prove(
            candidate, QualityText(path=text, tokens=8192), report, log_folder=logs_folder(aside),
            limits=ProofLimits.none(), engine="llamacpp",
        )  # fmt: skip
        quality_file(candidate).unlink(missing_ok=True)
        kl[name] = found["kl_mean"]
    best = min(kl, key=lambda name: kl[name])
    (aside / f"trial-{best}" / "model.gguf").rename(aside / "model.gguf")
    if best == "without":
        shutil.rmtree(aside / "imatrix")
    for name in kl:
        shutil.rmtree(aside / f"trial-{name}")
    text.unlink()
    report.say(
        f"importance matrix {'kept' if best == 'with' else 'left out'}: KL {kl['with']:.5f} with, {kl['without']:.5f} without it"
    )
    return {
        "imatrix": details["imatrix"] | {"kept": best == "with", "kl_with": kl["with"], "kl_without": kl["without"]}
    }


def keep_refused(aside: Path, out: Path, failure: ProofFailed) -> None:
    """Keep what failed its proof beside the wanted name, with the reason: hours of work are no rubbish."""
    target = refused_folder(out)
    shutil.rmtree(target, ignore_errors=True)
    write_atomic(
        aside / REFUSED, json.dumps({"reason": failure.message, "quality": failure.figures}, indent=1).encode()
    )
    with disk_errors(target):
        aside.rename(target)
    failure.hint = (
        f"{failure.hint}; the weights are kept in {target}" if failure.hint else f"the weights are kept in {target}"
    )


def refused_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.refused")


def resume_folder(request: QuantizeRequest, out: Path) -> Path:
    """Where a library that can resume keeps its work between starts."""
    return out.with_name(f".{out.name}.resume-{request.key}")


def logs_folder(out: Path) -> Path:
    return out.parent / "logs"


def command_line(request: QuantizeRequest, out: Path) -> str:
    """The command that makes it again."""
    import shlex

    model = "demo" if Path(request.model.path) == demo.MODEL else request.model.path
    words = ["llmopt", "quantize", model, "--quant", request.quantization.name, "--format", request.quantization.format]
    if request.calibrated:
        words += ["--calibration", request.calibration]
        for name in ("samples", "sample_tokens", "seed"):
            words += [f"--{name.replace('_', '-')}", str(request.settings[name])]
    if request.settings.get("imatrix", "none") != "none":
        words += ["--imatrix", request.settings["imatrix"]]
    return shlex.join([*words, "-o", out.name])


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
        return None  # an empty folder is replaced by the rename
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
    if not size and request.quantization.format != "in-memory":
        raise ModelError(f"{request.quantization.name} left no weights", hint=f"see {logs_folder(folder)}")
    weight_bytes = details.get("weight_bytes") or sum(tensor_bytes(f) for f in folder.glob("*.safetensors"))
    if request.quantization.format == "in-memory":  # int8 for what was quantized, float32 for the rest
        done = details["quantized_parameters"]
        weight_bytes = done + 4 * (request.model.parameters - done)
    return Artifact(
        path=str(folder.resolve()),
        quantization=request.quantization,
        base=request.model.path,
        base_fingerprint=request.model.fingerprint,
        size_bytes=size,
        bits_per_weight=round(weight_bytes * 8 / request.model.parameters, 3),
        key=request.key,
    )


def tensor_bytes(file: Path) -> int:
    header = safetensors_header(file)
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())


def made_document(artifact: Artifact, there: bool) -> dict[str, Any]:
    """What ``llmopt quantize`` prints of a finished artifact."""
    manifest = read_manifest(Path(artifact.path)) or {}
    return {
        "already_there": there,
        **manifest,
        "quality": read_quality(quality_file(artifact_of(manifest, Path(artifact.path)))),
    }
