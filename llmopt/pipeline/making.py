"""Make an artifact; it gets its name only after its proof (``proving``)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llmopt
from llmopt import demo
from llmopt.core import environments
from llmopt.core.artifacts import (
    MANIFEST,
    WEIGHTS,
    fingerprint,
    manifest_of,
    open_artifact,
    read_manifest,
    safetensors_header,
    weight_files,
)
from llmopt.core.domain import Artifact, ModelRef, stable_hash
from llmopt.core.environments import Environment
from llmopt.core.errors import ModelError, UsageError
from llmopt.core.files import disk_errors, folder_bytes, partial_folder, read_text, write_atomic
from llmopt.core.worker import run_job
from llmopt.pipeline.proving import QualityText, prove
from llmopt.pipeline.reporter import Reporter
from llmopt.quantize import Method, method

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)


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
        text = stable_hash(read_text(self.calibration)) if self.method.calibrated else None
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
    read_text(calibration)
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
    out = out.resolve()
    if (found := already_there(request, out)) is not None:
        if proof is not None:
            prove(found, proof, report, log_folder=logs_folder(out))
        return found, True
    if proof is not None:
        read_text(proof.path)  # a wrong name must not be found out after an hour of quantizing
    name = request.method.quantization.name
    log = logs_folder(out) / f"quantize-{name}.log"
    aside = partial_folder(out)
    try:
        with report.task(f"quantizing {name}") as work:
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
                progress=work.at,
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
            "calibration": {"text_sha256": stable_hash(read_text(request.calibration), 64)}
            if request.method.calibrated
            else None,
            "seconds": round(job.seconds, 2),
            "peak_memory_bytes": job.peak_memory_bytes,
            "details": job.value,
            "weights_fingerprint": fingerprint(weight_files(aside)),
            "versions": environments.freeze(request.environment),
            "llmopt_version": llmopt.__version__,
        }
        write_atomic(aside / MANIFEST, manifest_of(artifact, **manifest))
        if proof is not None:
            prove(artifact, proof, report, log_folder=logs_folder(out))
        artifact = replace(artifact, path=str(out))
        write_atomic(aside / MANIFEST, manifest_of(artifact, **manifest))
        with disk_errors(out):
            try:
                aside.rename(out)
            except OSError:
                if (found := already_there(request, out)) is None:  # another process was faster with the same
                    raise
                return found, True
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return artifact, False


def logs_folder(out: Path) -> Path:
    return out.parent / "logs"


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
