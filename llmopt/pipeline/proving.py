"""Prove an artifact against its base: measured once per artifact and text, kept beside the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt import demo, quality
from llmopt.core import environments
from llmopt.core.artifacts import MANIFEST, open_artifact
from llmopt.core.domain import Artifact, Measurement, stable_hash
from llmopt.core.errors import ModelError
from llmopt.core.files import read_text, write_atomic
from llmopt.core.store import with_quality
from llmopt.core.worker import run_job
from llmopt.pipeline.reporter import Reporter

# An artifact this far from its base is broken, not quantized: even 2-bit weights stay well below.
BROKEN_KL = 2.0
QUALITY_FILE = "quality.json"


@dataclass(frozen=True, kw_only=True)
class QualityText:
    """The text that artifacts are proven on, and how many tokens of it."""

    path: Path = demo.HELD_OUT_TEXT
    tokens: int = quality.MAX_TOKENS


def prove(
    artifact: Artifact, text: QualityText, report: Reporter, *, log_folder: Path, python: str | None = None
) -> dict[str, Any]:
    """Quality against the base, measured once per artifact and text; raises ModelError for a broken artifact."""
    if not Path(artifact.base).is_dir():
        raise ModelError(
            f"the base of {artifact.path} is gone: {artifact.base}", hint="put the base model back, or quantize again"
        )
    file, key = quality_file(artifact), stable_hash([artifact.key, read_text(text.path), text.tokens])
    if (known := read_quality(file, key)) is not None:
        return known
    with report.task(f"comparing {artifact.label} with its base") as work:
        job = run_job(
            environments.find(quality.needs(artifact), python),
            quality.FUNCTION,
            quality.arguments(artifact, text.path.resolve(), text.tokens),
            log=log_folder / f"quality-{artifact.label}.log",
            progress=work.at,
        )
    result: dict[str, Any] = job.value
    if result["kl_mean"] > BROKEN_KL:
        raise ModelError(
            f"{artifact.label} is broken: its mean KL divergence to the base is {result['kl_mean']:.2f} nats",
            hint="this quantizer does not work for this model; try another",
        )
    write_atomic(file, json.dumps({"key": key, "quality": result}, indent=1).encode())
    return result


def quality_file(artifact: Artifact) -> Path:
    """Beside the weights; for a base, which is not ours to write to, in llmopt's own folder."""
    folder = Path(artifact.path)
    if (folder / MANIFEST).exists():
        return folder / QUALITY_FILE
    return environments.home() / "quality" / f"{artifact.key}.json"


def read_quality(file: Path, key: str | None = None) -> dict[str, Any] | None:
    """Stored quality, of that key where one is given; ``None`` when there is none."""
    try:
        stored = json.loads(file.read_text())
        found: dict[str, Any] | None = stored["quality"] if key in (None, stored["key"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def with_known_quality(run: Measurement) -> Measurement:
    """The run with the quality that lies with its artifact, where it was measured only after the run."""
    path = run.artifact.get("path")
    if run.quality is not None or path is None:
        return run
    try:
        artifact = open_artifact(path)
    except ModelError:
        return run
    return with_quality(run, read_quality(quality_file(artifact))) if artifact.key == run.artifact["key"] else run
