"""Prove an artifact against its base: files, weights, token ids, then figures in the engine that it is for.

Measured once per artifact, text, engine and KV cache, and kept beside the weights. The look at the files is quick and
repeated each time: an artifact whose description was edited since is not believed for its stored figures.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt import demo, quality
from llmopt.core import environments
from llmopt.core.artifacts import open_artifact, read_manifest, weight_files
from llmopt.core.domain import Artifact, Quantization, stable_hash
from llmopt.core.errors import GoalNotMet, LlmoptError, ModelError, UsageError
from llmopt.core.files import read_text, scratch_folder, write_atomic
from llmopt.core.synthetic import is_synthetic
from llmopt.core.weights import check_shards, require_finite, require_matching_tokenizer
from llmopt.core.worker import Worker, run_job
from llmopt.pipeline.reporter import Reporter
from llmopt.quality.structure import check_structure

# Where garbage begins, not where quality ends. On the small bundled model an honest 2-bit GGUF (Q2_K) has KL .27 and
# keeps 72 % of the top tokens; weights cut to ternary (TQ1_0) have KL 4.2 and keep 6 %, and the garbage that a library
# wrote in the field had KL 3.47 and kept .2 %. Both limits lie about midway, on a scale of ratios.  From four bits up the
# worst honest result here (w4a16) has KL .05 and keeps 88 %: a tenfold distance from the base is no quantization any more.
MAX_KL, MIN_TOP1 = 2.0, 0.2
WIDE_BITS, WIDE_MAX_KL, WIDE_MIN_TOP1 = 4, 0.5, 0.5
USUAL = math.nan  # a limit that was not given: the default for the artifact's bits
QUALITY_FILE = "quality.json"
TYPE_NAME = re.compile(r"[\w.-]+")


class ProofFailed(ModelError):
    """The result loads and is not good enough; ``figures`` is its whole quality record."""

    def __init__(self, message: str, *, hint: str | None = None, figures: dict[str, Any]) -> None:
        super().__init__(message, hint=hint)
        self.figures = figures


@dataclass(frozen=True, kw_only=True)
class ProofLimits:
    """What a result must keep: mean KL in nats at most, top-1 agreement at least (a share); ``None`` asks nothing."""

    max_kl: float | None = USUAL
    min_top1: float | None = USUAL

    @classmethod
    def none(cls) -> ProofLimits:
        """For a trial whose figures are wanted whatever they are."""
        return cls(max_kl=None, min_top1=None)

    def for_bits(self, bits: float) -> ProofLimits:
        """With the defaults for weights of that width where nothing was given."""
        kl, top1 = (WIDE_MAX_KL, WIDE_MIN_TOP1) if bits >= WIDE_BITS else (MAX_KL, MIN_TOP1)
        return ProofLimits(
            max_kl=kl if self.max_kl is not None and math.isnan(self.max_kl) else self.max_kl,
            min_top1=top1 if self.min_top1 is not None and math.isnan(self.min_top1) else self.min_top1,
        )

    def broken(self, figures: dict[str, Any]) -> list[str]:
        """The limits that these figures do not keep, in words."""
        kl, top1 = figures["kl_mean"], figures["top1_agreement"]
        words = []
        if self.max_kl is not None and kl > self.max_kl:
            words.append(f"its mean KL divergence to the base is {kl:.4g} nats, above {self.max_kl:g}")
        if self.min_top1 is not None and top1 < self.min_top1:
            words.append(f"{top1:.1%} of the base's top tokens are kept, below {self.min_top1:.0%}")
        return words


@dataclass(frozen=True, kw_only=True)
class QualityText:
    """The text that artifacts are proven on, and how many tokens of it."""

    path: Path = demo.HELD_OUT_TEXT
    tokens: int = quality.MAX_TOKENS


def prove(
    artifact: Artifact,
    text: QualityText,
    report: Reporter,
    *,
    log_folder: Path,
    python: str | None = None,
    limits: ProofLimits | None = None,
    engine: str | None = None,
    kv_cache_dtype: str = "auto",
    shared: Path | None = None,
    worker: Worker | None = None,
) -> dict[str, Any]:
    """The quality record of an artifact. Raises ModelError for files that are not what they say, ProofFailed for figures.

    ``engine``: hf, llamacpp or vllm; another engine's artifact is proven in the one that reads its format.
    ``shared``: a folder for what the proofs of several artifacts have in common: the base is run once for all of them.
    ``worker``: one that was started early for this proof (``waiting_worker``).
    """
    limits = limits or ProofLimits()
    if not Path(artifact.base).is_dir():
        raise ModelError(
            f"the base of {artifact.path} is gone: {artifact.base}", hint="put the base model back, or quantize again"
        )
    require_meaning(artifact.base)
    chosen = engine_of_proof(artifact.quantization, engine, kv_cache_dtype, report)
    if engine is not None and engine != chosen.name:
        kv_cache_dtype = "auto"  # it was said in another engine's words
    file = quality_file(artifact, kv_cache_dtype)
    key = stable_hash([artifact.key, read_text(text.path), text.tokens, chosen.name, kv_cache_dtype])
    found = stored_quality(file, key, report)
    structure = check_files(artifact, scales=found is None)
    if found is None:
        found = measure(artifact, text, report, chosen, kv_cache_dtype, log_folder, python, shared, worker)
        found |= {"structure": structure}
        write_atomic(file, json.dumps({"key": key, "quality": found}, indent=1).encode())
    bits = artifact.quantization.bits
    if broken := limits.for_bits(bits).broken(found):
        garbage = bool(ProofLimits().for_bits(bits).broken(found))
        failure = ProofFailed(
            f"{artifact.label} {'is broken' if garbage else 'is farther from its base than was asked'}: {'; '.join(broken)}",
            hint="this quantizer does not work for this model; try another" if garbage else "another quantization",
            figures=found,
        )
        if not garbage:
            failure.exit_status = GoalNotMet.exit_status
        raise failure
    return found


def require_provable(
    quantization: Quantization, *, engine: str | None = None, kv_cache_dtype: str = "auto", python: str | None = None
) -> None:
    """Whether a proof could start: asked before hours of work. Raises UsageError, MissingEnvironment."""
    chosen = engine_of_proof(quantization, engine, kv_cache_dtype)
    environments.find(quality.needs(quantization, chosen), python)


def require_meaning(base: str | Path) -> None:
    """Raises UsageError for weights that were drawn at random: they have no quality that could be lost."""
    if is_synthetic(base):
        raise UsageError(
            f"{base} has random weights (llmopt synth): nothing can be said of its quality",
            hint="--no-proof; measure its speed and memory with llmopt bench",
        )


def engine_of_proof(
    quantization: Quantization, name: str | None, kv_cache_dtype: str, report: Reporter | None = None
) -> quality.Engine:
    """The engine asked for, or the one that reads the format where no proof of it runs there."""
    if name is not None and (name not in quality.ENGINES or quantization.format not in quality.ENGINES[name].formats):
        instead = quality.engine_for(quantization)
        if report is not None:
            report.say(f"no proof of {quantization.format} runs in {name}: it is made in {instead.name}")
        return instead
    return quality.engine_for(quantization, name, kv_cache_dtype)


def check_files(artifact: Artifact, *, scales: bool) -> dict[str, Any]:
    """Shards whole, tokenizer and embedding of one model, and the structure that the artifact's name promises."""
    path = Path(artifact.path)
    if path.is_dir():
        check_shards(path)
        if artifact.quantization.format not in ("gguf", "in-memory"):
            require_matching_tokenizer(path)
    return check_structure(path, artifact.quantization, Path(artifact.base), scales=scales)


def measure(
    artifact: Artifact,
    text: QualityText,
    report: Reporter,
    engine: quality.Engine,
    kv_cache_dtype: str,
    log_folder: Path,
    python: str | None,
    shared: Path | None,
    worker: Worker | None,
) -> dict[str, Any]:
    """Every weight finite, then base and artifact compared in a process of their own."""
    environment = environments.find(quality.needs(artifact.quantization, engine), python)
    with (
        report.task(f"comparing {artifact.label} with its base in {engine.name}") as work,
        scratch_folder(log_folder.resolve(), "llmopt-logits-") as scratch,
    ):
        if Path(artifact.path).is_dir():
            require_finite(weight_files(Path(artifact.path)))
        asked = quality.arguments(
            artifact,
            text.path.resolve(),
            text.tokens,
            engine=engine,
            kv_cache_dtype=kv_cache_dtype,
            scratch=scratch,
            reference=shared and reference_folder(shared, artifact, text, engine),
        )
        if worker is not None and worker.waiting:
            job = worker.run(quality.FUNCTION, asked, progress=work.at)
        else:
            log = log_folder / f"quality-{artifact.label}.log"
            job = run_job(environment, quality.FUNCTION, asked, log=log, progress=work.at)
    return dict(job.value)


@contextlib.contextmanager
def waiting_worker(
    quantization: Quantization,
    base: str,
    *,
    log_folder: Path,
    python: str | None = None,
    engine: str | None = None,
    kv_cache_dtype: str = "auto",
) -> Iterator[Worker]:
    """A process for the proof of what is being made, which imports its engine meanwhile. It takes some 400 MB."""
    chosen = engine_of_proof(quantization, engine, kv_cache_dtype)
    environment = environments.find(quality.needs(quantization, chosen), python)
    first = (quality.IMPORT_FUNCTION, {"engine": chosen.name, "base": base})
    with Worker(environment, log=log_folder / f"quality-{quantization.label}.log", first=first) as worker:
        yield worker


def reference_folder(shared: Path, artifact: Artifact, text: QualityText, engine: quality.Engine) -> Path:
    """Where the base's logits lie for all proofs of this base, on this text, in this engine."""
    words = [artifact.base, artifact.base_fingerprint, read_text(text.path), text.tokens, engine.reference]
    folder = shared / f"reference-{stable_hash(words)}"
    folder.mkdir(exist_ok=True)
    return folder


def quality_file(artifact: Artifact, kv_cache_dtype: str = "auto") -> Path:
    """Beside the weights where llmopt made them and the base is their own; else in llmopt's own folder.

    One for each type of KV cache: what a smaller one costs is no figure of the artifact itself.
    """
    folder = Path(artifact.path)
    manifest = read_manifest(folder) if folder.is_dir() else None
    ending = "" if kv_cache_dtype == "auto" else f"-{kv_cache_dtype}"
    if manifest is not None and manifest["artifact"]["key"] == artifact.key:
        return (folder / QUALITY_FILE).with_stem(Path(QUALITY_FILE).stem + ending)
    return environments.home() / "quality" / f"{artifact.key}{ending}.json"


def stored_quality(file: Path, key: str, report: Reporter) -> dict[str, Any] | None:
    """Stored quality of that key; says so when the file is there and cannot be used."""
    if file.exists() and (found := read_quality(file)) is None:
        report.say(f"{file} is damaged: measured again")
        return None
    found = read_quality(file, key)
    if found is not None and not is_whole(found):
        report.say(f"{file} lacks figures: measured again")
        return None
    return found


def is_whole(figures: dict[str, Any]) -> bool:
    """Whether every figure that a reader counts on is there and is a number."""
    single = [figures.get(name) for name in ("kl_mean", "kl_p99", "top1_agreement", "perplexity")]
    pairs = [figures.get(name) for name in ("kl_mean_interval", "top1_interval", "perplexity_interval")]
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in single) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    )


def read_quality(file: Path, key: str | None = None) -> dict[str, Any] | None:
    """Stored quality, of that key where one is given; ``None`` when there is none that can be read."""
    try:
        stored = json.loads(file.read_text())
        found: dict[str, Any] | None = stored["quality"] if key in (None, stored["key"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def quality_of_stored(record: dict[str, Any], kv_cache_dtype: str = "auto") -> dict[str, Any] | None:
    """The quality that lies with the artifact of a run's record, where that is the artifact still."""
    if not TYPE_NAME.fullmatch(kv_cache_dtype):  # of a record that anybody may have written: it becomes a file's name
        return None
    try:
        artifact = open_artifact(record["path"])
    except LlmoptError:
        return None
    return read_quality(quality_file(artifact, kv_cache_dtype)) if artifact.key == record.get("key") else None
