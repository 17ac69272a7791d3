"""A whole plan: make, prove, serve and measure every case of a recipe, then rank them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmopt import serve
from llmopt.core import environments
from llmopt.core.artifacts import open_artifact, open_model, unquantized
from llmopt.core.domain import Artifact, Case, Measurement, ModelRef, ServeOptions, Workload
from llmopt.core.errors import Interrupted, LlmoptError, MissingEnvironment, UsageError
from llmopt.core.files import scratch_folder
from llmopt.core.kv_cache import positions
from llmopt.core.machine import this_machine
from llmopt.core.metrics import MEASURING_REVISION
from llmopt.core.run_index import load_runs
from llmopt.core.run_row import served_as
from llmopt.core.store import with_quality
from llmopt.pipeline.making import quantize
from llmopt.pipeline.measuring import bench_artifact, engine_version
from llmopt.pipeline.proving import QualityText, prove
from llmopt.pipeline.ranking import rank_runs as rank_runs
from llmopt.pipeline.reporter import Reporter
from llmopt.pipeline.requesting import Options, quantize_request
from llmopt.quantize import UNQUANTIZED, method
from llmopt.recipe import Plan
from llmopt.recommend.steps import Step, steps_document
from llmopt.serve import require_loadable
from llmopt.serve.options import command_words, require_known
from llmopt.serve.room import model_config

DEFAULT_CONTEXT = 1024
TEMPLATE_ROOM = 64  # tokens that a chat template may add to a prompt


def run_plan(plan: Plan, folder: Path, report: Reporter) -> dict[str, Any]:
    """Make, prove and measure every case of a plan, then rank them; what is there already is taken up as it is.

    A plan of steps gives the document of its steps: one that fails says why, and the others go on.
    """
    open_model(plan.model)  # what is wrong with it is said once, not for every case
    lacking = missing_engines(plan)
    if lacking and not plan.steps:
        raise next(iter(lacking.values()))
    cases: list[Case | None] = []
    failures: list[str | None] = []
    proven: dict[str, dict[str, Any] | None] = {}
    with scratch_folder(folder.resolve(), "shared-") as shared:
        for number, (name, options) in enumerate(plan.cases, 1):
            title = plan.steps[number - 1] if plan.steps else f"{name} on {options.backend}"
            report.say(f"[{number}/{len(plan.cases)}] {title}")
            case = None
            try:
                if options.backend in lacking:
                    raise lacking[options.backend]
                case, quality = proven_case(plan, name, options, folder, report, shared)
                proven[case.key] = quality
                measure_case(case, plan.repeats, folder / "results", report, quality)
                failures.append(None)
            except LlmoptError as error:
                if not plan.steps or isinstance(error, Interrupted):
                    raise
                report.say(f"failed: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
                failures.append(error.message)
            cases.append(case)
    runs = runs_of(folder / "results", proven, report)
    if not plan.steps:
        return rank_runs(runs, plan.goal)
    steps = [
        Step(name=name, runs=tuple(run for run in runs if case and run.case_key == case.key), failure=failure)
        for name, case, failure in zip(plan.steps, cases, failures, strict=True)
    ]
    return steps_document(plan.name, steps, price_per_hour=plan.price_per_hour)


def runs_of(results: Path, proven: dict[str, dict[str, Any] | None], report: Reporter) -> list[Measurement]:
    """This machine's runs of these cases, as they are measured today, with the quality that was just proven."""
    if not results.exists():
        return []
    there = load_runs(results, machine=this_machine(), say=report.say)
    runs = [run for run in there if run.case_key in proven]
    return [with_quality(r, proven[r.case_key]) for r in runs if r.measuring_revision == MEASURING_REVISION]


def missing_engines(plan: Plan) -> dict[str, MissingEnvironment]:
    """The backends of a plan that no environment here has: said before hours are spent on quantizing for them."""
    found = {}
    for name in {options.backend for _, options in plan.cases}:
        try:
            environments.find(serve.backend(name).needs)
        except MissingEnvironment as error:
            found[name] = error
    return found


def plan_document(plan: Plan) -> dict[str, Any]:
    """What would be made and measured."""
    open_model(plan.model)
    names = plan.steps or tuple(f"{name} on {options.backend}" for name, options in plan.cases)
    lacking = missing_engines(plan)
    return {
        "name": plan.name,
        "model": str(plan.model),
        "workload": asdict(plan.workload),
        "repeats": plan.repeats,
        "cases": [
            {
                "name": title,
                "quantization": name,
                "options": " ".join(command_words(options)),
                "lacks": lacking[options.backend].message if options.backend in lacking else None,
            }
            for title, (name, options) in zip(names, plan.cases, strict=True)
        ],
    }


def proven_case(
    plan: Plan, name: str, options: ServeOptions, folder: Path, report: Reporter, shared: Path
) -> tuple[Case, dict[str, Any] | None]:
    """One case of a plan, its artifact made and proven; and its quality, where that is what will be served.

    A KV cache of another type than the usual is part of what is proven, so the engine that has it makes the proof.
    """
    text = QualityText(path=plan.quality_text, tokens=plan.quality_tokens)
    artifact = artifact_of(plan, open_model(plan.model), name, folder, report, text, shared)
    cache = options.kv_cache_dtype
    quality = prove(
        artifact, text, report, log_folder=folder / "artifacts" / "logs", shared=shared,
        engine=options.backend if cache else None, kv_cache_dtype=cache or "auto",
    )  # fmt: skip
    return case_of(artifact, options, plan.workload), quality if served_as(asdict(options)) is not None else None


def measure_case(case: Case, repeats: int, results: Path, report: Reporter, quality: dict[str, Any] | None) -> None:
    """As many runs as lack in the store."""
    have = stored_runs(results, case)
    if have < repeats:
        bench_artifact(case, report, results=results, repeats=repeats - have, quality_of_case=quality)
    else:
        report.say(f"already measured: {have} run(s)")


def artifact_of(
    plan: Plan, model: ModelRef, name: str, folder: Path, report: Reporter, text: QualityText, shared: Path
) -> Artifact:
    if name in UNQUANTIZED:
        base = unquantized(model)
        if base.quantization.name != name:
            raise UsageError(
                f"{model.path} is in {base.quantization.name}, not {name}", hint=f"write {base.quantization.name}"
            )
        return base
    request = quantize_request(model, name, Options(calibration=plan.calibration, samples=plan.calibration_samples))
    out = folder / "artifacts" / f"{name}-{request.key[:8]}"
    artifact, there = quantize(request, out, report, proof=text, shared=shared)
    if there:
        report.say(f"already there: {out}")
    return artifact


def stored_runs(results: Path, case: Case) -> int:
    """Usable runs of this case, on this machine, with the engine version that would be used now."""
    if not results.exists():
        return 0
    version = engine_version(case.serve.backend)
    runs = load_runs(results, machine=this_machine())
    same = [run for run in runs if run.case_key == case.key and run.backend.get("version") == version]
    same = [run for run in same if run.measuring_revision == MEASURING_REVISION]
    return sum(run.verdict.status != "invalid" for run in same)


def open_case(path: Path, options: ServeOptions, workload: Workload) -> Case:
    """An artifact or a base model on disk as a case; without a backend the first that loads it. Raises UsageError."""
    artifact = open_artifact(path)
    chosen = replace(options, backend=options.backend or serve.first_able(artifact.quantization))
    require_known(require_loadable(chosen.backend, artifact.quantization), chosen)
    return case_of(artifact, chosen, workload)


def case_of(artifact: Artifact, options: ServeOptions, workload: Workload) -> Case:
    """A case whose context holds the workload. Raises UsageError when the model's own limit does not."""
    wanted = workload.input_tokens + workload.output_tokens + (TEMPLATE_ROOM if workload.endpoint == "chat" else 0)
    limit = positions(model_config(artifact)) or max(wanted, DEFAULT_CONTEXT)
    context = options.max_model_len or min(limit, max(DEFAULT_CONTEXT, wanted))
    if wanted > min(limit, context):
        raise UsageError(
            f"{wanted} tokens of prompt and output do not fit the context of {min(limit, context)}",
            hint="fewer --input-tokens or --output-tokens" if limit <= context else f"--max-model-len {wanted}",
        )
    return Case(artifact=artifact, serve=replace(options, max_model_len=context), workload=workload)


def ensure_environment(plan: Plan, report: Reporter) -> None:
    """Create the environment that a plan needs when nothing here has it."""
    wanted = [serve.backend(options.backend).needs for _, options in plan.cases]
    wanted += [method(name).needs for name, _ in plan.cases if name not in UNQUANTIZED]
    try:
        for needs in wanted:
            environments.find(needs)
    except MissingEnvironment as error:
        report.say(f"{error.message}: making one (about 2 GB, two or three minutes, once)")
        with report.task("environment local"):
            environments.create("local", report=report.say)
