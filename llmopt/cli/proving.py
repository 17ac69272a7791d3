"""``llmopt quality``: prove an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli.shell import Json, PythonOption, TextOption, TokensOption, app, for_people, print_json, reporter

if TYPE_CHECKING:
    from llmopt.core.domain import Artifact

LIMITS, TASKS = "Limits", "Task scores"


@app.command("quality")
@for_people
def quality_command(
    artifact: Annotated[
        str,
        typer.Argument(
            help="Artifact that llmopt quantize made; with --against also any quantized checkpoint or GGUF file; "
            "'demo' for the bundled model itself."
        ),
    ],
    against: Annotated[
        str | None, typer.Option("--against", help="Base model to compare with; default: the one it was made from.")
    ] = None,
    text: TextOption = None,
    tokens: TokensOption = 16_384,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Engine of the proof: hf, llamacpp or vllm; default: by format.")
    ] = None,
    kv_cache_dtype: Annotated[
        str, typer.Option("--kv-cache-dtype", help="KV cache as it will be served, in the engine's words: q8_0, fp8.")
    ] = "auto",
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", help="Fail (exit 3) above this mean KL, in nats.", min=0, rich_help_panel=LIMITS),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            help="Fail (exit 3) below this share of kept top tokens.",
            min=0,
            max=1,
            rich_help_panel=LIMITS,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="Also run these lm-eval tasks: NAME or FILE.yaml, …", rich_help_panel=TASKS),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Server for the tasks; default: one is started.", rich_help_panel=TASKS)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Name of the model at --url.", rich_help_panel=TASKS)
    ] = None,
    python: PythonOption = None,
    json: Json = False,
) -> None:
    """Perplexity, KL divergence and top-1 agreement of an artifact against its base."""
    from llmopt import demo
    from llmopt.core.environments import home
    from llmopt.pipeline import proving
    from llmopt.quality import engine_for
    from llmopt.report.terminal import print_quality

    if tasks:
        check_tasks(tasks, url, model)
    report = reporter(quiet=json)
    subject = opened(artifact, against)
    engine_for(subject.quantization, known_engine(backend), kv_cache_dtype)
    found = proving.prove(
        subject,
        proving.QualityText(path=text or demo.HELD_OUT_TEXT, tokens=tokens),
        report,
        log_folder=home() / "logs",
        python=python,
        # A limit of the user's own is judged below, after its figures were printed.
        limits=proving.ProofLimits(
            max_kl=None if max_kl is not None else proving.USUAL,
            min_top1=None if min_top1 is not None else proving.USUAL,
        ),
        engine=known_engine(backend),
        kv_cache_dtype=kv_cache_dtype,
    )
    if tasks:
        from llmopt.pipeline.scoring import score

        found = found | {"tasks": score(subject, tasks, report, log_folder=home() / "logs", url=url, model=model)}
    print_json(found) if json else print_quality(found)
    require_limits(found, proving.ProofLimits(max_kl=max_kl, min_top1=min_top1))


def check_tasks(tasks: str, url: str | None, model: str | None) -> None:
    """A wrong word fails before the proof, not after it. Raises UsageError."""
    from llmopt.core.errors import UsageError
    from llmopt.quality.tasks import task_names

    task_names(tasks)
    if (url is None) != (model is None):
        raise UsageError("--url and --model go together", hint="--url http://HOST:PORT/v1 --model NAME")


def known_engine(name: str | None) -> str | None:
    """A wrong name fails before anything is looked at; raises UsageError with the nearest ones."""
    from llmopt.core.errors import UsageError, nearest
    from llmopt.quality import ENGINES

    if name is not None and name not in ENGINES:
        raise UsageError(f"no proof runs in {name!r}", hint=nearest(name, list(ENGINES)))
    return name


def opened(name: str, against: str | None) -> Artifact:
    """The artifact, of the base that was named where one was: made by llmopt, a plain model, or somebody else's."""
    from dataclasses import replace

    from llmopt import demo
    from llmopt.core.artifacts import open_artifact, open_model
    from llmopt.core.domain import stable_hash
    from llmopt.core.errors import UsageError
    from llmopt.quality.declared import foreign_artifact

    path = demo.model_at(name)
    if against is None:
        if path.is_file() or is_quantized(path):
            raise UsageError(f"{path} does not say what it was made from", hint="name its base: --against MODEL")
        return open_artifact(path)
    base = demo.model_at(against)
    if path.is_file() or is_quantized(path):
        return foreign_artifact(path, base)
    artifact, model = open_artifact(path), open_model(base)
    if model.fingerprint == artifact.base_fingerprint:  # its own base, wherever that lies now
        return replace(artifact, base=model.path)
    key = stable_hash([artifact.key, model.fingerprint])
    return replace(artifact, base=model.path, base_fingerprint=model.fingerprint, key=key)


def is_quantized(folder: Path) -> bool:
    """Whether a folder that llmopt did not make holds a quantized checkpoint."""
    from llmopt.core.artifacts import MANIFEST, read_config
    from llmopt.quality.declared import quantization_config

    if (folder / MANIFEST).exists() or not folder.is_dir():
        return False
    if any(folder.glob("*.gguf")):
        return True
    return bool(quantization_config(read_config(folder)))


def require_limits(found: dict[str, Any], limits: Any) -> None:
    """Raises GoalNotMet for the user's own limits."""
    from llmopt.core.errors import GoalNotMet

    if broken := limits.broken(found):
        raise GoalNotMet("; ".join(broken), hint="another quantization, or another limit")
