"""``llmopt quantize --recipe``: several quantizations of one model, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmopt import recipe
from llmopt.core.artifacts import open_model
from llmopt.core.domain import ModelRef
from llmopt.core.errors import LlmoptError
from llmopt.core.files import scratch_folder
from llmopt.pipeline.making import made_document, quantize
from llmopt.pipeline.proving import ProofLimits, QualityText
from llmopt.pipeline.reporter import Reporter
from llmopt.pipeline.requesting import Options, QuantizeRequest, prepared, quantize_request


def quantize_all(
    file: Path, folder: Path, report: Reporter, *, limits: ProofLimits, dry_run: bool = False, force: bool = False
) -> list[dict[str, Any]]:
    """Make every quantization of a recipe below ``folder``; what is there already is taken up.

    All are checked before the first starts.  One that fails does not stop the others: its error is raised at the end.
    Returns the documents of what was made, or of the forecasts.
    """
    plan = recipe.load_quantizations(file)
    model = open_model(plan.model)
    wanted = [(q.folder, request_of(plan, model, q)) for q in plan.quantizations]
    text = QualityText(path=plan.quality_text, tokens=plan.quality_tokens)
    if dry_run:
        return [prepared(r, folder / name, text, force=force).document(folder / name) for name, r in wanted]
    documents, failures = list[dict[str, Any]](), list[tuple[str, LlmoptError]]()
    with scratch_folder(folder.resolve(), "shared-") as shared:
        for number, (name, request) in enumerate(wanted, 1):
            report.say(f"[{number}/{len(wanted)}] {name}")
            try:
                artifact, there = quantize(
                    request, folder / name, report, proof=text, limits=limits, force=force, shared=shared
                )
                documents.append(made_document(artifact, there))
            except LlmoptError as error:
                report.say(f"{name} failed: {error.message}")
                failures.append((name, error))
    if failures:
        name, first = failures[0]
        raise LlmoptError(
            f"{len(failures)} of {len(wanted)} quantizations failed; {name}: {first.message}", hint=first.hint
        )
    return documents


def request_of(plan: recipe.QuantizePlan, model: ModelRef, wanted: recipe.QuantizationText) -> QuantizeRequest:
    options = Options(
        layout=wanted.format, engine=wanted.engine, imatrix=wanted.imatrix, calibration=plan.calibration,
        samples=plan.samples, sample_tokens=plan.sample_tokens, seed=plan.seed,
    )  # fmt: skip
    return quantize_request(model, wanted.name, options)
