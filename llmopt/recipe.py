"""``recipes/*.yaml`` ⇄ a validated ``Plan``: which cases to make and measure, and what they are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from llmopt import demo
from llmopt.bench.workload import make_workload
from llmopt.core.domain import Goal, ServeOptions, Workload
from llmopt.core.errors import UsageError
from llmopt.quantize import quantization
from llmopt.recommend.constraints import make_goal
from llmopt.serve import require_loadable

BUILTIN = "builtin"
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Calibration(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    text: str = BUILTIN
    samples: Positive | None = None


class QualityText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    text: str = BUILTIN
    tokens: Positive = 16_384


class CaseGroup(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    backend: str
    quantizations: list[str]
    max_model_len: int | None = None
    threads: int | None = None
    extra_args: list[str] = []


class WorkloadText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The options of ``llmopt bench`` under the same names; lengths may be distributions, ``warmup`` may be auto."""

    input_tokens: Positive | str = 64
    output_tokens: Positive | str = 32
    concurrency: Positive | None = None
    rate: float | None = None
    ramp: str | None = None
    arrival: str = "constant"
    burstiness: float = 1.0
    max_concurrency: Positive | None = None
    requests: Positive | None = None
    duration: float | None = None
    warmup: NotNegative | str = 8
    endpoint: str = "completions"
    dataset: str = ""
    turns: Positive = 1
    think: float = 0.0
    slos: list[str] = []
    seed: int = 0

    def workload(self) -> Workload:
        """Raises UsageError."""
        return make_workload(
            input_tokens=str(self.input_tokens), output_tokens=str(self.output_tokens), concurrency=self.concurrency,
            rate=self.rate, ramp=self.ramp, requests=self.requests, duration=self.duration, warmup=str(self.warmup),
            arrival=self.arrival, burstiness=self.burstiness, max_concurrency=self.max_concurrency,
            endpoint=self.endpoint, dataset=self.dataset, turns=self.turns, think_s=self.think, slos=tuple(self.slos),
            seed=self.seed,
        )  # fmt: skip


class GoalText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    optimize: Literal["throughput", "latency", "memory"] = "throughput"
    slos: list[str] = []
    max_memory: str | None = None
    max_kl: float | None = None


class Recipe(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The file as written; ``plan`` turns it into what can be run."""

    name: str
    model: str
    cases: list[CaseGroup]
    calibration: Calibration = Calibration()
    quality: QualityText = QualityText()
    workload: WorkloadText = WorkloadText()
    repeats: Positive = 1
    goal: GoalText = GoalText()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe whose every name and combination was checked; ``cases`` are (quantization, serve options)."""

    name: str
    model: Path
    calibration_text: Path
    calibration_samples: int | None
    quality_text: Path
    quality_tokens: int
    cases: tuple[tuple[str, ServeOptions], ...]
    workload: Workload
    repeats: int
    goal: Goal


def load(path: Path) -> Plan:
    """Read and check a recipe; raises UsageError that names the place in the file."""
    try:
        document: Any = yaml.safe_load(path.read_text())
        recipe = msgspec.convert(document, Recipe)
        return plan(recipe, path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise UsageError(
            f"no recipe at {path}: {error.strerror}", hint="name a YAML file, see recipes/demo.yaml"
        ) from error
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", hint="recipes/demo.yaml shows every field") from error


def plan(recipe: Recipe, folder: Path) -> Plan:
    """Check every name and combination before anything starts; paths in a recipe are relative to its file."""
    workload = recipe.workload.workload()
    cases = []
    for group in recipe.cases:
        for name in group.quantizations:
            require_loadable(group.backend, quantization(name))
            options = ServeOptions(
                backend=group.backend,
                max_model_len=group.max_model_len,
                max_num_seqs=workload.most_at_once,
                threads=group.threads,
                extra_args=tuple(group.extra_args),
            )
            cases.append((name, options))
    if not cases:
        raise UsageError(
            f"the recipe {recipe.name!r} has no case", hint="add a backend with quantizations under cases:"
        )
    goal = recipe.goal
    return Plan(
        name=recipe.name,
        model=resolve(recipe.model, folder, demo.MODEL),
        calibration_text=resolve(recipe.calibration.text, folder, demo.CALIBRATION_TEXT),
        calibration_samples=recipe.calibration.samples,
        quality_text=resolve(recipe.quality.text, folder, demo.HELD_OUT_TEXT),
        quality_tokens=recipe.quality.tokens,
        cases=tuple(cases),
        workload=workload,
        repeats=recipe.repeats,
        goal=make_goal(goal.slos, max_memory=goal.max_memory, max_kl=goal.max_kl, optimize=goal.optimize),
    )


def resolve(name: str, folder: Path, builtin: Path) -> Path:
    return builtin if name == BUILTIN else folder / Path(name).expanduser()
