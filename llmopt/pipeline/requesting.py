"""What is asked of a quantization, and everything that is known before it starts; ``--dry-run`` ends here."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmopt import demo
from llmopt.core import environments
from llmopt.core.artifacts import (
    fingerprint,
)
from llmopt.core.domain import ModelRef, Quantization, stable_hash
from llmopt.core.environments import Environment
from llmopt.core.errors import UsageError
from llmopt.core.gguf_types import FILE_TYPES
from llmopt.core.machine import this_machine
from llmopt.core.weights import embedding_rows
from llmopt.pipeline.proving import (
    QualityText,
    engine_of_proof,
    require_meaning,
    require_provable,
)
from llmopt.quality import WINDOW_TOKENS, needs
from llmopt.quality.tokens import file_ids, token_windows
from llmopt.quantize import CALIBRATED, Method, Route, loading, method
from llmopt.quantize.calibration import BUILTIN, Samples, prepare, read_rows
from llmopt.quantize.preflight import (
    Forecast,
    forecast,
    require_matrix,
    require_possible,
    require_room,
)
from llmopt.report.card import base_name

LLAMA_TOOLS = ("llama-quantize", "llama-imatrix")
LOGIT_BYTES = 4  # at most; what a base in 16 bits gives takes two
LEAST_VALIDATION = 3 * WINDOW_TOKENS  # what a comparison needs
# What says how the work is done, not what comes out of it: no part of an artifact's key.
HOW = ("max_memory_bytes", "device_map", "resume_folder", "tools", "check_text")


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What is to be made; ``key`` says whether it is there already. ``engine``: for which it is made, and proven in.

    ``unheard``: options that were given and change nothing here.
    """

    model: ModelRef
    method: Method
    route: Route
    settings: dict[str, Any]
    environment: Environment
    calibration: str = BUILTIN
    engine: str | None = None
    seen: loading.Entry | None = None
    unheard: tuple[str, ...] = ()

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
        calibration=options.calibration, engine=options.engine, seen=seen, unheard=unheard(route, settings, options),
    )  # fmt: skip


def unheard(route: Route, settings: dict[str, Any], options: Options) -> tuple[str, ...]:
    """The options given that have no effect on this road: somebody who gave them thinks that they have."""
    given = []
    if "samples" not in settings:
        names = ("samples", "sample_tokens", "seed")
        given += [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
        given += ["--calibration"] if options.calibration != BUILTIN else []
    given += ["--shard-size"] if options.shard_bytes is not None and not route.shards else []
    given += ["--device-map"] if options.device_map is not None and not route.device_map else []
    return tuple(given)


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
        require_meaning(base)
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
    if request.unheard:
        doubts.append(f"without effect on {request.quantization.name}: {', '.join(request.unheard)}")
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
