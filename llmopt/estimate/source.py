"""What MODEL names: a folder with a config.json, with or without weights; a GGUF file; a published shape; the bundled one."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmopt import demo
from llmopt.core.errors import ModelError, UsageError, nearest
from llmopt.core.formats import Layout, layout
from llmopt.core.synthetic import shapes
from llmopt.core.weights import INDEX, tensors
from llmopt.estimate.architectures import is_known, shape_of
from llmopt.estimate.kept import listed
from llmopt.estimate.nested import language_part
from llmopt.estimate.shape import LARGEST, MOST_LAYERS, UNKNOWN, Role, Shape, Tensor
from llmopt.estimate.weights import Weights, weights_of

STORED = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
WHOLE = 0.9  # of the size by the config: less is a download that is not finished
ROW = 4096  # of a model that is known by its size alone: decides the share of scales in its bits
# Words in the names of a checkpoint's tensors → what they are.
NAMES: tuple[tuple[tuple[str, ...], str, Role], ...] = (
    (("embed_tokens", "wte", "word_embeddings", "embed_in"), "embed", "embedding"),
    (("lm_head", "embed_out"), "head", "head"),
    (("norm", ".ln_"), "norm", "norm"),
    (("router", "mlp.gate.weight"), "router", "router"),
    (("vision", "visual", "audio"), "vision", "vision"),
    (("down_proj", "fc2", "4h_to_h"), "down", "linear"),
    (("o_proj", "out_proj", "attention.dense"), "o", "linear"),
    (("gate_proj",), "gate", "linear"),
)
UNKNOWN_LAYOUT = Layout(name=UNKNOWN, format=UNKNOWN, bits=16)
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """``stored``: the layout that the model is in, and ``weights`` exactly as its files' headers tell, where it has files.

    ``refused``: why nobody knows the layout that it is in.
    """

    name: str
    shape: Shape
    stored: Layout
    weights: Weights | None = None
    refused: ModelError | None = None

    def in_layout(self, quant: str | None, format: str | None) -> tuple[Layout, Weights]:
        """The layout asked for, or the stored one, with the weights in it. Raises ModelError where that is not known."""
        if quant is None and self.refused is not None:
            raise self.refused
        wanted = self.stored if quant is None else layout(quant, format)
        if (wanted.name, wanted.format) == (self.stored.name, self.stored.format):
            wanted = self.stored  # with what it keeps
        if self.weights is not None and wanted.name == self.stored.name:
            return wanted, self.weights
        return wanted, weights_of(self.shape, wanted)


def by_hand(name: str, parameters: float) -> Source:
    """A model of which nothing is known but its size. Raises UsageError for a size that no model has."""
    if not ROW <= parameters < LARGEST:
        raise UsageError(f"--parameters {parameters:g} is no model's size", hint="--parameters 7e9")
    rows = round(parameters / ROW)
    tensor = Tensor(part="all", role="linear", rows=rows, columns=ROW)
    shape = Shape(model_type=UNKNOWN, config={}, tensors=(tensor,), tied=False)
    return Source(name=name, shape=shape, stored=layout("bf16"))


def open_source(name: str) -> Source:
    """Raises ModelError for a file that is damaged or not known, UsageError for a name that is none."""
    path = demo.MODEL if name in ("builtin", "demo") else Path(name)
    if path.suffix == ".gguf" and path.is_file():
        from llmopt.estimate.gguf import open_gguf

        return open_gguf(path)
    if path.is_file() and path.name.endswith(".json"):
        path = path.parent
    if path.is_dir():
        return open_folder(path)
    known = shapes()
    if name in known:
        return Source(name=name, shape=shape_of(known[name], f"the shape {name}"), stored=stored_layout(known[name]))
    if name.count("/") == 1 and (cached := in_cache(name)) is not None:
        return replace(open_folder(cached), name=name)
    if path.exists() or path.suffix == ".gguf":
        raise UsageError(f"{name} is no model", hint="a folder with a config.json, or a GGUF file")
    raise UsageError(
        f"no model at {name}",
        hint=f"a folder with a config.json, a GGUF file, or a name: {nearest(name, ['builtin', *known])}",
    )


def open_folder(folder: Path) -> Source:
    file, ggufs = folder / "config.json", sorted(folder.glob("*.gguf"))
    if len({re.sub(r"-\d{5}-of-\d{5}", "", gguf.name) for gguf in ggufs}) == 1 and not any(
        folder.glob("*.safetensors")
    ):
        from llmopt.estimate.gguf import open_gguf

        return replace(open_gguf(ggufs[0]), name=folder.resolve().name)
    if not file.exists():
        hint = "name a GGUF file in it" if ggufs else "fetch config.json: the weights are not needed"
        raise ModelError(f"{folder} has no config.json", hint=hint)
    config = read_config(file)
    entries = {name: entry for name, (_, entry) in tensors(folder).items()}
    shape = known_shape(config, file, entries)
    found = Source(name=folder.resolve().name, shape=shape, stored=UNKNOWN_LAYOUT)
    try:
        found = replace(found, stored=stored_layout(config))
    except ModelError as error:
        return replace(found, refused=error)
    exact = stored_weights(folder, shape, entries)
    if exact is not None and found.stored.format == "plain":  # the files know their type better than the config
        main = max(exact.types, key=lambda kind: exact.types[kind])
        found = replace(found, stored=layout(STORED[main]) if main in STORED else found.stored)
    if exact is not None and exact.bytes < WHOLE * weights_of(shape, found.stored).bytes:
        note = f"{folder} lacks a part of its weights: sized by the config"
        return replace(found, shape=replace(shape, notes=(*shape.notes, note)))
    return replace(found, weights=exact)


def stored_weights(folder: Path, shape: Shape, entries: dict[str, Any]) -> Weights | None:
    """As the headers tell, or the index, which knows of shards that are not here; ``None`` without either."""
    sizes: dict[str, int] = {}
    for entry in entries.values():
        first, last = entry["data_offsets"]
        sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + last - first
    index = folder / INDEX
    said = read_config(index).get("metadata") if index.exists() else None
    declared = said.get("total_size") if isinstance(said, dict) else None
    if isinstance(declared, int) and declared > sum(sizes.values()):
        sizes = {"stored": declared}
    total = sum(sizes.values())
    if not total:
        return None
    bits = round(total * 8 / shape.parameters, 3)
    return Weights(bytes=total, file_bytes=total, bits_per_weight=bits, types=sizes)


def known_shape(config: dict[str, Any], file: Path, entries: dict[str, Any]) -> Shape:
    """By the config; of an architecture that is not known by the headers of its weights, where they are plain."""
    try:
        return shape_of(config, str(file))
    except ModelError:
        inner, model_type = language_part(config, str(file))
        if not entries or is_known(model_type) or config.get("quantization_config"):
            raise
        found = tuple(tensor_of(name, tuple(entry["shape"])) for name, entry in entries.items())
        note = f"the architecture {model_type!r} is not known here: weights are those of the files, activations a plain decoder's"
        tied = not any(t.part == "head" for t in found)
        return Shape(model_type=model_type, config=inner, tensors=found, tied=tied, notes=(note,))


def tensor_of(name: str, extents: tuple[int, ...]) -> Tensor:
    """A tensor of a checkpoint by the usual words in its name."""
    columns = extents[-1] if extents else 1
    rows = math.prod(extents[:-1])
    part, role = next(((p, r) for words, p, r in NAMES if any(w in name for w in words)), ("other", "linear"))
    if len(extents) < 2:
        part, role = "norm", "norm"
    number = re.search(r"\.(\d+)\.", name)
    layer = int(number[1]) if number else None
    if layer is not None and layer >= MOST_LAYERS:
        raise ModelError(f"the weights name a tensor {name!r}, which no model has", hint="fetch or copy them again")
    return Tensor(part=part, role=role, rows=rows, columns=columns, layer=layer)


def in_cache(name: str) -> Path | None:
    """The folder of a repository that huggingface_hub fetched before: the newest of its snapshots."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    found = sorted(
        hub.glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json"), key=lambda f: f.stat().st_mtime
    )
    return found[-1].parent if found else None


def read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint="fetch or copy it again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} is {type(config).__name__}, no table", hint="fetch or copy it again")
    return config


def stored_layout(config: dict[str, Any]) -> Layout:
    """What the config says of its weights: a quantization, or the type of its numbers."""
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    quantized = config.get("quantization_config") or (inner or {}).get("quantization_config")
    if quantized and not isinstance(quantized, dict):
        raise ModelError(
            f"the quantization_config is {type(quantized).__name__}, no table",
            hint="name what it is: --quant gptq-int4-g128",
        )
    if isinstance(quantized, dict):
        return replace(declared_layout(quantized), kept=listed(quantized))
    dtype = str(config.get("dtype") or config.get("torch_dtype") or (inner or {}).get("torch_dtype") or "bfloat16")
    return layout(DTYPES.get(dtype.removeprefix("torch."), "bf16"))


def declared_layout(said: dict[str, Any]) -> Layout:
    """Of a ``quantization_config``. Raises ModelError for a method that is not known."""
    method, bits = said.get("quant_method"), said.get("bits", said.get("w_bit"))
    group = said.get("group_size", said.get("q_group_size"))
    suffix = f"-g{group}" if isinstance(group, int) and group > 0 else "-gchannel" if group == -1 else ""
    try:
        if method == "bitsandbytes":
            four = said.get("load_in_4bit") or said.get("_load_in_4bit")
            return layout(("nf4-dq" if said.get("bnb_4bit_use_double_quant") else "nf4") if four else "int8")
        if method in ("gptq", "awq", "auto-round", "intel/auto-round"):
            name = {"gptq": "gptq", "awq": "awq"}.get(str(method), "autoround")
            return layout(f"{name}-int{bits}{suffix}")
        if method == "fp8":
            return layout("fp8-block" if said.get("weight_block_size") else "fp8")
        if method == "modelopt":
            return layout({"FP8": "fp8", "NVFP4": "nvfp4"}[str(said.get("quant_algo")).upper()])
        if method == "mxfp4":
            return layout("mxfp4")
        if method == "compressed-tensors":
            return compressed_layout(said)
    except (UsageError, KeyError, TypeError, AttributeError, StopIteration):
        pass  # said below, with what stands there
    raise ModelError(
        f"the quantization_config names {method!r} with {bits} bits, which is not known here",
        hint="name what it is: --quant gptq-int4-g128",
    )


def compressed_layout(said: dict[str, Any]) -> Layout:
    first = next(iter(said["config_groups"].values()))
    weights = first["weights"]
    bits, group = int(weights["num_bits"]), weights.get("group_size")
    if weights.get("type") == "float":
        return layout("fp8" if bits == 8 else "nvfp4")
    if first.get("input_activations") is not None:
        return layout("w8a8-int8")
    found = layout(f"w{bits}a16-g{group}" if group and group > 0 else f"w{bits}a16-gchannel")
    return replace(found, symmetric=bool(weights.get("symmetric", True)))
