"""Make an artifact: forecast, weights checked, quantized in a worker, proven; only then it gets its name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
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
from llmopt.core.domain import Artifact, stable_hash
from llmopt.core.errors import ModelError
from llmopt.core.files import disk_errors, folder_bytes, write_atomic
from llmopt.core.gguf_file import read_gguf
from llmopt.core.gguf_types import FILE_TYPES
from llmopt.core.weights import require_finite, require_matching_tokenizer, safetensors_header
from llmopt.core.worker import Worker
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
    prove,
    quality_file,
    read_quality,
    waiting_worker,
)
from llmopt.pipeline.reporter import Reporter
from llmopt.pipeline.requesting import Preparation, QuantizeRequest, command_line, prepared
from llmopt.quantize.gguf import fallbacks
from llmopt.quantize.preflight import remember, weights_room
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
IN_THIS_PLACE = (
    "tools",
    "check_text",
    "resume_folder",
    "converted",
    "weights_memory_bytes",
)  # settings that say nothing of the artifact


def quantize(
    request: QuantizeRequest,
    out: Path,
    report: Reporter,
    *,
    proof: QualityText | None = None,
    limits: ProofLimits | None = None,
    kv_cache_dtype: str = "auto",
    force: bool = False,
    shared: Path | None = None,
) -> tuple[Artifact, bool]:
    """Make an artifact in ``out``, or find it there; returns it and whether it was there already.

    ``shared``: a folder for what several quantizations of one model have in common (the converted model, the base's
    logits), which are then made once.

    Everything happens in a folder beside ``out`` that is renamed at the end, after the result was reloaded and compared
    with its base: whatever kills us, nothing half-made has the artifact's name, and weights that were whole are taken
    up by the next start.  A result that fails its proof is kept aside as ``out``.refused.  Raises ProofFailed then.
    """
    out = out.resolve()

    def proven(artifact: Artifact, worker: Worker | None = None) -> dict[str, Any] | None:
        if proof is None:
            return None
        return prove(
            artifact, proof, report, log_folder=logs_folder(out), limits=limits, engine=request.engine,
            kv_cache_dtype=kv_cache_dtype, python=request.python_of_proof(kv_cache_dtype), shared=shared, worker=worker,
        )  # fmt: skip

    def worker_of_proof() -> AbstractContextManager[Worker | None]:
        if proof is None or request.settings.get("max_memory_bytes"):  # where memory is scarce it comes afterwards
            return nullcontext()
        return waiting_worker(
            request.quantization, request.model.path, log_folder=logs_folder(out), engine=request.engine,
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
        with claimed(out, request.key) as (aside, whole), worker_of_proof() as worker:
            if whole:
                report.say(f"its weights were made before: {request.quantization.name} only needs its proof")
            else:
                make(preparation or prepare_anew(), aside, out, report, shared)
            shutil.rmtree(resume_folder(out, request.key), ignore_errors=True)
            artifact = open_artifact(aside)
            try:
                quality = proven(artifact, worker)
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


def make(preparation: Preparation, aside: Path, out: Path, report: Reporter, shared: Path | None = None) -> None:
    """Check the base's weights, quantize in a worker, copy the tokenizer, write the manifest: whole weights in ``aside``."""
    request = preparation.request
    base, name = Path(request.model.path), request.quantization.name
    settings = settings_here(request, out, shared)
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
    half_done = "converted" in settings and Path(settings["converted"]).exists()
    # The worker's imports take seconds, and reading the metadata of two hundred packages a fifth of one: all at once.
    log, first = logs_folder(out) / f"quantize-{name}.log", imports_of(preparation, half_done)
    with Worker(request.environment, log=log, first=first) as worker, ThreadPoolExecutor(1) as pool:
        frozen = pool.submit(environments.freeze, request.environment)
        with report.task("checking the base's weights") as work:
            require_matching_tokenizer(base)
            require_finite(weight_files(base), work.at)
        with report.task(f"quantizing {name}") as work:
            job = worker.run(request.route.function, arguments, progress=work.at)
    samples.unlink(missing_ok=True)
    copy_tokenizer(base, aside)
    for file in weight_files(aside):  # safetensors writes them for their owner alone
        file.chmod(file.stat().st_mode | (aside.stat().st_mode & 0o444))
    details = job.value
    if "imatrix" in details:
        details = details | choose_matrix(preparation, aside, report, details)
    if request.quantization.format == "gguf":
        details = details | gguf_details(aside / "model.gguf", settings["type"])
    artifact = describe(request, aside, details)
    tokens = preparation.samples.tokens if preparation.samples else 0
    if not half_done:  # what the next one takes that converts for itself cannot be told from this one
        remember(
            name, request.route, parameters=request.model.parameters, tokens=tokens, seconds=job.seconds,
            memory_bytes=job.peak_memory_bytes,
        )  # fmt: skip
    manifest = {
        "method": request.quantization.method,
        "settings": {k: v for k, v in settings.items() if k not in IN_THIS_PLACE},
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
        "versions": frozen.result(),
        "llmopt_version": llmopt.__version__,
    }
    write_atomic(aside / MANIFEST, manifest_of(artifact, **manifest))


def imports_of(preparation: Preparation, half_done: bool) -> tuple[str, dict[str, Any]] | None:
    """What the worker can import before its job is known: of a GGUF that is converted already, nothing."""
    request = preparation.request
    if request.route.format == "gguf":
        return None if half_done else ("llmopt.quantize.gguf:import_converter", {})
    arguments = {"model": request.model.path, "long": bool(preparation.samples)}
    return "llmopt.quantize.checks:import_transformers", arguments


def settings_here(request: QuantizeRequest, out: Path, shared: Path | None) -> dict[str, Any]:
    """The settings of the request, and what the worker must know of this machine and its folders (``IN_THIS_PLACE``)."""
    settings = request.settings
    if shared is not None and request.quantization.format == "gguf":
        settings = settings | {"converted": str(shared / "base.gguf")}
    if request.route.offloads and (limit := settings.get("max_memory_bytes")):
        room = weights_room(request.model, request.method, request.route, limit)
        settings = settings | {"weights_memory_bytes": room}
    if request.resumes:
        settings = settings | {"resume_folder": str(resume_folder(out, request.key))}
    return settings


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
        request = preparation.request
        written = details | gguf_details(trial / "model.gguf", request.settings["type"])
        candidate = replace(describe(request, trial, written), key=stable_hash([request.key, name]))
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
        "imatrix": details["imatrix"] | {"kept": best == "with", "kl_with": kl["with"], "kl_without": kl["without"]},
    }


def gguf_details(file: Path, kind: str) -> dict[str, Any]:
    """What is really in the file: llama.cpp chooses other types for odd rows, and where it has a matrix."""
    tensors = read_gguf(file).tensors
    types = dict(Counter(tensor.type.name for tensor in tensors))
    return {
        "weight_bytes": sum(tensor.bytes for tensor in tensors),
        "tensor_types": types,
        "fallback_types": fallbacks(types, FILE_TYPES[kind].main),
    }


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


def made_document(artifact: Artifact, there: bool, kv_cache_dtype: str = "auto") -> dict[str, Any]:
    """What ``llmopt quantize`` prints of a finished artifact."""
    manifest = read_manifest(Path(artifact.path)) or {}
    return {
        "already_there": there,
        **manifest,
        "quality": read_quality(quality_file(artifact_of(manifest, Path(artifact.path)), kv_cache_dtype)),
    }
