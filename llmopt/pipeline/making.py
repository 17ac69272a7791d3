"""Make an artifact: forecast, weights checked, quantized in a worker, proven; only then it gets its name."""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
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
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.files import disk_errors, folder_bytes, write_atomic
from llmopt.core.machine import this_machine
from llmopt.core.weights import embedding_rows, require_finite, require_matching_tokenizer, safetensors_header
from llmopt.core.worker import run_job
from llmopt.pipeline.claiming import (
    already_there,
    claimed,
    keep_refused,
    logs_folder,
    one_at_a_time,
    resume_folder,
    whole_weights,
)
from llmopt.pipeline.proving import (
    ProofLimits,
    QualityText,
    engine_of_proof,
    prove,
    quality_file,
    read_quality,
    require_provable,
)
from llmopt.pipeline.reporter import Reporter
from llmopt.quality import WINDOW_TOKENS, needs
from llmopt.quality.gguf_file import read_gguf
from llmopt.quality.tokens import file_ids, token_windows
from llmopt.quantize import CALIBRATED, Method, Route, loading, method
from llmopt.quantize.calibration import BUILTIN, Samples, prepare, read_rows
from llmopt.quantize.gguf_types import FILE_TYPES
from llmopt.quantize.preflight import (
    Forecast,
    forecast,
    remember,
    require_matrix,
    require_possible,
    require_room,
)
from llmopt.report.card import base_name, card

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)
CARD = "README.md"
SAMPLES_FILE = "samples.json"
LLAMA_TOOLS = ("llama-quantize", "llama-imatrix")
LOGIT_BYTES = 4  # at most; what a base in 16 bits gives takes two
LEAST_VALIDATION = 3 * WINDOW_TOKENS  # what a comparison needs
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

    @functools.cached_property
    def library(self) -> dict[str, str | None]:
        """What quantizes, and its version: the user's own llama.cpp where that is used, else a package."""
        if program := self.settings.get("tools", {}).get("llama-quantize"):
            return {"name": "llama.cpp", "version": environments.tool_version(Path(program))}
        name = self.route.distribution
        return {"name": name, "version": environments.freeze(self.environment).get(name)}

    def python_of_proof(self, kv_cache_dtype: str) -> str | None:
        """The interpreter that the user named, where the proof can run in it too; else one is looked for."""
        if self.environment.origin != "user":
            return None
        engine = engine_of_proof(self.quantization, self.engine, kv_cache_dtype)
        lacking = environments.missing(self.environment, needs(self.quantization, engine))
        return None if lacking else str(self.environment.python)

    @property
    def resumes(self) -> bool:
        return self.model.model_type in self.route.resumes

    @functools.cached_property
    def key(self) -> str:
        """A hash of the base, the method, its layout and settings, the calibration text and the library's version.

        Reckoned once: a text that changes while it is worked on must not give its name to what was made before.
        """
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
    require_possible(model, chosen, route, environment, tools.keys() >= set(LLAMA_TOOLS), device)
    if route.format == "gguf":
        require_matrix(chosen, settings["imatrix"], tools)
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
    for name in ("samples", "sample_tokens", "max_memory_bytes", "shard_bytes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            word = name.replace("_bytes", "").replace("shard", "shard_size").replace("_", "-")
            raise UsageError(f"--{word} must be 1 or more, got {value}", hint="leave it out for the default")
    if "samples" in settings:
        asked = {"samples": options.samples, "sample_tokens": options.sample_tokens, "seed": options.seed}
        settings |= {name: value for name, value in asked.items() if value is not None}
    elif options.calibration != BUILTIN:
        read_rows(options.calibration)  # a wrong name is wrong, although nothing is calibrated
    how = {name: getattr(options, name) for name in ("max_memory_bytes", "shard_bytes", "device_map")}
    return settings | {name: value for name, value in how.items() if value is not None}


def prepared(
    request: QuantizeRequest,
    out: Path,
    proof: QualityText | None,
    *,
    kv_cache_dtype: str = "auto",
    force: bool = False,
) -> Preparation:
    """Calibration, forecast and doubts; raises when the proof could not start, or disk or memory will not do, unless forced."""
    base, samples, settings = Path(request.model.path), None, request.settings
    if proof is not None:
        require_provable(
            request.quantization, engine=request.engine, kv_cache_dtype=kv_cache_dtype,
            python=request.python_of_proof(kv_cache_dtype),
        )  # fmt: skip
        token_windows(request.model.path, str(proof.path), proof.tokens)  # a text that is too short, before the work
    if request.calibrated:
        samples = prepare(
            request.calibration, base, count=settings["samples"], length=settings["sample_tokens"],
            seed=settings["seed"], evaluation=proof.path if proof else None, validate=chooses(request),
        )  # fmt: skip
    if samples is not None and chooses(request):
        require_validation(base, samples)
    tokens = samples.tokens if samples else 0
    coming = forecast(request.model, request.method, request.route, settings, tokens)
    if proof is not None:  # the proof keeps the base's logits on disk while it reads the artifact
        logits = proof.tokens * (embedding_rows(base) or 0) * LOGIT_BYTES
        coming = replace(coming, disk_bytes=max(coming.disk_bytes, coming.size_bytes + logits))
    if not force:
        require_room(coming, out, settings.get("max_memory_bytes"), request.quantization.name)
    doubts = [*coming.doubts, *(samples.doubts if samples else [])]
    if request.engine and request.seen is None:
        doubts.append(
            f"whether {request.engine} loads {request.quantization.format} is not known to llmopt: try it early"
        )
    return Preparation(request=request, forecast=coming, samples=samples, doubts=doubts)


def chooses(request: QuantizeRequest) -> bool:
    """Whether two files are made, with and without an importance matrix, of which the better one is kept."""
    matrix = request.settings.get("imatrix")
    return matrix == "auto" and not FILE_TYPES[request.settings["type"]].needs_imatrix


def require_validation(base: Path, samples: Samples) -> None:
    """The choice is measured on text that was not calibrated on: enough of it must be left. Raises UsageError."""
    left, needed = len(file_ids(base / "tokenizer.json", samples.validation)), LEAST_VALIDATION
    if left < needed:
        raise UsageError(
            f"{samples.source} leaves {left} tokens to choose with or without an importance matrix by, {needed} are needed",
            hint="a longer calibration text, fewer --samples, or --imatrix none",
        )


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
            kv_cache_dtype=kv_cache_dtype, python=request.python_of_proof(kv_cache_dtype),
        )  # fmt: skip

    def prepare_anew() -> Preparation:
        found = prepared(request, out, proof, kv_cache_dtype=kv_cache_dtype, force=force)
        for doubt in found.doubts:
            report.say(f"doubt: {doubt}")
        return found

    if (found := already_there(out, request.key)) is not None:
        return taken_up(request, found, proven(found)), True
    preparation = None if whole_weights(out, request.key) else prepare_anew()
    with one_at_a_time(out, lambda: report.say(f"another llmopt makes {out}: waiting for it")):
        if (found := already_there(out, request.key)) is not None:  # made while we waited
            return taken_up(request, found, proven(found)), True
        with claimed(out, request.key) as (aside, whole):
            if whole:
                report.say(f"its weights were made before: {request.quantization.name} only needs its proof")
            else:
                make(preparation or prepare_anew(), aside, out, report)
            shutil.rmtree(resume_folder(out, request.key), ignore_errors=True)
            artifact = open_artifact(aside)
            try:
                quality = proven(artifact)
            except ModelError as failure:
                keep_refused(aside, out, request.key, failure, getattr(failure, "figures", None))
                raise
            artifact = replace(artifact, path=str(out))
            finish(artifact, aside, quality, command_line(request, out))
            with disk_errors(out):
                aside.rename(out)
    return artifact, False


def taken_up(request: QuantizeRequest, found: Artifact, quality: dict[str, Any] | None) -> Artifact:
    """What was there already, with a card that tells of the proof it has now."""
    out = Path(found.path)
    if quality is not None:
        write_card(out, (read_manifest(out) or {}) | {"quality": quality}, command_line(request, out))
    return found


def finish(artifact: Artifact, aside: Path, quality: dict[str, Any] | None, command: str) -> None:
    """The manifest with the final place, and the card."""
    manifest = {
        name: value for name, value in (read_manifest(aside) or {}).items() if name not in ("schema", "artifact")
    }
    write_atomic(aside / MANIFEST, manifest_of(artifact, **manifest))
    write_card(aside, {**manifest, "artifact": asdict(artifact), "quality": quality}, command)


def write_card(folder: Path, document: dict[str, Any], command: str) -> None:
    """Written only where it says something new: a finished artifact may lie where nobody writes."""
    text = card(document, command)
    if not (folder / CARD).exists() or (folder / CARD).read_text(encoding="utf-8") != text:
        write_atomic(folder / CARD, text.encode())


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
        settings = settings | {"resume_folder": str(resume_folder(out, request.key))}
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
    for file in weight_files(aside):  # safetensors writes them for their owner alone
        file.chmod(file.stat().st_mode | (aside.stat().st_mode & 0o444))
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
    kept = read_gguf(aside / "model.gguf")  # llama.cpp chooses other types where it has a matrix
    return {
        "weight_bytes": sum(tensor.bytes for tensor in kept.tensors),
        "tensor_types": dict(Counter(tensor.type.name for tensor in kept.tensors)),
        "imatrix": details["imatrix"] | {"kept": best == "with", "kl_with": kl["with"], "kl_without": kl["without"]},
    }


def command_line(request: QuantizeRequest, out: Path) -> str:
    """The command that makes it again."""
    import shlex

    base = Path(request.model.path)
    model = "demo" if base == demo.MODEL else base_name(base)  # a card goes to other machines: no place of this one
    words = ["llmopt", "quantize", model, "--quant", request.quantization.name, "--format", request.quantization.format]
    if request.engine:
        words += ["--for", request.engine]
    if request.calibrated:
        source = Path(request.calibration)
        words += ["--calibration", source.name if source.is_absolute() else request.calibration]
        for name in ("samples", "sample_tokens", "seed"):
            words += [f"--{name.replace('_', '-')}", str(request.settings[name])]
    if (matrix := request.settings.get("imatrix", "none")) != "none":
        words += ["--imatrix", Path(matrix).name]
    if shard_bytes := request.settings.get("shard_bytes"):
        words += ["--shard-size", f"{shard_bytes}B"]
    return shlex.join([*words, "-o", out.name])


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
