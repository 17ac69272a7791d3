"""Models and artifacts on disk: recognise, refuse, fingerprint, describe."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmopt.core.domain import Artifact, ModelRef, Quantization, stable_hash
from llmopt.core.errors import ModelError
from llmopt.core.weights import check_shards
from llmopt.core.weights import count_parameters as count_parameters
from llmopt.core.weights import safetensors_header as safetensors_header

MANIFEST = "llmopt.json"
WEIGHTS = ("*.safetensors", "*.gguf")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SAMPLE_BYTES = 1 << 20
UNQUANTIZED_DTYPES = {"BF16": ("bf16", 16), "F16": ("fp16", 16), "F32": ("fp32", 32)}
READ_WHOLE_BELOW = 1 << 30


def open_model(path: str | Path) -> ModelRef:
    """An unquantized model folder; raises ModelError with what is wrong about it."""
    folder = Path(path)
    config = read_config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        if pickles := [p.name for pattern in PICKLES for p in folder.glob(pattern)]:
            raise ModelError(
                f"{folder} holds only pickle weights ({pickles[0]}), which can run code when loaded",
                hint="save the model as safetensors: model.save_pretrained(DIR)",
            )
        raise ModelError(f"{folder} has a config.json but no *.safetensors weights", hint="is the download complete?")
    if not (folder / "tokenizer.json").exists():
        raise ModelError(f"{folder} has no tokenizer.json", hint="save the fast tokenizer beside the weights")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelError(f"{folder} is already quantized ({method})", hint="name the unquantized base model")
    check_shards(folder)
    architectures = config.get("architectures") or ["unknown"]
    parameters = sum(count_parameters(file) for file in weights)
    if not parameters:
        raise ModelError(f"the weights in {folder} hold no tensor", hint="is the download complete?")
    return ModelRef(
        path=str(folder.resolve()),
        architecture=architectures[0],
        model_type=config.get("model_type", "unknown"),
        parameters=parameters,
        fingerprint=fingerprint([folder / "config.json", folder / "tokenizer.json", *weights]),
    )


def read_config(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise ModelError(f"no model at {folder}", hint="name a folder that holds config.json and *.safetensors")
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file, not a model folder", hint="name the folder that holds config.json")
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is no model: it has no config.json", hint="name a Hugging Face model folder"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}", hint="fetch or copy it again") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(f"{folder / 'config.json'} names no model_type", hint="name a Hugging Face model folder")
    return config


def fingerprint(files: list[Path]) -> str:
    """A hash of what determines a model. Files under 1 GiB are read whole, larger ones by length, head, middle and tail."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if size < READ_WHOLE_BELOW:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
                continue
            for place in (0, size // 2, size - SAMPLE_BYTES):
                stream.seek(place)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def unquantized(model: ModelRef) -> Artifact:
    """The base model itself as an artifact: the reference that everything is compared with."""
    folder = Path(model.path)
    dtypes = {e["dtype"] for f in folder.glob("*.safetensors") for e in safetensors_header(f).values()}
    kind = dtypes.pop() if len(dtypes) == 1 else "mixed"
    if kind not in UNQUANTIZED_DTYPES:
        raise ModelError(f"{folder} holds weights of type {kind}", hint="save it as bf16, fp16 or fp32")
    name, bits = UNQUANTIZED_DTYPES[kind]
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    return Artifact(
        path=model.path,
        quantization=Quantization(name=name, method="none", format="plain", bits=bits),
        base=model.path,
        base_fingerprint=model.fingerprint,
        size_bytes=size,
        bits_per_weight=round(size * 8 / model.parameters, 3),
        key=stable_hash([model.fingerprint, "none"]),
    )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished artifact; ``None`` when the folder holds none. Raises ModelError when it is damaged."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        artifact_of(manifest, folder)
        if manifest.get("seal", sealed := seal(manifest["artifact"])) != sealed:
            raise ValueError("what it says of the artifact was edited")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is damaged: {error}", hint="remove the folder and quantize again") from error
    return manifest


def open_artifact(path: str | Path) -> Artifact:
    """An artifact that llmopt made, or an unquantized model; raises ModelError."""
    folder = Path(path)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        return unquantized(open_model(folder))
    artifact = artifact_of(manifest, folder)
    if (
        artifact.quantization.format == "in-memory"
        and open_model(artifact.base).fingerprint != artifact.base_fingerprint
    ):
        raise ModelError(
            f"{artifact.base}, which {folder} quantizes when it is loaded, is not the model that it was",
            hint="quantize again",
        )
    files = weight_files(folder)
    whole = manifest.get("weights_fingerprint", artifact.key)
    if sum(p.stat().st_size for p in files) != artifact.size_bytes or whole not in (fingerprint(files), artifact.key):
        raise ModelError(
            f"the weights in {folder} are not those of its {MANIFEST}", hint="remove the folder and quantize again"
        )
    return artifact


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for pattern in WEIGHTS for p in folder.glob(pattern))


def artifact_of(manifest: dict[str, Any], folder: Path) -> Artifact:
    """The artifact of a manifest, at the place where it lies now."""
    fields = manifest["artifact"] | {"path": str(folder.resolve())}
    return Artifact(**fields | {"quantization": Quantization(**fields["quantization"])})


def seal(fields: dict[str, Any]) -> str:
    """A hash of what a manifest says of its artifact: a hand that relabels it breaks the seal.

    Places are left out, for they may change; the key is compared with the request that it answers.
    """
    return stable_hash({name: value for name, value in fields.items() if name not in ("path", "base", "key")})


def manifest_of(artifact: Artifact, **more: Any) -> bytes:
    fields = asdict(artifact)
    document = {"schema": 1, "artifact": fields, "seal": seal(fields), **more}
    return (json.dumps(document, indent=1, default=str) + "\n").encode()
