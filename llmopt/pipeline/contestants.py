"""Who takes part in ``llmopt tune``: the space of a job, its artifacts made and proven, and what is dropped on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llmopt import quantize as quantizers
from llmopt import serve
from llmopt.core import environments
from llmopt.core.artifacts import MANIFEST, open_artifact, open_model
from llmopt.core.domain import Artifact, Goal, Quantization, ServeOptions, Workload
from llmopt.core.errors import Interrupted, LlmoptError, MissingEnvironment, ModelError, UsageError
from llmopt.core.files import scratch_folder
from llmopt.core.limits import meets
from llmopt.core.machine import available_cores, this_machine
from llmopt.core.metrics import METRICS
from llmopt.core.run_row import served_as
from llmopt.core.synthetic import is_synthetic
from llmopt.core.units import show
from llmopt.pipeline.expecting import cannot_fit
from llmopt.pipeline.making import quantize
from llmopt.pipeline.plans import case_of
from llmopt.pipeline.proving import QualityText, prove
from llmopt.pipeline.reporter import Reporter
from llmopt.pipeline.requesting import Options, quantize_request
from llmopt.pipeline.visiting import Contestant, at_level
from llmopt.quantize.calibration import BUILTIN
from llmopt.recommend.proposals import Range
from llmopt.recommend.space import Configuration, Dropped, Engine, Space, Value, build
from llmopt.serve.options import require_known
from llmopt.serve.room import require_room

# What is tried where nobody says: of each kind of format the usual width, and the next one below.
QUANTIZATIONS = ("gguf-q8_0", "gguf-q4_k_m", "w8a8-int8", "gptq-int4-g128", "nf4")
LEVELS_OF_A_CPU, LEVELS_OF_A_GPU = (1.0, 2.0, 4.0, 8.0, 16.0), (1.0, 4.0, 16.0, 64.0, 128.0)
BATCHED_TOKENS = (512, 8192)  # tried on GPUs beside the engine's own default
NO_ENGINES = ("scripted", "triton")  # a fake, and one that serves through another's engine: by name alone
OF_QUALITY = {"kl": "kl_mean", "kl_p99": "kl_p99", "top1": "top1_agreement", "perplexity": "perplexity"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked of ``llmopt tune MODEL``. ``levels`` are users, or requests per second where ``workload`` is open;
    ``requests``, at each, as many as the limits need where it is ``None``.

    ``quantizations`` and ``backends`` are empty for whatever is usual and installed; ``knobs`` is ``None`` for what each
    engine would try; ``ranges`` are searched beside them; ``extra_args`` go to every engine
    as they are.
    """

    model: Path
    goal: Goal
    workload: Workload
    levels: tuple[float, ...]
    budget_s: float
    requests: int | None = None
    quantizations: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    knobs: Mapping[str, tuple[Value, ...]] | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    text: QualityText = field(default_factory=QualityText)
    calibration: str = BUILTIN
    exhaustive: bool = False
    seed: int = 0
    extra_args: tuple[str, ...] = ()

    @cached_property
    def base(self) -> Artifact:
        """The model as it was given: unquantized, or an artifact of llmopt's. Raises ModelError, UsageError."""
        if self.model.suffix != ".gguf":
            return open_artifact(self.model)
        if not self.model.is_file():
            raise ModelError(f"no model at {self.model}", hint="name a model folder, or builtin")
        if not (self.model.parent / MANIFEST).exists():
            raise UsageError(
                f"{self.model} was not made by llmopt: its tokenizer and its base are not known",
                hint="name the folder of the unquantized model, and --quants gguf-q4_k_m",
            )
        return open_artifact(self.model.parent)

    @property
    def given(self) -> bool:
        """Whether the model is quantized already: then there is nothing to make."""
        return self.base.quantization.method != "none"

    @property
    def names(self) -> tuple[str, ...]:
        """The quantizations that take part."""
        own = self.base.quantization.name
        return (own,) if self.given else self.quantizations or (own, *QUANTIZATIONS)

    def quantization(self, name: str) -> Quantization:
        return self.base.quantization if self.given else quantizers.quantization(name)

    @property
    def loads(self) -> tuple[Workload, ...]:
        return tuple(at_level(self.workload, level, self.requests, self.goal) for level in sorted(self.levels))

    @property
    def most_at_once(self) -> int:
        return self.workload.most_at_once if self.workload.open_loop else int(max(self.levels))


def usual_levels() -> tuple[float, ...]:
    return LEVELS_OF_A_GPU if this_machine().gpus else LEVELS_OF_A_CPU


def space_of(job: Job) -> Space:
    """Every configuration, and why others are none. Raises UsageError for names that nobody knows."""
    for name in job.names:
        job.quantization(name)
    wanted = job.backends or [name for name in serve.BACKENDS if name not in NO_ENGINES]
    engines = [engine_of(job, name) for name in wanted]
    if not job.backends:  # what nobody asked for is not told to be missing, unless there is nothing else
        engines = [engine for engine in engines if not engine.lacking] or engines
    return build(job.names, engines, lambda engine, name: refusal(job, engine, name), job.knobs, job.ranges)


def refusal(job: Job, engine: str, name: str) -> str | None:
    own = job.base.quantization
    if name in quantizers.UNQUANTIZED and not job.given and name != own.name:
        return f"the model is in {own.name}, not {name}"
    return serve.backend(engine).refusal(job.quantization(name))


def engine_of(job: Job, name: str) -> Engine:
    backend = serve.backend(name)
    shared, gpus = bool(job.workload.prefix_tokens), len(this_machine().gpus)
    usual: dict[str, Any] = {
        "max_num_seqs": job.most_at_once, "enable_prefix_caching": shared, "extra_args": job.extra_args,
    }  # fmt: skip
    tried: dict[str, tuple[Value, ...]] = {
        "threads": () if gpus else (available_cores(),),
        "max_num_batched_tokens": BATCHED_TOKENS if gpus else (),
        "enable_chunked_prefill": (False,) if gpus else (),
        "enable_prefix_caching": (False,) if shared else (),
        "tensor_parallel_size": (gpus,) if gpus > 1 else (),
    }
    lacking = None
    try:
        environments.find(backend.needs)
    except MissingEnvironment as error:
        lacking = error.message + (f": {error.hint}" if error.hint else "")
    return Engine(
        name=name,
        options=backend.options,
        usual={option: value for option, value in usual.items() if option in backend.options},
        tried={option: values for option, values in tried.items() if option in backend.options},
        lacking=lacking,
    )


@dataclass(kw_only=True)
class Field:
    """The contestants by their label, and what was dropped; ``reference``: what quality is measured against.

    ``artifacts``: by quantization, with the quality that was proven.
    """

    contestants: dict[str, Contestant] = field(default_factory=dict)
    configurations: dict[str, Configuration] = field(default_factory=dict)
    artifacts: dict[str, tuple[Artifact, dict[str, Any] | None]] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    reference: str = ""


def contestants_of(job: Job, folder: Path, report: Reporter, time_left: Callable[[], bool]) -> Field:
    """Make and prove what is missing, and screen by quality: speed is measured only of what may be deployed.

    ``time_left``: whether another artifact may still be made.  Raises Interrupted, and UsageError for unknown names.
    """
    space = space_of(job)
    found = Field(dropped=list(space.dropped))
    wanted = [name for name in job.names if any(c.quantization == name for c in space.configurations)]
    with scratch_folder(folder.resolve(), "shared-") as shared:
        for name in wanted:
            own = [c for c in space.configurations if c.quantization == name]
            too_large = {c: reason for c in own if (reason := no_room(job, c))}
            found.dropped += [Dropped(label=c.label, reason=reason) for c, reason in too_large.items()]
            own = [c for c in own if c not in too_large]
            if not own:
                continue
            if not (time_left() or is_there(job, name, folder)):
                found.dropped.append(Dropped(label=name, reason="there was no time left in the budget to make it"))
                continue
            try:
                found.artifacts[name] = made(job, name, folder, report, shared)
                for configuration in own:
                    enter(found, job, configuration, folder, report, shared)
            except Interrupted:
                raise
            except LlmoptError as error:
                report.say(f"{name}: {error.message}")
                found.dropped.append(Dropped(label=name, reason=error.message, hint=error.hint))
    found.reference = reference_of(job, found)
    return found


def is_there(job: Job, name: str, folder: Path) -> bool:
    """Whether nothing has to be made: the model itself, or what an earlier start made."""
    made_before = (folder / "artifacts").glob(f"{name}-*/{MANIFEST}")
    return job.given or name in quantizers.UNQUANTIZED or any(made_before)


def no_room(job: Job, configuration: Configuration) -> str | None:
    """Why it cannot fit, before anything is made: by the estimate, and by the width of the weights alone."""
    quantization, options = job.quantization(configuration.quantization), configuration.options
    if reason := cannot_fit(job.model, quantization, options, job.loads[-1], job.goal):
        return reason
    size = job.base.size_bytes
    if not job.given:
        size = min(size, int(size * quantization.bits / job.base.quantization.bits))
    planned = replace(job.base, quantization=quantization, size_bytes=size)
    try:
        require_room(serve.backend(options.backend), planned, options)
    except UsageError as error:
        return error.message
    return None


def made(job: Job, name: str, folder: Path, report: Reporter, shared: Path) -> tuple[Artifact, dict[str, Any] | None]:
    """The artifact and the quality that was proven of it; the unquantized base has none to lose."""
    logs = folder / "artifacts" / "logs"
    if not job.given and name in quantizers.UNQUANTIZED:
        return job.base, None
    if job.given:
        unproven = is_synthetic(job.base.base)
        return job.base, None if unproven else prove(job.base, job.text, report, log_folder=logs, shared=shared)
    proof = None if is_synthetic(job.model) else job.text
    request = quantize_request(open_model(job.model), name, Options(calibration=job.calibration))
    out = folder / "artifacts" / f"{name}-{request.key[:8]}"
    artifact, there = quantize(request, out, report, proof=proof, shared=shared)
    if there:
        report.say(f"already there: {out}")
    if proof is None:
        return artifact, None
    return artifact, prove(artifact, proof, report, log_folder=logs, shared=shared)


def enter(
    found: Field, job: Job, configuration: Configuration, folder: Path, report: Reporter, shared: Path | None = None
) -> None:
    """One configuration to the field, or to what is dropped."""
    artifact, quality = found.artifacts[configuration.quantization]
    label, options = configuration.label, configuration.options
    try:
        require_known(serve.backend(options.backend), options)
        case = case_of(artifact, options, job.loads[0])
        if (cache := options.kv_cache_dtype) and not is_synthetic(artifact.base):
            quality = prove(
                artifact, job.text, report, log_folder=folder / "artifacts" / "logs", shared=shared,
                engine=options.backend, kv_cache_dtype=cache,
            )  # fmt: skip
        if served_as(asdict(options)) is None:
            quality = None  # that of the artifact, and more is served than that
        require_room(serve.backend(options.backend), artifact, case.serve)
    except Interrupted:
        raise
    except LlmoptError as error:
        found.dropped.append(Dropped(label=label, reason=error.message, hint=error.hint))
        return
    if reasons := screened(job, artifact, quality, options):
        found.dropped.append(Dropped(label=label, reason="; ".join(reasons)))
        return
    found.configurations[label] = configuration
    found.contestants[label] = Contestant(
        label=label, case=case, workloads=job.loads, quality=quality, traits=configuration.traits
    )


def screened(job: Job, artifact: Artifact, quality: dict[str, Any] | None, options: ServeOptions) -> list[str]:
    """The limits on quality that it breaks; the base is its own reference and keeps them all, where nothing else changes it."""
    found = []
    itself = artifact.quantization.method == "none" and served_as(asdict(options)) == "auto"
    for limit in job.goal.limits:
        if limit.metric not in OF_QUALITY or itself:
            continue
        if quality is None:
            found += [] if limit.default else [f"{limit.text}: its quality is not known"]
        elif not meets(limit, value := quality[OF_QUALITY[limit.metric]]):
            found.append(f"{limit.text}: measured {show(value, METRICS[limit.metric].unit)}")
    return found


def reference_of(job: Job, found: Field) -> str:
    """What quality is told against, in words: every artifact is proven against the model that it was made from.

    Where that is not served here, the best of what is stands beside it.
    """
    base = job.base.quantization.name if not job.given else Path(job.base.base).name
    served = {c.case.artifact.quantization.method for c in found.contestants.values()}
    if "none" in served:
        return base
    proven = [
        (c.quality["kl_mean"], c.case.artifact.quantization.name) for c in found.contestants.values() if c.quality
    ]
    if not proven:
        return f"{base}, which is not served here"
    kl, best = min(proven)
    return f"{base}, which is not served here: the best that is, {best}, has a KL divergence of {show(kl, METRICS['kl'].unit)}"
