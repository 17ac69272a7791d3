"""``llmopt synth``: a checkpoint of any architecture with random weights, for speed and memory alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llmopt import demo
from llmopt.bench.prompts import load_tokenizer
from llmopt.core import environments
from llmopt.core.artifacts import read_config
from llmopt.core.errors import ModelError, UsageError, nearest
from llmopt.core.files import disk_errors
from llmopt.core.synthetic import shapes
from llmopt.core.units import show
from llmopt.core.worker import run_job
from llmopt.pipeline.reporter import Reporter
from llmopt.quantize import TORCH

FUNCTION = "llmopt.core.synthetic:write"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
LEAST_SHARD = 1 << 20
DTYPES = ("bfloat16", "float16", "float32")


def synthesize(
    name: str,
    out: Path,
    report: Reporter,
    *,
    layers: int | None = None,
    dtype: str = "bfloat16",
    tokenizer: Path | None = None,
    seed: int = 0,
    shard_bytes: int = 5 * 10**9,
) -> dict[str, Any]:
    """Write the checkpoint to ``out``, whole or not at all.

    ``name`` is a config.json, a folder that holds one, or a shape that llmopt knows.  The tokenizer is the one beside that
    config, the given one, or the bundled model's, whose ids any larger vocabulary holds.
    """
    config = plain(config_of(name), report)
    if shard_bytes < LEAST_SHARD:
        raise UsageError(f"--shard-size must be {show(LEAST_SHARD, 'bytes')} or more", hint="--shard-size 5GB")
    if dtype not in DTYPES:
        raise UsageError(f"no weights of type {dtype!r}", hint=", ".join(DTYPES))
    if layers is not None:
        config = with_layers(config, layers)
    words = tokenizer_folder(name, tokenizer)
    require_room_in_vocabulary(config, words)
    if out.exists():
        raise UsageError(f"{out} is there already", hint="another folder, or remove it")
    environment = environments.find(TORCH)
    aside = out.resolve().with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    with disk_errors(out):
        aside.mkdir(parents=True)
    try:
        arguments = {"config": config, "out": str(aside), "seed": seed, "dtype": dtype, "shard_bytes": shard_bytes}
        with report.task(f"drawing the weights of {out.name}") as work:
            log = out.resolve().with_name(f"{out.name}.log")  # stays when it fails: the error names it
            made = run_job(environment, FUNCTION, arguments, log=log, progress=work.at).value
        log.unlink(missing_ok=True)
        with disk_errors(out):
            for file in TOKENIZER_FILES:
                if (words / file).exists():
                    shutil.copyfile(words / file, aside / file)
            aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {"path": str(out), **made, "size": show(made["bytes"], "bytes"), "weights": "random"}


def config_of(name: str) -> dict[str, Any]:
    """Raises UsageError, ModelError."""
    known = shapes()
    if name in known:
        return dict(known[name])
    path = Path(name).expanduser()
    if path.is_dir():
        return read_config(path)
    if not path.is_file():
        raise UsageError(
            f"no config at {name}", hint=f"a config.json, a model folder, or a shape: {nearest(name, list(known))}"
        )
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="name a config.json") from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(f"{path} names no model_type", hint="name a config.json of a Hugging Face model")
    return config


def plain(config: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """The config of the model before somebody quantized it: the weights will be in 16 bits."""
    if "quantization_config" in config:
        report.say("the config is of a quantized model: its quantization_config is left out")
    return {name: value for name, value in config.items() if name not in ("quantization_config", "compression_config")}


def with_layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The same model with fewer layers, wherever the config counts them; lists that go by layer are cut."""
    inner = config.get("text_config")
    if isinstance(inner, dict) and not any(name in config for name in LAYERS):
        return config | {"text_config": with_layers(inner, layers)}
    name = next((name for name in LAYERS if name in config), None)
    own = config[name] if name else 0
    if name is None or not 1 <= layers <= own:
        raise UsageError(
            f"the model has {own} layers: --layers {layers} makes none of it"
            if name
            else "the config does not say how many layers there are",
            hint="fewer layers than that" if name else "leave --layers out",
        )
    cut = {key: v[:layers] if isinstance(v, list) and len(v) == own else v for key, v in config.items()}
    return cut | {name: layers}


def tokenizer_folder(name: str, given: Path | None) -> Path:
    path = Path(name).expanduser()
    near = path if path.is_dir() else path.parent if path.is_file() else None
    folder = given or (near if near is not None and (near / "tokenizer.json").exists() else demo.MODEL)
    if not (folder / "tokenizer.json").exists():
        raise UsageError(f"{folder} has no tokenizer.json", hint="--tokenizer DIR")
    return folder


def require_room_in_vocabulary(config: dict[str, Any], words: Path) -> None:
    ids = load_tokenizer(words).get_vocab_size(with_added_tokens=True)
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if size is not None and ids > size:
        raise ModelError(
            f"the tokenizer of {words} has {ids} ids, the config's vocabulary {size}", hint="--tokenizer DIR"
        )
