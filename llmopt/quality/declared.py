"""What a quantized checkpoint says about itself: the ``quantization_config`` of each format, read into one form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmopt.core.artifacts import fingerprint, open_model, read_config
from llmopt.core.domain import Artifact, Format, Quantization, stable_hash
from llmopt.core.errors import ModelError
from llmopt.core.gguf_file import read_gguf
from llmopt.core.weights import tensors

FORMATS: dict[str, Format] = {
    "compressed-tensors": "compressed-tensors",
    "gptq": "gptq",
    "awq": "awq",
    "auto-round": "auto-round",
    "intel/auto-round": "auto-round",
    "bitsandbytes": "bitsandbytes",
}


@dataclass(frozen=True, kw_only=True)
class Declared:
    """``group_size`` is ``None`` for one scale per row or tensor; ``activations``: they are quantized too."""

    format: Format
    bits: float
    group_size: int | None = None
    floating: bool = False
    activations: bool = False
    double: bool = False

    @property
    def name(self) -> str:
        """A name for a checkpoint that llmopt did not make."""
        if self.format == "bitsandbytes":
            return "int8" if self.bits == 8 else "nf4-dq" if self.double else "nf4"
        if self.floating:
            return f"fp{self.bits:g}" + ("" if self.activations else "a16")
        if self.activations:
            return f"w{self.bits:g}a8-int8"
        group = f"-g{self.group_size}" if self.group_size else ""
        kind = "w" if self.format == "compressed-tensors" else self.format.replace("-", "") + "-int"
        return f"{kind}{self.bits:g}a16{group}" if kind == "w" else f"{kind}{self.bits:g}{group}"


def quantization_config(config: dict[str, Any]) -> Any:
    """Of the model, or of the language model inside it; ``None`` for an unquantized one."""
    return config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")


def declared(config: dict[str, Any], folder: Path) -> Declared:
    """What config.json says. Raises ModelError when it says nothing, or something that no proof here understands."""
    said = quantization_config(config)
    if not isinstance(said, dict):
        raise ModelError(
            f"{folder / 'config.json'} has no quantization_config, so no engine would read these weights as quantized",
            hint="quantize again, or restore its config.json",
        )
    method = said.get("quant_method")
    if method not in FORMATS:
        raise ModelError(
            f"{folder / 'config.json'} names the quantization method {method!r}", hint=f"known: {', '.join(FORMATS)}"
        )
    try:
        if method == "compressed-tensors":
            return _compressed_tensors(said)
        if method == "bitsandbytes":
            four = bool(said.get("load_in_4bit") or said.get("_load_in_4bit"))
            double = bool(said.get("bnb_4bit_use_double_quant"))
            return Declared(format="bitsandbytes", bits=4 if four else 8, double=four and double)
        return Declared(format=FORMATS[method], bits=float(said["bits"]), group_size=_group(said.get("group_size")))
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise ModelError(
            f"the quantization_config in {folder / 'config.json'} is damaged: {error!r}", hint="quantize again"
        ) from error


def _compressed_tensors(said: dict[str, Any]) -> Declared:
    group = next(iter(said["config_groups"].values()))
    weights = group["weights"]
    return Declared(
        format="compressed-tensors",
        bits=float(weights["num_bits"]),
        group_size=_group(weights.get("group_size")),
        floating=weights.get("type") == "float",
        activations=group.get("input_activations") is not None,
    )


def _group(size: Any) -> int | None:
    return None if size is None or int(size) <= 0 else int(size)


def foreign_artifact(path: Path, base: Path) -> Artifact:
    """A quantized checkpoint or GGUF file that llmopt did not make, as an artifact of ``base``. Raises ModelError."""
    model = open_model(base)
    if not path.exists():
        raise ModelError(f"nothing at {path}", hint="name a folder with config.json, or a GGUF file")
    ggufs = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if ggufs:
        files, quantization, weight_bytes = ggufs[:1], *_of_gguf(ggufs[0])
    else:
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{path} holds no weights", hint="is the download complete?")
        said = declared(read_config(path), path)
        weight_bytes = sum(e["data_offsets"][1] - e["data_offsets"][0] for _, e in tensors(path).values())
        quantization = Quantization(
            name=said.name, method=said.format, format=said.format, bits=said.bits, group_size=said.group_size
        )
    return Artifact(
        path=str(path.resolve()),
        quantization=quantization,
        base=model.path,
        base_fingerprint=model.fingerprint,
        size_bytes=sum(file.stat().st_size for file in files),
        bits_per_weight=round(weight_bytes * 8 / model.parameters, 3),
        key=stable_hash([model.fingerprint, asdict(quantization), fingerprint(files)]),
    )


def _of_gguf(file: Path) -> tuple[Quantization, int]:
    """Named after its file type; nominal bits are the real ones, since a mix has no others."""
    found = read_gguf(file)
    total = sum(tensor.bytes for tensor in found.tensors)
    bits = total * 8 / max(1, sum(tensor.elements for tensor in found.tensors))
    name = f"gguf-{(found.file_type or 'unknown').lower()}"
    return Quantization(name=name, method="gguf", format="gguf", bits=round(bits, 2)), total
